"""A worker process that answers calls: a vendor's native code runs in it, and a crash or hang there becomes one error here."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from snapgen_deploy.system.child import (
    ChildDied,
    cause,
    exclude_working_directory,
    exit_with_parent,
    ignoring_interrupts,
    record_peak_of_children,
)

START_SECONDS = 120.0  # added to the limit of the first call: the process starts and imports
IDLE_SECONDS = 120.0  # without any processor time: after that the process counts as hung
LOOK_SECONDS = 2.0  # between two checks
_LOG = "printed"  # in the companion's folder
_KEPT = 1 << 20  # bytes of the log's end that are read


class Companion:
    """`call(function, *args)` runs in one process that stays, with what earlier calls left in its modules.

    What the process prints goes to a file: `printed` shows it, and the message of a crash repeats its last line; lines that
    contain `chatter` are left out there. After a crash, a hang or `close` the companion cannot be used any more. It may be
    killed in the middle of its work, so it has a temporary folder of its own, which is removed with it.
    """

    def __init__(self, what: str, chatter: str | None = None) -> None:
        self.what, self._chatter = what, chatter
        folder = tempfile.TemporaryDirectory(prefix="companion-", ignore_cleanup_errors=True)
        self._log = Path(folder.name) / _LOG
        exclude_working_directory()
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, folder.name), name=what, daemon=True)
        with ignoring_interrupts():
            process.start()
        there.close()
        self._process, self._first = process, True
        self._end = weakref.finalize(self, _end, process, self._here, folder)

    def call(self, function: Callable[..., Any], *args: Any, seconds: float) -> Any:
        """The function's result; function (importable), arguments and result are pickled.

        An exception of the function is raised here, too.

        Raises:
            ChildDied: if the process ends, has not answered after `seconds`, or has used no processor time for IDLE_SECONDS.
        """
        if not self._end.alive:
            raise ChildDied(f"{self.what}: its process has already ended")
        allowed = seconds + (START_SECONDS if self._first else 0.0)
        self._first = False
        try:
            self._here.send((function, args))
            self._wait(allowed)
            ok, value = self._here.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise self._died() from None
        except BaseException:
            self.close()
            raise
        if not ok:
            raise value
        return value

    def _wait(self, allowed: float) -> None:
        """Block until there is an answer, or the process has ended."""
        start = moved = time.monotonic()
        spent = -1.0
        while not self._here.poll(min(LOOK_SECONDS, allowed, IDLE_SECONDS)):
            now, used = time.monotonic(), processor_seconds(self._process.pid)
            if used is None or used > spent:
                moved, spent = now, spent if used is None else used
            if now - start > allowed:
                raise ChildDied(f"{self.what}: no answer after {allowed:.0f} s; its process was ended")
            if now - moved > IDLE_SECONDS:
                raise ChildDied(f"{self.what}: its process has done nothing for {IDLE_SECONDS:g} s; it was ended")

    def _died(self) -> ChildDied:
        self._process.join(10)
        said = [line.strip() for line in self.printed().splitlines() if line.strip()]
        last = [line for line in said if self._chatter is None or self._chatter not in line][-1:]
        why = cause(self._process.exitcode)
        self.close()
        return ChildDied("; ".join([f"{self.what}: {why}", *last]))

    def printed(self) -> str:
        """The end of what the process has printed so far; nothing after `close`."""
        try:
            data = self._log.read_bytes()
        except OSError:
            return ""
        return data[-_KEPT:].decode("utf-8", errors="replace")

    def close(self) -> None:
        """End the process."""
        self._end()


def processor_seconds(pid: int | None) -> float | None:
    """Processor time of a process so far; None where the system does not report it (no /proc)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5), fields 14 and 15


def _end(process: BaseProcess, here: Connection, folder: tempfile.TemporaryDirectory[str]) -> None:
    record_peak_of_children()
    process.kill()
    process.join()
    here.close()
    folder.cleanup()


def _serve(there: Connection, folder: str) -> None:
    exit_with_parent(lambda: shutil.rmtree(folder, ignore_errors=True))
    sink = os.open(Path(folder) / _LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(sink, descriptor)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    while True:
        try:
            function, args = there.recv()
        except EOFError:  # the owner was killed: returning ends the thread that waits for that, too
            shutil.rmtree(folder, ignore_errors=True)
            return
        answer: tuple[bool, Any]
        try:
            answer = (True, function(*args))
        except Exception as error:
            answer = (False, error)
        try:
            there.send(answer)
        except Exception:  # what a runtime raises is not always picklable
            with contextlib.suppress(OSError):
                there.send((False, RuntimeError(str(answer[1]))))
