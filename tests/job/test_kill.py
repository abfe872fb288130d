"""Exports that are killed: what they leave is a whole bundle or none, and the next run finishes the work."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snapgen_deploy.bundle.reader import check_hashes, open_bundle
from tests.cli.conftest import write_checkpoint

pytestmark = pytest.mark.slow

STAGES = (
    "mixed_recipe", "reference_vectors", "draw_for_fidelity", "convert_component", "arranged", "check_files", "judge_fidelity",
    "refuse_failed", "write_bundle", "open_bundle",
)  # fmt: skip
# Ends the process as soon as a stage has returned: nothing cleans up.
KILLED = """
import os, signal
from snapgen_deploy.job import run
stage = getattr(run, {stage!r})
def killed(*args, **named):
    stage(*args, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(run, {stage!r}, killed)
"""
MAIN = "from snapgen_deploy.cli import main; main()"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_checkpoint(path)
    return path


def begun(checkpoint: Path, out: Path, *options: str, before: str = "") -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-c", before + MAIN, "export", "--device", "server", "--width", "tiny", "--checkpoint", str(checkpoint),
        "-o", str(out), "--threads", "1", *options,
    ]  # fmt: skip
    environment = os.environ | {"XDG_CACHE_HOME": str(out.parent / "cache")}
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)


def done(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate(timeout=1800)
    assert process.returncode == 0, said.decode()


def whole_or_absent(out: Path) -> bool:
    """Whether there is a bundle; what is there must be whole."""
    if not (out / "tiny-test-server").exists():
        return False
    check_hashes(open_bundle(out / "tiny-test-server"))
    return True


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_a_boundary_loses_no_bundle(checkpoint: Path, tmp_path: Path, stage: str) -> None:
    out = tmp_path / "out"
    killed = begun(checkpoint, out, "--resume", before=KILLED.format(stage=stage))
    killed.communicate(timeout=1800)
    assert killed.returncode == -signal.SIGKILL
    assert whole_or_absent(out) == (stage == "open_bundle")
    done(begun(checkpoint, out, "--resume", "--overwrite"))
    assert whole_or_absent(out)
    again = begun(checkpoint, out, "--resume", "--overwrite", before=KILLED.format(stage=stage))
    again.communicate(timeout=1800)
    assert whole_or_absent(out)  # the old one or the new one
    done(begun(checkpoint, out, "--resume", "--overwrite"))
    left = {p.name for p in out.iterdir()}
    assert left == {"tiny-test-server"}, left


def test_kills_at_random_moments_lose_no_bundle(checkpoint: Path, tmp_path: Path) -> None:
    out, moments = tmp_path / "out", random.Random(20)
    start = time.monotonic()
    done(begun(checkpoint, out))
    whole = time.monotonic() - start
    for _ in range(50):
        process = begun(checkpoint, out, "--resume", "--overwrite")
        time.sleep(moments.uniform(0, whole))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert whole_or_absent(out)
    done(begun(checkpoint, out, "--resume", "--overwrite"))
    assert whole_or_absent(out)
