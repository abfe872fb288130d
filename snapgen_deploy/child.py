"""Runs one function in a fresh process: its memory is returned when it ends, and its crash is one line, not ours."""

from __future__ import annotations

import multiprocessing
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from snapgen_deploy.errors import SnapgenError

T = TypeVar("T")


class ChildDied(SnapgenError):
    """The process ended without a result (killed, crashed in native code)."""

    exit_code = 1


def run_in_child(what: str, function: Callable[..., T], *args: Any, method: str = "spawn") -> tuple[T, int]:
    """Call `function(*args)` in a fresh process; return its result and the process's peak resident bytes.

    `what` names the work in messages, `method` is multiprocessing's start method. `function` must be importable, arguments
    and result picklable. An exception is raised here as it was there; a death by signal raises ChildDied and says whether
    memory is the likely cause.
    """
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args), name=what)  # type: ignore[attr-defined]
    process.start()
    sender.close()
    try:
        try:
            ok, value, peak = receiver.recv()
        except EOFError:
            process.join()
            raise ChildDied(f"{what}: {cause_of_death(process.exitcode)}") from None
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


def _call(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        message: tuple[bool, Any, int] = (True, function(*args), peak_bytes())
    except Exception as error:
        error.add_note(traceback.format_exc())
        message = (False, error, peak_bytes())
    try:
        sender.send(message)
    except (pickle.PicklingError, TypeError, AttributeError):
        sender.send((False, RuntimeError(f"{type(message[1]).__name__}: {message[1]}"), peak_bytes()))


def peak_bytes() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's peak too: Linux hands it on through fork and exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def cause_of_death(code: int | None) -> str:
    """What an exit status without a result says, for people."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the usual cause is too little memory" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return f"the process ended with status {code} and no result"
