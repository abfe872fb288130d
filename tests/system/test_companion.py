import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.child import ChildDied
from snapgen_deploy.system.companion import Companion
from tests.owners import outlives_its_owner

_kept: dict[str, Any] = {}


def keep(name, value):
    _kept[name] = value
    return os.getpid()


def kept(name):
    os.write(1, b"looking for it")
    return _kept[name]


def refuse():
    raise BadInput("got this, expected that")


def crash(*said):
    for line in said:
        os.write(1, f"{line}\n".encode())
    os.kill(os.getpid(), signal.SIGSEGV)


def test_calls_share_one_process_that_keeps_what_it_was_given():
    companion = Companion("keeper")
    there = companion.call(keep, "x", 7, seconds=60)
    assert there != os.getpid()
    assert companion.call(kept, "x", seconds=60) == 7
    assert "looking for it" in companion.printed()
    with pytest.raises(BadInput, match="got this, expected that"):
        companion.call(refuse, seconds=60)
    assert companion.call(kept, "x", seconds=60) == 7  # an error does not end it
    companion.close()
    assert companion.printed() == ""
    with pytest.raises(ProcessLookupError):
        os.kill(there, 0)


def test_nothing_of_the_working_directory_runs_in_a_process_beside_ours(tmp_path, monkeypatch):
    for name in ("multiprocessing", "pickle", "tempfile"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    companion = Companion("keeper")
    assert companion.call(keep, "x", 7, seconds=60) != os.getpid()
    companion.close()
    assert not (tmp_path / "ran").exists()


def test_a_crash_is_one_line_and_ends_the_companion():
    companion = Companion("vendor's compiler")
    with pytest.raises(ChildDied, match=r"^vendor's compiler: the process was ended by SIGSEGV$"):
        companion.call(crash, seconds=60)
    with pytest.raises(ChildDied, match="already ended"):
        companion.call(kept, "x", seconds=60)


def test_a_crash_repeats_what_was_said_last_but_for_chatter():
    companion = Companion("runtime", chatter="[default]")
    with pytest.raises(ChildDied, match=r"^runtime: the process was ended by SIGSEGV; out of stack$"):
        companion.call(crash, "loading", "out of stack", "12:01 [default] still here", seconds=60)


def test_a_process_that_does_nothing_is_ended_before_its_time(monkeypatch):
    companion = Companion("emulation")
    companion.call(keep, "x", 1, seconds=60)
    monkeypatch.setattr("snapgen_deploy.system.companion.IDLE_SECONDS", 1.0)
    with pytest.raises(ChildDied, match=r"^emulation: its process has done nothing for 1 s; it was ended$"):
        companion.call(time.sleep, 600, seconds=600)


def leave_a_file():
    return tempfile.mkstemp(suffix=".aimodelx")[1]


def test_its_temporary_files_go_with_it():
    companion = Companion("compiler")
    left = Path(companion.call(leave_a_file, seconds=60))
    assert left.exists()
    companion.close()
    assert not left.exists()
    assert not left.parent.exists()


def test_it_ends_with_an_owner_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    script = (
        "import os, time\n"
        "from snapgen_deploy.system.companion import Companion\n"
        "if __name__ == '__main__':\n"
        "    companion = Companion('compiler')\n"
        "    print(companion.call(os.getpid, seconds=60), flush=True)\n"
        "    companion.call(time.sleep, 600, seconds=600)\n"
    )
    assert not outlives_its_owner(script, tmp_path)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_hang_is_one_line_after_the_time_allowed():
    companion = Companion("emulation")
    there = companion.call(keep, "x", 1, seconds=60)  # later calls have no time to start
    start = time.monotonic()
    with pytest.raises(ChildDied, match=r"emulation: no answer after 1 s"):
        companion.call(time.sleep, 600, seconds=1)
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(there, 0)
