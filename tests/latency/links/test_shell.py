"""The seam itself, with real commands of this host."""

from __future__ import annotations

import pytest

from snapgen_deploy.errors import MeasurementFailed
from snapgen_deploy.latency.links.shell import Completed, checked, restoring, run_command


def test_real_commands() -> None:
    assert run_command(["sh", "-c", "echo out; echo err >&2; exit 3"], 5) == Completed(3, "out\n", "err\n")
    with pytest.raises(MeasurementFailed, match="`no-such-tool-here` is not on this host's PATH"):
        run_command(["no-such-tool-here"], 5)
    with pytest.raises(MeasurementFailed, match="did not end within 0.1 s"):
        run_command(["sleep", "5"], 0.1)
    with pytest.raises(MeasurementFailed, match="ended with status 3, expected 0: err"):
        checked(run_command, ["sh", "-c", "echo err >&2; exit 3"], 5)


def test_a_known_error_is_explained_and_quoted() -> None:
    known = [("No space", "the storage is full")]
    done = Completed(1, "first\n", "cp: No space left on device\nlast\n")
    with pytest.raises(MeasurementFailed, match=r"^the storage is full \(cp printed: cp: No space left on device\)$"):
        checked(lambda argv, timeout: done, ["env", "A=1", "cp", "x"], 1, known)


def test_restoring() -> None:
    calls: list[str] = []
    with restoring(lambda: calls.append("always")):
        pass
    with restoring(lambda: calls.append("on failure"), only_on_failure=True):
        pass
    with pytest.raises(KeyboardInterrupt), restoring(lambda: calls.append("interrupt"), only_on_failure=True):
        raise KeyboardInterrupt
    assert calls == ["always", "interrupt"]
