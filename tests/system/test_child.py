import atexit
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.child import ChildDied, run_in_child, start_method
from snapgen_deploy.system.files import temporary_files_in
from tests.owners import outlives_its_owner


def allocate(count):
    return len(bytearray(count))


def refuse():
    raise BadInput("got this, expected that")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(7)


def unpicklable():
    return lambda: None


METHODS = ("spawn", start_method())


@pytest.mark.parametrize("method", METHODS)
def test_result_and_peak_memory_come_back(method):
    small, low = run_in_child("small", allocate, 1, method=method)
    big, high = run_in_child("big", allocate, 300_000_000, method=method)
    assert (small, big) == (1, 300_000_000)
    assert high - low > 250_000_000


def reports(count, on_progress):
    for i in range(count):
        on_progress(i + 1, count)
    return "done"


def test_what_is_told_on_the_way_is_heard():
    heard = []
    assert run_in_child("reporting", reports, 3, on_progress=lambda *done: heard.append(done))[0] == "done"
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_it_ends_with_an_owner_that_is_killed(tmp_path):
    script = (
        "import os, time\n"
        "from snapgen_deploy.system.child import run_in_child\n"
        "def work(on_progress):\n"
        "    on_progress(os.getpid())\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    run_in_child('work', work, on_progress=lambda process: print(process, flush=True))\n"
    )
    assert not outlives_its_owner(script, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_an_error_keeps_its_type_and_line(method):
    with pytest.raises(BadInput, match="got this, expected that"):
        run_in_child("refusing", refuse, method=method)


def sees(name):
    return os.environ.get(name), tempfile.gettempdir()


def test_a_child_sees_the_environment_of_now(monkeypatch, tmp_path):
    assert run_in_child("before", sees, "OF_THIS_TEST")[0][0] is None  # the server runs from here on
    monkeypatch.setenv("OF_THIS_TEST", "x")
    with temporary_files_in(tmp_path):
        assert run_in_child("with", sees, "OF_THIS_TEST")[0] == ("x", str(tmp_path))
    monkeypatch.delenv("OF_THIS_TEST")
    assert run_in_child("after", sees, "OF_THIS_TEST")[0] == (None, tempfile.gettempdir())


def leaves_for_the_end(path):
    atexit.register(path.unlink)
    path.write_text("temporary")


def test_what_libraries_do_at_exit_is_done(tmp_path):
    run_in_child("cleaning", leaves_for_the_end, tmp_path / "file")
    deadline = time.monotonic() + 30
    while (tmp_path / "file").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("depth", [1, 60])
def test_a_folder_whose_name_is_too_long_for_a_socket(tmp_path, depth):
    folder = tmp_path.joinpath(*["x"] * depth)
    folder.mkdir(parents=True)
    script = (
        "import os\n"
        "from snapgen_deploy.system.child import run_in_child\n"
        "if __name__ == '__main__':\n"
        "    print(run_in_child('work', os.getppid)[0] == os.getpid())\n"
    )
    (tmp_path / "main.py").write_text(script)
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "main.py")], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(start_method() == "spawn" or len(str(folder)) > 90)
    assert list(folder.iterdir()) == []


def test_a_kill_is_one_line_that_names_the_work_and_the_likely_cause():
    with pytest.raises(ChildDied, match=r"coreml student: .*SIGKILL.*memory"):
        run_in_child("coreml student", die)


def test_a_silent_exit_is_an_error():
    with pytest.raises(ChildDied, match="status 7 and no result"):
        run_in_child("leaving", leave)


def test_a_result_that_cannot_travel_is_an_error_and_no_hang():
    start = time.monotonic()
    with pytest.raises(RuntimeError):
        run_in_child("lambda", unpicklable)
    assert time.monotonic() - start < 60
