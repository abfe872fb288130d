"""Work side by side: who is admitted when, and what a failure or Ctrl-C leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.child import Stopped, run_in_child
from snapgen_deploy.system.side_by_side import SIDE_BY_SIDE, Room, room_for, run_all


def work(room: Room, sizes: dict[str, int]) -> tuple[list[str], int, int]:
    """The order in which pieces began, the most that ran at a time, and the most memory that they took together."""
    order, running, most, largest, lock = [], {}, 0, 0, threading.Lock()

    def piece(name: str, size: int) -> None:
        nonlocal most, largest
        with room.taken(name, size):
            with lock:
                order.append(name)
                running[name] = size
                most, largest = max(most, len(running)), max(largest, sum(running.values()))
            time.sleep(0.03)
            with lock:
                del running[name]

    run_all(room, [partial(piece, name, size) for name, size in sizes.items()])
    return order, most, largest


def test_as_many_at_a_time_as_there_are_places_and_memory() -> None:
    order, most, largest = work(Room(3, 100), dict.fromkeys("abcdefgh", 10))
    assert (sorted(order), most, largest) == (list("abcdefgh"), 3, 30)
    order, most, largest = work(Room(3, 25), dict.fromkeys("abcdefgh", 10))
    assert (sorted(order), most, largest) == (list("abcdefgh"), 2, 20)


def test_a_piece_that_never_fits_runs_alone_and_holds_up_no_one_for_good() -> None:
    order, _, largest = work(Room(2, 25), {"small": 10, "huge": 90, "other": 10})
    assert sorted(order) == ["huge", "other", "small"]
    assert largest == 90  # nothing ran beside it


def test_the_largest_that_waits_goes_first() -> None:
    room, order, go = Room(1, 100), [], threading.Event()

    def piece(name: str, size: int) -> None:
        with room.taken(name, size):
            order.append(name)

    with room.taken("first", 1):
        threads = [threading.Thread(target=piece, args=(name, size)) for name, size in (("b", 2), ("d", 4), ("c", 3))]
        for thread in threads:
            thread.start()
        while len(room._waiting) < 3:
            go.wait(0.001)
    for thread in threads:
        thread.join()
    assert order == ["d", "c", "b"]


def test_results_come_in_order_and_one_place_needs_no_thread() -> None:
    here = threading.get_ident()
    assert run_all(Room(1, 1), [threading.get_ident] * 3) == [here] * 3
    pieces: list[Callable[[], int]] = [lambda: (time.sleep(0.02), 1)[1], lambda: 2]
    assert run_all(Room(2, 1), pieces) == [1, 2]


def test_the_first_failure_ends_the_processes_of_all_others_and_is_the_one_that_is_raised() -> None:
    room, began = Room(3, 100), threading.Event()

    def long(name: str) -> None:
        with room.taken(name, 1):
            began.set()
            run_in_child(name, time.sleep, 600)

    def fails() -> None:
        began.wait()
        raise BadInput("no such file")

    def inner() -> None:
        run_all(room, [partial(long, "one"), fails])

    start = time.monotonic()
    with pytest.raises(BadInput, match="no such file"):
        run_all(room, [partial(long, "two"), inner, partial(long, "three")])
    assert time.monotonic() - start < 60
    with pytest.raises(Stopped), room.taken("later", 1):
        pass


def test_ctrl_c_names_what_was_running() -> None:
    room = Room(2, 100)

    def stopped() -> None:
        with room.taken("exporting the student", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run_all(room, [stopped, lambda: None])
    assert not hasattr(caught.value, "__notes__")  # it was over already

    def waits() -> None:
        with room.taken("exporting the decoder", 1):
            time.sleep(0.2)

    room = Room(2, 100)
    thread = threading.Thread(target=waits)
    thread.start()
    while not room._running:
        time.sleep(0.001)
    assert room.stop(KeyboardInterrupt()).__notes__ == ["exporting the decoder"]
    thread.join()


def test_small_pieces_share_what_one_may_take_and_a_large_one_has_it_alone() -> None:
    small, large = room_for([10, 20], 2), room_for([3 * SIDE_BY_SIDE, SIDE_BY_SIDE], 2)
    assert (small.most_bytes, small.holds([10, 20]), small.holds([SIDE_BY_SIDE, 1])) == (SIDE_BY_SIDE, True, False)
    assert (large.most_bytes, large.holds([3 * SIDE_BY_SIDE, SIDE_BY_SIDE])) == (3 * SIDE_BY_SIDE, False)
