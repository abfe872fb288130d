"""Times two bundles against each other: each round is a fresh process that loads both and calls them in random order.

The base is there twice: how it differs from itself in the same rounds tells what this machine can detect just now. If a runtime
cannot hold several models in one process, or memory is short, each has a process of its own: base, candidate and base again in
random order, then the same backwards.
"""

from __future__ import annotations

import math
import multiprocessing
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.export.registry import spec_of, specs
from snapgen_deploy.latency.environment import canary
from snapgen_deploy.latency.measure.session import Session, Times, open_session
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.quantiles import quantile

# Calls of each side per round. Many short rounds tell more in the same time than few long ones, where only medians are asked of
# calls that were interleaved.
PAIRS = 10
PAIRS_OF_MEDIANS = 4
_WARM_UPS = 1


@dataclass(frozen=True)
class Sides:
    """What is compared: two bundles with one target."""

    base: Path
    candidate: Path
    key: str
    threads: int
    pairs: int = PAIRS

    def paths(self) -> dict[str, Path]:
        """The bundle of each side of a round."""
        return {"base": self.base, "candidate": self.candidate, "again": self.base}


@dataclass(frozen=True)
class DuelRound:
    """One round. Its metrics are named `e2e_p50` and so on."""

    base: Mapping[str, float]  # ms, the geometric mean of both times of the base
    change: Mapping[str, float]  # log ratio of candidate and base
    bias: Mapping[str, float]  # log ratio of the base again and the base, which are the same
    canary_ms: tuple[float, float]  # before and after


T = TypeVar("T")
RoundOf = Callable[[Sides, int], DuelRound]
_HELD = 2.0  # bytes that a loaded model takes, by those of its files: runtimes keep weights in a form of their own beside them


def interleaved(sides: Sides, number: int) -> DuelRound:
    """Run one round in one fresh process."""
    return in_fresh_process("round", _interleave, sides, number)


def abba(sides: Sides, number: int) -> DuelRound:
    """Run one round in six fresh processes, of which the last three mirror the first: a steady drift favours no side."""
    paths = sides.paths()
    names = list(paths)
    random.Random(number).shuffle(names)
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name in names}
    before = canary()
    for name in (*names, *reversed(names)):
        found[name].append(in_fresh_process("round", _alone, paths[name], sides))
    return round_of({name: _mean(both) for name, both in found.items()}, {}, (before, canary()))


def mode_for(key: str, wanted: str, bytes_: int = 0, available: int | None = None) -> str:
    """`interleaved` or `abba`; for `auto` the first if the runtime allows several models in one process and memory suffices.

    Args:
        key: The target.
        wanted: `interleaved`, `abba` or `auto`.
        bytes_: Of the files of all models that an interleaved round loads.
        available: Bytes of memory that can be used; None if they are not known.
    """
    if wanted != "auto":
        return wanted
    fits = available is None or _HELD * bytes_ <= available
    return "interleaved" if spec_of(key).runtime.shared_process and fits else "abba"


def in_fresh_process(what: str, function: Callable[..., T], *args: Any) -> T:
    """Run in a process forked from one that has only imported what a round needs: no model, no thread, and quick to start."""
    preload = dict.fromkeys(module for spec in specs().values() for module in spec.runtime.preload)
    multiprocessing.set_forkserver_preload([__name__, *preload])
    return run_in_child(what, function, *args, method="forkserver")[0]


def _interleave(sides: Sides, number: int) -> DuelRound:
    """Runs in a child process. The order of loading, and that within each pair, is random, so that it favours no side."""
    draw, paths = random.Random(number), sides.paths()
    names = list(paths)
    draw.shuffle(names)
    sessions = {name: open_session(open_bundle(paths[name]), sides.key, sides.threads) for name in names}
    for name in names * _WARM_UPS:
        sessions[name].query()
    times: dict[str, Times] = {name: {} for name in names}
    before = canary()
    for _ in range(sides.pairs):
        draw.shuffle(names)
        for name in names:
            _add(times[name], sessions[name].query())
    after = canary()
    return round_of({name: statistics_of(times[name], sessions[name]) for name in names}, times, (before, after))


def _alone(path: Path, sides: Sides) -> dict[str, float]:
    session, times = open_session(open_bundle(path), sides.key, sides.threads), Times()
    for _ in range(_WARM_UPS):
        session.query()
    for _ in range(max(2, sides.pairs // 2)):
        _add(times, session.query())
    return statistics_of(times, session)


def _add(times: Times, query: Times) -> None:
    for name, values in query.items():
        times.setdefault(name, []).extend(values)


def statistics_of(times: Times, session: Session) -> dict[str, float]:
    """Median and 90th percentile of each timing in a round; the load time stands for both."""
    found = {"load_p50": session.load_ms, "load_p90": session.load_ms}
    for name, values in times.items():
        found[f"{name}_p50"] = statistics.median(values)
        found[f"{name}_p90"] = quantile(values, 0.9)
    return found


def round_of(found: Mapping[str, Mapping[str, float]], times: Mapping[str, Times], canary_ms: tuple[float, float]) -> DuelRound:
    """A round from each side's statistics (ms) and, if its calls were interleaved, the times of single calls.

    Calls that followed each other saw the same machine. So the change of a median is the median of the calls' own changes,
    which has half the variance or less; of other statistics it is their ratio.
    """
    base, again, candidate = (found[side] for side in ("base", "again", "candidate"))
    change, bias = {}, {}
    for metric in base.keys() & candidate.keys():
        name, _, statistic = metric.rpartition("_")
        calls = [times.get(side, {}).get(name, []) for side in ("base", "again", "candidate")]
        paired = statistic == "p50" and len(calls[0]) > 0 and len({len(c) for c in calls}) == 1
        b, a, c = np.log(calls if paired else [[side[metric]] for side in (base, again, candidate)])
        # not c against the mean of b and a: single calls are skewed towards slow ones, and a mean of two has another median
        change[metric] = float(np.median(c - b) + np.median(c - a)) / 2
        bias[metric] = float(np.median(a - b))
    return DuelRound({m: math.sqrt(base[m] * again[m]) for m in base}, change, bias, canary_ms)


def _mean(rounds: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(r[name] for r in rounds) for name in rounds[0]}
