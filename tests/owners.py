"""What becomes of a child process whose owner is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def outlives_its_owner(script: str, folder: Path) -> bool:
    """Run `script`, which prints the number of a child process and waits for it, kill it, and look for the child."""
    (folder / "owner.py").write_text(script)
    with subprocess.Popen([sys.executable, str(folder / "owner.py")], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        assert _runs(child)
        owner.kill()
    deadline = time.monotonic() + 30
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    return _runs(child)


def _runs(process: int) -> bool:
    """Whether it is there, and not only waits for somebody to ask for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
