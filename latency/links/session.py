"""Measuring over a link: gates before each round, rounds until the run profile is met, and the device restored at the end.

Gates, from Android's thermal API and the practice of peers (37 C): thermal status 0, battery at 50 % or more, at most 37 C or
2 C over where the measurement began, no low power mode. A device that does not say one of these passes that gate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from snapgen_deploy.errors import MeasurementFailed
from snapgen_deploy.export.base import Role
from snapgen_deploy.latency.links.base import DeviceState, Link, LinkJob, SampleBlock
from snapgen_deploy.latency.links.shell import restoring
from snapgen_deploy.latency.results import QUERY, Loads, Round, RunProfile
from snapgen_deploy.system.progress import Progress, no_progress

_WARM_UPS = 3  # pictures, in the process that is timed
FIRST_ROUND = 4  # pictures; later rounds are as long as ROUND_SECONDS
_ROUND_SECONDS = 5.0
LONGER_ROUNDS = {"iphone": 30.0}  # seconds; there each round starts a test run anew, which takes about ten of its own
LARGEST_ROUND = 64  # pictures: a log buffer of 256 KiB holds the lines of that many
BURST_PAUSE = 10.0  # seconds of cool-down between rounds
_SUSTAINED_SECONDS = 300.0  # 3DMark's stress tests and MLPerf's rests are minutes, too
POLL = 10.0  # seconds between two looks at a gate
PATIENCE = 900.0  # seconds that a gate may stay shut: one and a half of MLPerf Mobile's cool-down
HOTTER = 2.0  # degrees C over the start that a round may begin with
FUTILE = 5  # invalid rounds in a row after which a measurement is given up
THROTTLED_FROM = {"iphone": 2}  # ProcessInfo.thermalState: from serious (2) on iOS slows down; elsewhere any status over 0


@dataclass(frozen=True)
class Gates:
    """What lets a round begin."""

    max_celsius: float
    min_percent: float
    start_celsius: float | None = None  # of the first round

    def shut(self, state: DeviceState) -> str | None:
        """Why a round may not begin in this state, or None."""
        if state.thermal:
            return f"thermal status is {state.thermal}, expected 0; let the device cool"
        if state.battery_percent is not None and state.battery_percent < self.min_percent:
            return f"the battery is at {state.battery_percent:g} %, expected {self.min_percent:g} % or more; charge it"
        if state.low_power:
            return "low power mode is on, expected off; turn it off"
        limit = self.max_celsius if self.start_celsius is None else max(self.max_celsius, self.start_celsius + HOTTER)
        if state.battery_celsius is not None and state.battery_celsius > limit:
            return f"the battery has {state.battery_celsius:g} C, expected at most {limit:g} C; let the device cool"
        return None


def measure_on(
    link: Link,
    job: LinkJob,
    profile: RunProfile,
    mode: str,
    *,
    max_celsius: float = 37.0,
    min_percent: float = 50,
    wait: Callable[[float], None] = time.sleep,
    progress: Progress = no_progress,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[tuple[Round, ...], Loads, int | None]:
    """Rounds, load times and peak memory of a job on a device.

    Burst: a cool-down and the gates before each round. Sustained: the gates once, then back to back for five minutes at
    least; throttling is what this mode is for, so its rounds stay valid and note it. The profile's cap counts the time that
    the device works, not the cool-downs. MeasurementFailed where the device does not deliver; it is restored in any case.
    """
    with restoring(link.restore):
        with progress(f"{link.name}: copying the files"):
            link.prepare(job)
        with progress(f"{link.name}: loading"):
            loads = link.load(job)
        gates = Gates(max_celsius, min_percent)
        session = _Session(link, job, gates, wait, clock, progress)
        rounds = session.sustained() if mode == "sustained" else session.burst(profile)
        with progress(f"{link.name}: peak memory, in a pass of its own"):
            peak = link.memory(job)
    if not any(r.valid for r in rounds):
        raise MeasurementFailed(
            f"none of {len(rounds)} rounds was valid ({rounds[-1].reason}); let the device rest and try again"
        )
    return rounds, loads, peak


def composed(samples: Mapping[str, tuple[float, ...]], calls: Mapping[Role, int], queries: int) -> tuple[float, ...]:
    """Whole pictures from components that were timed apart: the i-th takes each component's i-th group of calls."""
    for role in calls:
        if (got := len(samples.get(role, ()))) != calls[role] * queries:
            raise MeasurementFailed(
                f"{role}: got {got} samples, expected {calls[role]} for each of {queries} pictures; measure again"
            )
    return tuple(
        math.fsum(ms for role, n in calls.items() for ms in samples[role][i * n : (i + 1) * n]) for i in range(queries)
    )


@dataclass
class _Session:
    """One measurement in progress."""

    link: Link
    job: LinkJob
    gates: Gates
    wait: Callable[[float], None]
    clock: Callable[[], float]
    progress: Progress

    def burst(self, profile: RunProfile) -> tuple[Round, ...]:
        """Rounds with cool-downs until the profile is met by valid ones or its cap is reached."""
        rounds: list[Round] = []
        done, seconds, worked, size, futile = 0, 0.0, 0.0, FIRST_ROUND, 0
        begin = self.clock()
        while (done < profile.queries or seconds < profile.seconds) and worked < profile.cap:
            if rounds:
                self.wait(BURST_PAUSE)
            self._pass_gates()
            made, took = self._round(size, begin, tolerant=False, said=f"{done} of {profile.queries} pictures")
            rounds.append(made)
            worked += took
            futile = 0 if made.valid else futile + 1
            if futile == FUTILE:
                raise MeasurementFailed(
                    f"{FUTILE} rounds in a row were not valid ({made.reason}); cool the device and try again"
                )
            if made.valid:
                done, seconds = done + size, seconds + math.fsum(made.samples[QUERY]) / 1000
            size = _next_size(self.link.name, made)
        return tuple(rounds)

    def sustained(self) -> tuple[Round, ...]:
        """Rounds back to back, for five minutes of the device's work at least."""
        self._pass_gates()
        rounds: list[Round] = []
        begin, size = self.clock(), FIRST_ROUND
        while self.clock() - begin < _SUSTAINED_SECONDS:
            made, _ = self._round(size, begin, tolerant=True, said=f"{self.clock() - begin:.0f} of {_SUSTAINED_SECONDS:g} s")
            rounds.append(made)
            size = _next_size(self.link.name, made)
        return tuple(rounds)

    def _round(self, size: int, begin: float, *, tolerant: bool, said: str) -> tuple[Round, float]:
        """One round and the seconds that it took. `tolerant`: throttling is noted, but the round stays valid."""
        with self.progress(f"{self.link.name}: drawing, {said}"):
            start = self.clock()
            block = self.link.run(self.job, _WARM_UPS, size)
            took = self.clock() - start
        samples = dict(block.samples)
        if QUERY not in samples:
            calls = {role: self.job.calls[role] for role in self.job.components}
            samples[QUERY] = composed(samples, calls, size)
        hot = _throttled(self.link.name, block)
        state = {"started_s": f"{start - begin:.1f}", "throttled": "yes" if hot else "no"} | _both(block)
        reason = "" if tolerant else hot or self.gates.shut(block.before) or ""
        return Round(samples, not reason, reason, state=state), took

    def _pass_gates(self) -> None:
        """Wait until every gate is open; MeasurementFailed when that takes longer than PATIENCE."""
        waited = 0.0
        while (reason := self.gates.shut(state := self.link.state())) is not None:
            if waited >= PATIENCE:
                raise MeasurementFailed(f"{self.link.name}: after {PATIENCE / 60:g} minutes {reason} and measure again")
            with self.progress(f"{self.link.name}: waiting, {reason}"):
                self.wait(POLL)
            waited += POLL
        if self.gates.start_celsius is None:
            self.gates = Gates(self.gates.max_celsius, self.gates.min_percent, state.battery_celsius)


def _next_size(name: str, made: Round) -> int:
    """Pictures of the next round: as many as its seconds hold, and half as many after one that got too hot."""
    if not made.valid:
        return max(FIRST_ROUND, len(made.samples[QUERY]) // 2)
    values, seconds = made.samples[QUERY], LONGER_ROUNDS.get(name, _ROUND_SECONDS)
    return min(LARGEST_ROUND, max(FIRST_ROUND, round(1000 * seconds * len(values) / max(math.fsum(values), 1e-3))))


def _throttled(name: str, block: SampleBlock) -> str:
    """Why the device was slowed down during the block, or nothing."""
    first = THROTTLED_FROM.get(name, 1)
    if block.after.thermal is not None and block.after.thermal >= first:
        return f"throttled: thermal status {block.after.thermal} at its end"
    if block.after.low_power:
        return "throttled: low power mode was on at its end"
    return ""


def _both(block: SampleBlock) -> dict[str, str]:
    """The states around a block, as flat text."""
    sides = {"before": block.before, "after": block.after}
    return {f"{side}.{name}": value for side, state in sides.items() for name, value in state.as_notes().items()}
