"""Runs one function in a fresh process: its memory is returned when it ends, and its crash is one line, not ours."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from snapgen_deploy.errors import SnapgenError

T = TypeVar("T")
_NOTED: list[int] = []  # by `note_children`, since a process that has ended no longer tells


class ChildDied(SnapgenError):
    """The process ended without a result (killed, crashed in native code)."""

    exit_code = 1


def run_in_child(
    what: str, function: Callable[..., T], *args: Any, tell: Callable[..., None] | None = None, method: str = "spawn"
) -> tuple[T, int]:
    """Call `function(*args)` in a fresh process; return its result and the process's peak resident bytes.

    `what` names the work in messages, `method` is multiprocessing's start method. `function` must be importable, arguments
    and result picklable. With `tell` the function gets an argument of that name, and what it tells there is told here. An
    exception is raised here as it was there; a death by signal raises ChildDied and says whether too little memory is the
    likely cause.
    """
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    telling = tell is not None
    process = context.Process(target=_call, args=(sender, function, args, telling), name=what)  # type: ignore[attr-defined]
    process.start()
    sender.close()
    try:
        try:
            while len(message := receiver.recv()) == 1:  # told on the way
                if tell is not None:
                    tell(*message[0])
            ok, value, peak = message
        except EOFError:
            process.join()
            raise ChildDied(f"{what}: {cause(process.exitcode)}") from None
        process.join()
    except BaseException:
        process.kill()
        process.join()
        raise
    finally:
        receiver.close()
    if not ok:
        raise value
    return value, peak


def end_with_owner() -> None:
    """Have this process end when the one that started it does: one that was killed cannot end it, and work may take hours."""

    def wait(owner: BaseProcess) -> None:
        owner.join()
        os._exit(1)

    if (owner := multiprocessing.parent_process()) is not None:
        threading.Thread(target=wait, args=(owner,), daemon=True).start()


def _call(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...], telling: bool) -> None:
    end_with_owner()
    more = {"tell": lambda *told: sender.send((told,))} if telling else {}
    try:
        message: tuple[bool, Any, int] = (True, function(*args, **more), peak_bytes())
    except Exception as error:
        error.add_note(traceback.format_exc())
        message = (False, error, peak_bytes())
    try:
        sender.send(message)
    except (pickle.PicklingError, TypeError, AttributeError):
        sender.send((False, RuntimeError(f"{type(message[1]).__name__}: {message[1]}"), peak_bytes()))


def peak_bytes() -> int:
    """Peak resident memory so far, in bytes: of this process, and the most that its noted children took together."""
    own = _peak_of("self")
    if own:  # where there is no /proc, getrusage, which on Linux would count the parent's peak too: fork and exec hand it on
        return own + max(_NOTED, default=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def note_children() -> None:
    """Count the children that live now, each at its own peak, into `peak_bytes`; for an owner that is about to end one."""
    _NOTED.append(sum(_peak_of(c.pid) for c in multiprocessing.active_children()))


def _peak_of(pid: int | str | None) -> int:
    """Of one process, from proc(5); 0 for one that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def cause(code: int | None) -> str:
    """Why a process ended, from its exit code."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the usual cause is too little memory" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return f"the process ended with status {code} and no result"
