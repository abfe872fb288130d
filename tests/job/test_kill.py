"""Exports that are killed: what they leave is a whole bundle or none, and the next run finishes the work."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapgen_deploy.bundle.reader import check_hashes, open_bundle
from snapgen_deploy.cli import main
from snapgen_deploy.job import run
from snapgen_deploy.system import child
from tests.cli.conftest import write_checkpoint

pytestmark = pytest.mark.slow

STAGES = (
    "mixed_recipe", "reference_vectors", "draw_for_fidelity", "convert_component", "arranged", "check_files", "judge_fidelity",
    "refuse_failed", "write_bundle", "open_bundle",
)  # fmt: skip
KILLS = 50  # at random moments
Begin = Callable[..., "Export"]


class Export:
    """`snapgen-deploy export` in a fork of this process, in a session of its own; imports, which risk nothing, are done.

    Args:
        words: The command's arguments.
        log: A file for what it prints.
        stage: A stage of `snapgen_deploy.job.run`; as soon as it has returned, the process kills itself: nothing cleans up.
    """

    def __init__(self, words: list[str], log: Path, cache: Path, stage: str = "") -> None:
        self.log, self.ended = log, None
        self.began = time.monotonic()
        if (pid := os.fork()) == 0:
            self._run(words, cache, stage)
        self.pid = pid

    def _run(self, words: list[str], cache: Path, stage: str) -> None:
        code = 70
        try:
            os.setsid()
            sink = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for descriptor in (1, 2):
                os.dup2(sink, descriptor)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            os.environ["XDG_CACHE_HOME"] = str(cache)
            child.start_method = lambda: "fork"  # children of this process, too, have imported everything
            if stage:
                _kill_after(stage)
            sys.argv = ["snapgen-deploy", *words]
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float = 1800) -> int | None:
        """The exit code, as in `subprocess`; None if it has not ended within so many seconds of its start."""
        while self.ended is None and time.monotonic() < self.began + seconds:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.ended = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.005)
        return self.ended

    def kill(self) -> None:
        """End it and its children at once."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it was just forked, and has no group of its own yet
            os.kill(self.pid, signal.SIGKILL)
        assert self.wait() is not None

    def finish(self) -> None:
        """It has to succeed."""
        assert self.wait() == 0, self.log.read_text()


def _kill_after(stage: str) -> None:
    done = getattr(run, stage)

    def killed(*args: object, **named: object) -> None:
        done(*args, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(run, stage, killed)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tests.preload  # noqa: F401 - once for all exports

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_checkpoint(path)
    return path


@pytest.fixture
def begun(checkpoint: Path, tmp_path: Path) -> Iterator[Begin]:
    """`begun(option, ..., stage="")`: an export into `tmp_path / "out"`."""
    words = ["export", "--device", "server", "--width", "tiny", "--checkpoint", str(checkpoint), "--threads", "1"]
    exports = []

    def begin(*options: str, stage: str = "") -> Export:
        place = ["-o", str(tmp_path / "out")]
        exports.append(Export([*words, *place, *options], tmp_path / "log.txt", tmp_path / "cache", stage))
        return exports[-1]

    yield begin
    for export in exports:
        if export.ended is None:
            export.kill()


def whole_or_absent(out: Path) -> bool:
    """Whether there is a bundle; what is there must be whole."""
    if not (out / "tiny-test-server").exists():
        return False
    check_hashes(open_bundle(out / "tiny-test-server"))
    return True


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_a_boundary_loses_no_bundle(begun: Begin, tmp_path: Path, stage: str) -> None:
    out = tmp_path / "out"
    assert begun("--resume", stage=stage).wait() == -signal.SIGKILL
    assert whole_or_absent(out) == (stage == "open_bundle")
    begun("--resume", "--overwrite").finish()
    assert whole_or_absent(out)
    assert begun("--resume", "--overwrite", stage=stage).wait() == -signal.SIGKILL
    assert whole_or_absent(out)  # the old one or the new one
    begun("--resume", "--overwrite").finish()
    left = {p.name for p in out.iterdir()}
    assert left == {"tiny-test-server"}, left


def test_kills_at_random_moments_lose_no_bundle(begun: Begin, tmp_path: Path) -> None:
    """Without the cache, so that each has work to do: what a killed export has finished, the next one takes up."""
    out, moments = tmp_path / "out", random.Random(20)
    first = begun("--no-cache")
    first.finish()
    whole, kills = time.monotonic() - first.began, 0
    while kills < KILLS:
        export = begun("--no-cache", "--resume", "--overwrite")
        if export.wait(moments.uniform(0, whole)) is None:
            export.kill()
            kills += 1
        else:
            export.finish()
        assert whole_or_absent(out)
    begun("--no-cache", "--resume", "--overwrite").finish()
    assert whole_or_absent(out)
    left = {p.name for p in out.iterdir()}
    assert left == {"tiny-test-server"}, left
