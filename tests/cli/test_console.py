"""What logs get, and what ends a run from outside."""

import errno
import signal
import subprocess
import sys
import time

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from snapgen_deploy.cli import _Group, console
from snapgen_deploy.cli.console import counting, progress, report_error
from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.job.staging import staging
from snapgen_deploy.system.child import ignoring_interrupts


def test_a_log_hears_of_long_work_and_not_of_short(capsys, monkeypatch):
    with progress()("short"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "LOG_INTERVAL", 0.02)
    monkeypatch.setattr(console, "LOG_FROM", 0.0)
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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_cancelled_run_cleans_up(number):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # under nohup it is ignored, and stays so
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
        process.send_signal(number)
        assert process.stdout.read() == "cleaned\n"
    assert process.returncode == 128 + number


def test_a_reader_that_has_read_enough_is_no_error():
    command = f"{sys.executable} -c 'from snapgen_deploy.cli import main; main()' devices --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


def in_bash(command):
    """`tool` in the command stands for ours."""
    tool = f"{sys.executable} -c 'from snapgen_deploy.cli import main; main()'"
    return subprocess.run(["bash", "-c", command.replace("tool", tool)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("tool devices --json >&-", 0, ""),
        ("tool devices --json >/dev/full", 2, "error: cannot write standard output (No space left on device)\n"),
        ("tool devices >/dev/full", 2, "error: cannot write standard output (No space left on device)\n"),
        ("PYTHONUNBUFFERED=1 tool --help >/dev/full", 2, "error: cannot write standard output (No space left on device)\n"),
        ("tool verify none --json >&-", 2, "error: none is not a bundle"),
        ("tool inspect none 2>/dev/full", 2, ""),
        ("cd $(mktemp -d); rmdir $PWD; tool devices", 2, "error: the working directory was removed"),
    ],
)
def test_streams_that_take_nothing_end_without_a_traceback(command, code, said):
    done = in_bash(command)
    assert (done.returncode, done.stderr.startswith(said)) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_narrow_encodings_and_no_width_lose_no_table():
    plain = in_bash("tool devices iphone16pm")
    assert plain.returncode == 0
    narrow = in_bash("PYTHONIOENCODING=ascii COLUMNS=0 tool devices iphone16pm")
    assert (narrow.returncode, narrow.stderr) == (0, "")
    assert len(narrow.stdout.splitlines()) == len(plain.stdout.splitlines())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("student\n::error::x", "student : :error::x"),
        ("::set-output name=a::b", ": :set-output name=a::b"),
        ("aten::add 8 -> 9", "aten::add 8 -> 9"),
        ("x ##[error]y", "x ## [error]y"),
        ("\x1b[31mred\u202e", "\\x1b[31mred\\u202e"),
        ("[/x] [bold]", "[/x] [bold]"),
    ],
)
def test_names_of_files_give_no_orders(name, shown):
    assert console.plain(name) == shown
    table = console.new_table(title=console.cell(name))
    table.add_column("a")
    table.add_row(console.cell(name))
    written = Console(width=200)
    with written.capture() as captured:
        written.print(table)
    assert captured.get().count(shown) == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
    ids=range(4),
)
def test_too_little_memory_is_one_line(error, capsys):
    assert report_error(error, traceback=False) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: too little memory")
    assert len(said) <= 300


def test_no_message_repeats_its_input(capsys, tmp_path):
    for error, where, longest in ((BadInput, tmp_path, 300 + len(str(tmp_path))), (BadInput, "a/b", 300), (Refused, "a", 4000)):
        report_error(error(f"{where}: {'x' * 20_000} the end"), traceback=False)
        said = capsys.readouterr().err
        assert len(said) <= len("error: \n") + longest
        assert said.startswith(f"error: {where}: x")
        assert said.endswith("the end\n")


def test_a_place_that_the_system_refuses_is_bad_input(capsys):
    error = PermissionError(errno.EACCES, "Permission denied", "/secret/model.onnx")
    assert report_error(error, traceback=False) == 2
    assert capsys.readouterr().err == "error: /secret/model.onnx: Permission denied\n"
    assert report_error(OSError(errno.EIO, "Input/output error"), traceback=False) == 70


def test_ctrl_c_says_what_it_stopped_and_what_is_left(tmp_path):
    """In one line, with the exit code of a process that SIGINT ended; folders that were made for nothing go."""
    place = tmp_path / "new" / "bundles" / "shapes-server"

    def stopped(finished):
        with staging(place, "key", overwrite=False, resume=False) as stage, progress()("onnx:cpu: exporting the decoder"):
            if finished:
                (stage.root / ".onnx-cpu-student.done").write_text('{"files": {}}')
            raise KeyboardInterrupt

    for finished in (False, True):
        app = typer.Typer(cls=_Group)
        app.callback()(lambda: None)
        app.command("export")(lambda finished=finished: stopped(finished))
        done = CliRunner().invoke(app, ["export"])
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (130, "", 1)
        assert done.stderr.startswith("interrupted: onnx:cpu: exporting the decoder; ")
        if not finished:
            assert "no component was finished, nothing is left" in done.stderr
            assert list(tmp_path.iterdir()) == []
    (kept,) = (path for path in place.parent.iterdir() if path.is_dir())
    assert f"1 finished component kept in {kept} for 24 hours: the same command with --resume continues" in done.stderr
    with staging(place, "key", overwrite=False, resume=True) as stage:
        assert stage.root == kept


def test_ctrl_c_of_a_terminal_is_not_for_children():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with ignoring_interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("verbose", [False, True])
def test_libraries_are_heard_with_v_alone(verbose):
    """Warnings whatever their filter, log lines, native output and child processes."""
    code = (
        "import logging, os, subprocess, sys, warnings\n"
        "from snapgen_deploy import cli\n"
        "from snapgen_deploy.cli.console import say, tell\n"
        "def noise(verbose: bool = cli.typer.Option(False, '--verbose', '-v')):\n"
        "    warnings.simplefilter('always')\n"
        "    warnings.warn('torchao')\n"
        "    logging.getLogger('pytree').error('deprecated')\n"
        "    for number in (1, 2):\n"
        "        os.write(number, b'native')\n"
        "        subprocess.run(['sh', '-c', f'echo child >&{number}'])\n"
        "    say('result')\n"
        "    tell('progress')\n"
        "cli.app.command('noise')(noise)\n"
        f"sys.argv = ['snapgen-deploy', 'noise', *{['-v'] * verbose}]\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if not verbose:
        assert (done.stdout, done.stderr) == ("result\n", "progress\n")
    else:
        assert all(word in done.stdout for word in ("native", "child", "result"))
        assert all(word in done.stderr for word in ("torchao", "deprecated", "native", "child", "progress"))
