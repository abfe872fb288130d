"""Runs one function in a child process: its memory is freed when it ends, and its crash becomes one error here.

On Linux the child is forked from a server that has imported what all children need (`preload`) and done nothing else: it
starts in milliseconds instead of seconds, and shares the pages of the imports. Elsewhere it is a fresh interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from snapgen_deploy.errors import SnapgenError

T = TypeVar("T")
STOP: ContextVar[threading.Event | None] = ContextVar("stop", default=None)  # once set, this thread's child is ended
_STOP_SECONDS = 0.2  # between two looks at it
_PEAKS_OF_CHILDREN: list[int] = []  # by `record_peak_of_children`, since the peak of a process cannot be read after its end


class Stopped(Exception):
    """The work was ended, or not begun, because other work has failed or the user stopped all."""


class ChildDied(SnapgenError):
    """The process ended without a result (killed, crashed in native code)."""

    exit_code = 1


def exclude_working_directory() -> None:
    """Have Python processes that this one starts look for no module in the working directory, as `python -c` does.

    multiprocessing starts its own that way: a `pickle.py` beside the user's files would run in every child.
    """
    os.environ["PYTHONSAFEPATH"] = "1"


def start_method() -> str:
    """multiprocessing's start method for a child: `forkserver` on Linux; Apple's frameworks do not survive a fork."""
    return "forkserver" if sys.platform == "linux" else "spawn"


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C, which a terminal sends to all of them: their parent ends them.

    Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_server() -> None:
    with ignoring_interrupts():
        forkserver.ensure_running()


def preload(modules: Sequence[str]) -> None:
    """Start the server that children are forked from; it imports `modules` while this process goes on.

    Only the first call counts, before the first child. An import must start no work in threads, and print nothing. Does
    nothing where children are not forked.
    """
    if start_method() == "forkserver":
        exclude_working_directory()
        multiprocessing.set_forkserver_preload(list(modules))
        with contextlib.suppress(OSError):  # `_context` falls back to spawn
            _start_server()


def _context(method: str) -> BaseContext:
    """multiprocessing's context of a start method, or of the usual one; `spawn` where there can be no server.

    Its socket lies in the folder of temporary files, whose name may be too long for a socket's.
    """
    if not method and (method := start_method()) == "forkserver":
        try:
            _start_server()
        except OSError:
            method = "spawn"
    return multiprocessing.get_context(method)


def run_in_child(
    what: str, function: Callable[..., T], *args: Any, on_progress: Callable[..., None] | None = None, method: str = ""
) -> tuple[T, int]:
    """Call `function(*args)` in a new process; return its result and the process's peak resident bytes.

    `what` names the work in messages; `method` is multiprocessing's start method, `start_method()` unless given. `function`
    must be importable, arguments and result picklable. With `on_progress` the function gets an argument of that name; its calls
    in the child are repeated here with the same arguments. An exception of the function is raised here, too.

    Raises:
        ChildDied: if the process ends without a result; the message says whether too little memory is the likely cause.
        Stopped: if the event of `STOP` was set; the process is ended then.
    """
    exclude_working_directory()
    context = _context(method)
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, dict(os.environ), function, args, on_progress is not None)
    process = context.Process(target=_call, args=arguments, name=what)  # type: ignore[attr-defined]
    with ignoring_interrupts():
        process.start()
    sender.close()
    try:
        try:
            while len(message := _received(receiver)) == 1:  # a call of `on_progress`
                if on_progress is not None:
                    on_progress(*message[0])
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


def _received(receiver: Connection) -> tuple[Any, ...]:
    """The child's next message."""
    stop = STOP.get()
    while stop is not None and not receiver.poll(_STOP_SECONDS):
        if stop.is_set():
            raise Stopped
    message: tuple[Any, ...] = receiver.recv()
    return message


def exit_with_parent(first: Callable[[], object] = lambda: None) -> None:
    """Call `first` and exit when the parent process has ended: work may take hours, and a killed parent cannot stop it."""

    def wait(parent: BaseProcess) -> None:
        parent.join()
        try:
            first()
        finally:
            os._exit(1)

    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=wait, args=(parent,), daemon=True).start()


def replace_environment(variables: Mapping[str, str]) -> None:
    """Replace this process's environment by its parent's: a fork server's child has that of the server's start."""
    if dict(os.environ) != variables:
        os.environ.clear()
        os.environ.update(variables)
        tempfile.tempdir = None  # looked up again on the next use


def _keep_operators() -> None:
    """torch unregisters its operators at exit, 50 ms of a process that ends anyway."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # there is no public way to list them
        if (alive := finalizer.peek()) and alive[1].__module__ == "torch.library":
            finalizer.atexit = False


def _call(
    sender: Connection, environment: Mapping[str, str], function: Callable[..., Any], args: tuple[Any, ...], reports: bool
) -> None:
    replace_environment(environment)
    exit_with_parent()
    more = {"on_progress": lambda *done: sender.send((done,))} if reports else {}
    try:
        message: tuple[bool, Any, int] = (True, function(*args, **more), peak_bytes())
    except Exception as error:
        error.add_note(traceback.format_exc())
        message = (False, error, peak_bytes())
    try:
        sender.send(message)
    except (pickle.PicklingError, TypeError, AttributeError):
        sender.send((False, RuntimeError(f"{type(message[1]).__name__}: {message[1]}"), peak_bytes()))
    _keep_operators()
    atexit._run_exitfuncs()  # a forked process ends without, and libraries remove their temporary files there


def peak_bytes() -> int:
    """Peak resident memory so far, in bytes: of this process, plus the most that its recorded children took together."""
    own = _peak_of("self")
    if own:  # without /proc: getrusage, which on Linux would include the parent's peak, since fork and exec inherit it
        return own + max(_PEAKS_OF_CHILDREN, default=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def record_peak_of_children() -> None:
    """Add the children that are alive now, each at its own peak, to `peak_bytes`; call it before one is ended."""
    _PEAKS_OF_CHILDREN.append(sum(_peak_of(c.pid) for c in multiprocessing.active_children()))


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
