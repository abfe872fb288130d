"""Two bundles against each other: rounds in fresh processes, both loaded in each, calls in random order.

Where a runtime cannot hold two models in a process, or their versions differ, a round is four processes, A B B A.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.export.registry import spec_of, specs
from snapgen_deploy.latency.environment import canary
from snapgen_deploy.latency.measure.session import Session, Times, open_session
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.quantiles import quantile

PAIRS = 10  # calls of each side in a round
_WARM_UPS = 2


@dataclass(frozen=True)
class Sides:
    """What is compared: two bundles, one target."""

    base: Path
    candidate: Path
    key: str
    threads: int
    pairs: int = PAIRS


@dataclass(frozen=True)
class DuelRound:
    """One round: statistics per metric (`e2e_p50`, ...) for base and candidate, ms, and the canaries around it."""

    base: Mapping[str, float]
    candidate: Mapping[str, float]
    canary_ms: tuple[float, float]


T = TypeVar("T")
RoundOf = Callable[[Sides, int], DuelRound]


def interleaved(sides: Sides, number: int) -> DuelRound:
    """One round in one fresh process."""
    return _fresh("round", _interleave, sides, number)


def abba(sides: Sides, number: int) -> DuelRound:
    """One round in four fresh processes: base, candidate, candidate, base; the order is mirrored every second round."""
    first, second = ("base", "candidate") if number % 2 == 0 else ("candidate", "base")
    paths = {"base": sides.base, "candidate": sides.candidate}
    times: dict[str, list[Mapping[str, float]]] = {}
    canaries = [canary()]
    for name in (first, second, second, first):
        times.setdefault(name, []).append(_fresh("round", _alone, paths[name], sides))
    canaries.append(canary())
    base, candidate = (_mean(times[name]) for name in ("base", "candidate"))
    return DuelRound(base, candidate, (canaries[0], canaries[1]))


def mode_for(key: str, wanted: str) -> str:
    """`interleaved` or `abba`; `auto` takes the first where the runtime allows it."""
    return wanted if wanted != "auto" else "interleaved" if spec_of(key).runtime.shared_process else "abba"


def _fresh(what: str, function: Callable[..., T], *args: Any) -> T:
    """In a process forked from one that has only imported what a round needs: no model, no thread, but quick to start."""
    preload = dict.fromkeys(module for spec in specs().values() for module in spec.runtime.preload)
    multiprocessing.set_forkserver_preload([__name__, *preload])
    return run_in_child(what, function, *args, method="forkserver")[0]


def _interleave(sides: Sides, number: int) -> DuelRound:
    """In a child. Who is loaded first, and the order within each pair, are random: no side has a standing advantage."""
    draw = random.Random(number)
    names = ["base", "candidate"]
    paths = {"base": sides.base, "candidate": sides.candidate}
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
    base, candidate = (statistics_of(times[name], sessions[name]) for name in ("base", "candidate"))
    return DuelRound(base, candidate, (before, after))


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
    """Median and 90th percentile of each timing in a round, and the load time under both names."""
    found = {"load_p50": session.load_ms, "load_p90": session.load_ms}
    for name, values in times.items():
        found[f"{name}_p50"] = statistics.median(values)
        found[f"{name}_p90"] = quantile(values, 0.9)
    return found


def _mean(rounds: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(r[name] for r in rounds) for name in rounds[0]}
