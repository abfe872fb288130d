"""For all tests: no deadline on property tests (shared machines are slow at times), none of this user's caches, a folder of
temporary files that must be empty in the end, and child processes that start at once."""

import atexit
import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.util import Finalize
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from hypothesis import settings

from snapgen_deploy.system.child import start_method

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
WORKER = "PYTEST_XDIST_WORKER"  # set in a worker of a run with -n
SERVER = "SNAPGEN_TESTS_SERVER"  # there: where the server listens that all workers' children are forked from
PRELOAD = ["tests.preload"]
OTHER_SEED = "1234" if os.environ.get("PYTHONHASHSEED") == "4321" else "4321"  # of hashes of texts in child processes
COLLECTED = (100_000, 20, 100)  # new objects until garbage is collected: tracing a graph makes many, nearly all of them to stay
KEPT = ("pymp-", "torchinductor_")  # multiprocessing's sockets, which go when a process ends; torch's cache


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a folder of temporary files of its own; pytest's own stay where it looks for those of earlier runs.

    One thread of arithmetic a process: small networks gain nothing by more, and workers would wait for each other.
    """
    gc.disable()  # until the test modules are imported
    if WORKER in os.environ:
        atexit.register(_end_at_once)  # first, so that it is called last
    else:
        # The server that children are forked from imports `tests.preload`, and looks in no working directory.
        os.environ["PYTHONPATH"] = os.pathsep.join((str(config.rootpath), *filter(None, (os.environ.get("PYTHONPATH"),))))
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        folder = tempfile.mkdtemp(prefix="sg-")  # short: sockets lie below
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=-1000)  # after multiprocessing's own
        if config.getoption("numprocesses", None) and start_method() == "forkserver":
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYTHONHASHSEED", OTHER_SEED)
                multiprocessing.set_forkserver_preload(PRELOAD)
                forkserver.ensure_running()
            os.environ[SERVER] = forkserver._forkserver._forkserver_address


def _end_at_once() -> None:
    """A worker that has done everything need not take all that it imported apart, which takes seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where a test left something in the folder of temporary files. With workers, they have ended by now."""
    if WORKER in os.environ:
        return
    folder = Path(tempfile.gettempdir())
    alone = not session.config.getoption("numprocesses", None)  # coremltools deletes its packages when its process ends
    left = sorted(p.name for p in folder.iterdir() if not (p.name.startswith(KEPT) or (alone and p.suffix == ".mlpackage")))
    if left:
        print(f"\n{len(left)} temporary files were left behind: {', '.join(left[:20])}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def _warm_server() -> Iterator[None]:
    """Child processes are forked from a server that has imported everything: one for all workers, or one of this process's own
    that starts with the first child.

    They order sets of texts in another way than this process, see `tests.another`.
    """
    multiprocessing.set_forkserver_preload(PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", OTHER_SEED)
        patch.setattr(multiprocessing, "set_forkserver_preload", lambda names: None)
        if SERVER in os.environ:
            server, nothing = forkserver._forkserver, os.open(os.devnull, os.O_RDONLY)
            patch.setattr(server, "_forkserver_address", os.environ[SERVER])
            patch.setattr(server, "_forkserver_alive_fd", nothing)  # the server ends with the run, not with this worker
            for owner in (server, forkserver):
                patch.setattr(owner, "ensure_running", resource_tracker.ensure_running)
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)`: a folder that `make` fills in the first worker that asks, and that all workers share from then on.

    A test that changes what lies there copies it first.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if WORKER in os.environ else base) / "shared"

    def shared(name: str, make: Callable[[Path], object]) -> Path:
        root.mkdir(exist_ok=True)
        folder = root / name
        with FileLock(root / f"{name}.lock"):
            if not folder.exists():
                part = root / f"{name}.part"
                part.mkdir()
                make(part)
                part.rename(folder)
        return folder

    return shared


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test finds only what it has kept itself: exports, calibrations, measurements."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "caches" / str(next(_numbers))))


_for_good = contextlib.ExitStack()  # held: a context that nothing holds ends at once
_modules = 0  # how many were imported when what they hold was last set aside


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Set aside what imports left: converters collect garbage often, and looked at all of it each time (a third of a test).

    A command that ran in this process may have left torch with more threads.
    """
    global _modules
    if (torch := sys.modules.get("torch")) is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
    if len(sys.modules) > _modules + 200:
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """The same after the test modules were imported; torch lists its operators once, typer its commands."""
    pytest_runtest_teardown()
    gc.set_threshold(*COLLECTED)
    gc.enable()
    if "torch._export.utils" in sys.modules:
        from snapgen_deploy.export.shared.tracing import quick_tracing

        _for_good.enter_context(quick_tracing())
    if (entry := sys.modules.get("coremltools.converters._converters_entry")) is not None:
        entry.gc = SimpleNamespace(collect=lambda: 0)  # after each conversion: here it looks at all that the tests hold
    if (typer := sys.modules.get("typer.testing")) is not None:  # it would read every command's signature for each call
        typer._get_command = functools.cache(typer._get_command)
