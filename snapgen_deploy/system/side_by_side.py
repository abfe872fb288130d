"""Pieces of work side by side, each in a child process, as many as processors and memory allow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

from snapgen_deploy.system.child import STOP, Stopped

T = TypeVar("T")
SIDE_BY_SIDE = 2_000_000_000  # bytes that pieces side by side may take, however small each is


class Room:
    """Admits pieces of work while there are places and memory for them; whoever takes the most memory goes first.

    A piece that alone takes more than all the memory is admitted when nothing else runs.

    Args:
        places: How many pieces may run at a time.
        most_bytes: How much memory they may take together, by prediction.
    """

    def __init__(self, places: int, most_bytes: int) -> None:
        self.places, self.most_bytes = places, most_bytes
        self._changed = threading.Condition()
        self._running: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self.alone = threading.Lock()  # for what several pieces need and one of them makes

    def holds(self, sizes: Iterable[int]) -> bool:
        """Whether pieces of `sizes` bytes fit all at a time, places aside."""
        return sum(sizes) <= self.most_bytes

    @contextmanager
    def taken(self, what: str, size: int) -> Iterator[None]:
        """A place for one piece of work of `size` bytes.

        Raises:
            Stopped: if the work was stopped before there was one.
        """
        with self._changed:
            self._waiting[what] = size
            try:
                self._changed.wait_for(lambda: self._stop.is_set() or self._admits(what, size))
            finally:
                del self._waiting[what]
            if self._stop.is_set():
                raise Stopped(what)
            self._running[what] = size
            self._changed.notify_all()  # the next may fit beside it
        before = STOP.set(self._stop)
        try:
            yield
        finally:
            STOP.reset(before)
            with self._changed:
                del self._running[what]
                self._changed.notify_all()

    def _admits(self, what: str, size: int) -> bool:
        if what != max(self._waiting, key=lambda name: self._waiting[name]):
            return False
        fits = len(self._running) < self.places and sum(self._running.values()) + size <= self.most_bytes
        return fits or not self._running

    def stop(self, cause: BaseException) -> BaseException:
        """Admit nothing more, and have `run_in_child` end the processes of all pieces.

        Returns:
            The first cause, of which all others follow.
        """
        with self._changed:
            if self._failure is None:
                self._failure = cause
                if isinstance(cause, KeyboardInterrupt) and self._running:
                    cause.add_note(next(iter(self._running)))
            self._stop.set()
            self._changed.notify_all()
            return self._failure


def room_for(sizes: Sequence[int], places: int) -> Room:
    """For pieces of `sizes` bytes: side by side they take no more than the largest one alone, or than `SIDE_BY_SIDE`."""
    return Room(places, max(*sizes, SIDE_BY_SIDE))


def run_all(room: Room, pieces: Sequence[Callable[[], T]]) -> list[T]:
    """Call all functions, in threads if the room has several places; returns their results in order.

    The first failure ends all others and is raised, and so does Ctrl-C, whose notes name what was running.
    """
    if room.places == 1 or len(pieces) == 1:
        return [piece() for piece in pieces]
    with ThreadPoolExecutor(len(pieces)) as pool:
        futures = [pool.submit(piece) for piece in pieces]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException as error:
            cause = room.stop(error)
            raise cause from cause.__cause__
    return [future.result() for future in futures]
