"""Every test has an empty cache of its own: no calibration and no measurement of this machine leaks in."""

from contextlib import contextmanager

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder that stands for ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@contextmanager
def quiet(_):
    """Progress that nobody watches."""
    yield
