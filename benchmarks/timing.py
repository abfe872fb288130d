"""Timing of contestants in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


def in_turn(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Milliseconds of every call; each round calls all in turn.

    An untimed call precedes each timed one, since the previous contestant's threads spin for a while and would take a
    processor.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, found in zip(runs, times, strict=True):
            run()
            start = time.perf_counter_ns()
            run()
            found.append((time.perf_counter_ns() - start) / 1e6)
    return times
