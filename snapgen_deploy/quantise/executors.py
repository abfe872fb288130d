"""Where independent tasks run: here, in processes of this computer, or on a Dask cluster. The results are the same.

An executor maps an importable function over tasks and yields the results in the order of the tasks. Every task computes with
one thread, so that sums are taken in one order everywhere.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from snapgen_deploy.errors import BadInput, SnapgenError
from snapgen_deploy.system.child import exclude_working_directory, exit_with_parent, record_peak_of_children
from snapgen_deploy.system.quiet import first_line

T = TypeVar("T")
R = TypeVar("R")
CONNECTING = 10.0  # seconds until a cluster that does not answer counts as absent
AHEAD = 1  # tasks per worker that are submitted in advance: matrices of large layers must not all wait in memory
WORKERS_START = "spawn"  # multiprocessing's start method of workers: each has its threads and its memory to itself
_FORMS = "here, processes:N or dask://host:port"


class WorkerLost(SnapgenError):
    """A worker process or the cluster was lost while it had tasks."""

    exit_code = 1


class Executor(Protocol):
    """Maps a function over tasks; results come in the order of the tasks."""

    @property
    def handed_out(self) -> int:
        """How many tasks may be submitted at once, whose arguments are in this computer's memory."""
        ...

    @property
    def workers(self) -> int:
        """Number of worker processes on this computer."""
        ...

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """One result per task; an exception of the function is raised here, too."""
        ...

    def check(self) -> None:
        """Check that a task can be run, before work begins.

        Raises:
            BadInput: if no worker can be reached.
        """
        ...


class Here:
    """One task after the other in this process."""

    handed_out = 0
    workers = 0

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """As `Executor.map`."""
        for task in tasks:
            yield _one_thread(function, task)

    def check(self) -> None:
        """As `Executor.check`; a no-op."""


class Processes:
    """A pool of fresh processes of this computer."""

    def __init__(self, count: int) -> None:
        self.count = count

    @property
    def handed_out(self) -> int:
        """As `Executor.handed_out`."""
        return AHEAD * self.count + 1

    @property
    def workers(self) -> int:
        """As `Executor.workers`."""
        return self.count

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """As `Executor.map`.

        Raises:
            WorkerLost: if a process dies.
        """
        exclude_working_directory()
        context = multiprocessing.get_context(WORKERS_START)
        with ProcessPoolExecutor(self.count, context, initializer=exit_with_parent) as pool:
            try:
                yield from _in_order(lambda task: pool.submit(_one_thread, function, task), tasks, AHEAD * self.count)
                record_peak_of_children()
            except BrokenProcessPool:
                raise WorkerLost(f"one of {self.count} processes died; the usual cause is too little memory") from None

    def check(self) -> None:
        """As `Executor.check`; a no-op."""


class Cluster:
    """A Dask cluster whose workers have this package installed."""

    handed_out = AHEAD * 8 + 1  # assumes eight workers; their number is known only once the cluster is connected
    workers = 0

    def __init__(self, address: str) -> None:
        self.address = address

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """As `Executor.map`.

        Raises:
            BadInput: if the cluster does not answer or has no workers.
            WorkerLost: if it disappears while it has tasks.
        """
        with _client(self.address) as client:
            ahead = AHEAD * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
            from distributed import KilledWorker
            from distributed.client import FutureCancelledError

            def submit(task: T) -> Any:
                with warnings.catch_warnings():
                    # large on purpose: a task carries its matrices, so that it can be given to another worker when one dies
                    warnings.filterwarnings("ignore", message="Sending large graph")
                    # not `pure`: its name would be a hash of the matrices, which takes longer than some tasks
                    return client.submit(_one_thread, function, task, pure=False)

            try:
                yield from _in_order(submit, tasks, ahead)
            except (KilledWorker, FutureCancelledError, OSError) as error:
                raise WorkerLost(f"the cluster at {self.address} lost its workers ({type(error).__name__})") from None

    def check(self) -> None:
        """As `Executor.check`: the scheduler must answer and have workers."""
        with _client(self.address):
            pass


def executor_of(text: str) -> Executor:
    """The executor of `here`, `processes:N` or `dask://host:port`. A cluster is connected when it is used.

    >>> executor_of("processes:4").workers
    4

    Raises:
        BadInput: if the text has another form.
    """
    kind, _, rest = text.partition(":")
    if text == "here":
        return Here()
    if kind == "processes" and rest.isdecimal() and len(rest) < 5 and int(rest) > 0:
        return Processes(int(rest))
    host, _, port = rest.removeprefix("//").rpartition(":")
    if kind == "dask" and rest.startswith("//") and host and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536:
        return Cluster(f"tcp://{host}:{port}")
    raise BadInput(f"--executor: got '{text}', expected {_FORMS}")


def _in_order(submit: Callable[[T], Any], tasks: Iterable[T], ahead: int) -> Iterator[Any]:
    """Submit tasks, at most `ahead` of them beyond the one whose result is awaited."""
    waiting: deque[Any] = deque()
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError:
        raise BadInput("--executor dask://...: Dask is not installed; pip install 'snapgen-deploy[cluster]'") from None
    try:
        client = Client(address, timeout=CONNECTING, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise BadInput(f"--executor: no Dask scheduler answers at {address} ({reason}); start one or use processes:N") from None
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise BadInput(f"--executor: the Dask cluster at {address} has no workers; start some, then run again")
        yield client


def _one_thread(function: Callable[[T], R], task: T) -> R:
    """Call with one torch thread, then restore this process's number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(task)
    finally:
        torch.set_num_threads(before)
