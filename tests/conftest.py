"""For all tests: no deadline on property tests (shared machines are slow at times), and none of this user's caches."""

import pytest
from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Calibrations and measurements of this machine must not reach a test, nor a test's reach the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
