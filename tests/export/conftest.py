from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def elsewhere(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Directory into which another process, with another hash seed, exported `mixed` for Core ML and ExecuTorch."""

    def export(directory: Path) -> None:
        command = [sys.executable, "-m", "tests.export.graph_cases", str(directory)]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "4321"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "", "libraries must not print"

    return once("elsewhere", export)
