"""What logs get, and what ends a run from outside."""

import signal
import subprocess
import sys
import time

import pytest

from snapgen_deploy.cli import console
from snapgen_deploy.cli.console import counting, progress


def test_a_log_hears_of_long_work_and_not_of_short(capsys, monkeypatch):
    with progress()("short"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "EVERY", 0.02)
    monkeypatch.setattr(console, "WORTH_A_LINE", 0.0)
    with progress()("pictures[/]") as told:
        told(3, 7)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert lines[-1].startswith("pictures[/]: 3 of 7, 0 s")
    with counting()() as tell:
        tell("tuning", 5, 9)
    assert "mixed precision: tuning: 5 of 9" in capsys.readouterr().err
    with progress(quiet=True)("silent"), counting(quiet=True)():
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_cancelled_run_cleans_up():
    code = (
        "import sys, time\n"
        "from snapgen_deploy import cli\n"
        "def wait():\n"
        "    try:\n"
        "        print('waiting', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
        "cli.app.command('wait')(wait)\n"
        "sys.argv = ['snapgen-deploy', 'wait']\n"
        "cli.main()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "cleaned\n"
    assert process.returncode == 128 + signal.SIGTERM


def test_a_reader_that_has_read_enough_is_no_error():
    command = f"{sys.executable} -c 'from snapgen_deploy.cli import main; main()' devices --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")
