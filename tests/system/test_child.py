import os
import signal
import time

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.child import ChildDied, run_in_child
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


def test_result_and_peak_memory_come_back():
    small, low = run_in_child("small", allocate, 1)
    big, high = run_in_child("big", allocate, 300_000_000)
    assert (small, big) == (1, 300_000_000)
    assert high - low > 250_000_000


def tells(count, tell):
    for i in range(count):
        tell(i + 1, count)
    return "done"


def test_what_is_told_on_the_way_is_heard():
    heard = []
    assert run_in_child("telling", tells, 3, tell=lambda *told: heard.append(told))[0] == "done"
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_it_ends_with_an_owner_that_is_killed(tmp_path):
    script = (
        "import os, time\n"
        "from snapgen_deploy.system.child import run_in_child\n"
        "def work(tell):\n"
        "    tell(os.getpid())\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    run_in_child('work', work, tell=lambda process: print(process, flush=True))\n"
    )
    assert not outlives_its_owner(script, tmp_path)


def test_an_error_keeps_its_type_and_line():
    with pytest.raises(BadInput, match="got this, expected that"):
        run_in_child("refusing", refuse)


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
