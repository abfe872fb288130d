"""One tiny checkpoint, opened once, and its golden vectors."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapgen_deploy.checkpoint import Checkpoint, open_checkpoint
from tests.cli.conftest import write_checkpoint
from tests.golden.golden_cases import write_golden


@pytest.fixture(scope="session")
def tiny(once) -> Checkpoint:
    return open_checkpoint(once("golden", lambda folder: write_checkpoint(folder / "tiny.safetensors")) / "tiny.safetensors")


@pytest.fixture(scope="session")
def golden(tiny: Checkpoint, once) -> Path:
    name = "golden.safetensors"
    return once("golden-vectors", lambda folder: write_golden(tiny, folder / name, "small")) / name
