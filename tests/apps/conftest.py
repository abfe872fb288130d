"""A small bundle for the web and its site, which all workers share; foreign packages stay in this user's cache between runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapgen_deploy.apps.site import Site, get_packages, site_of
from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.errors import BadInput
from tests.cli.conftest import checkpoint as checkpoint
from tests.cli.conftest import invoke
from tests.conversions import share

OWN_CACHE = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # before tests get one of their own
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, once: Once) -> Path:
    """Of the tiny checkpoint for browsers, fp32."""
    conversions = once("conversions", lambda folder: None)

    def export(out: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            share(patch, conversions)
            done = invoke("export", "--device", "web", "--checkpoint", checkpoint, "-o", out, "--threads", 1)
        assert done.exit_code == 0, done.output

    return once("web bundle", export) / "tiny-test-web"


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """Files of npm's packages; they are loaded once in the life of this user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", OWN_CACHE)
        try:
            return get_packages(None)
        except BadInput as error:
            pytest.skip(f"npm's packages are not here: {error}")


@pytest.fixture(scope="session")
def site(bundle: Path, packages: dict[str, Path]) -> Site:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", OWN_CACHE)
        return site_of(open_bundle(bundle))
