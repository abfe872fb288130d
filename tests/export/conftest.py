from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory into which another process, with another hash seed, exported `mixed` for Core ML and ExecuTorch."""
    directory = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "tests.export.graph_cases", str(directory)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "4321"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "libraries must not print"
    return directory
