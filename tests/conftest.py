"""For all tests: no deadline on property tests (shared machines are slow at times), and none of this user's caches."""

import gc
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test finds only what it has kept itself: exports, calibrations, measurements."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


_modules = 0  # how many were imported when what they hold was last set aside


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Set aside what imports left: converters collect garbage often, and looked at all of it each time (a third of a test)."""
    global _modules
    if len(sys.modules) > _modules + 200:
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """The same after the test modules were imported."""
    pytest_runtest_teardown()
