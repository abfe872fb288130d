"""Measures over a link: gates before each round, rounds until the run profile is met, and the device restored at the end.

The gates follow Android's thermal API and common practice (37 C): thermal status 0, battery at 50 % or more and at most 37 C
(or 2 C above the start), no low power mode. What a device does not report passes its gate.
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
FIRST_ROUND = 4  # pictures; later rounds take about _ROUND_SECONDS
_ROUND_SECONDS = 5.0
LONGER_ROUNDS = {"iphone": 30.0}  # seconds; each round is a new test run there, which takes about ten seconds to start
LARGEST_ROUND = 64  # pictures: a log buffer of 256 KiB holds the lines of this many
BURST_PAUSE = 10.0  # seconds of cool-down between rounds
_SUSTAINED_SECONDS = 300.0  # 3DMark's stress tests and MLPerf's pauses take minutes too
POLL = 10.0  # seconds between two checks of the gates
PATIENCE = 900.0  # seconds to wait for the gates: one and a half times MLPerf Mobile's cool-down
HOTTER = 2.0  # degrees C above the start that are still allowed
FUTILE = 5  # invalid rounds in a row after which the measurement is given up
THROTTLED_FROM = {"iphone": 2}  # ProcessInfo.thermalState: iOS slows down from serious (2); elsewhere any status above 0


@dataclass(frozen=True)
class Gates:
    """Conditions for starting a round."""

    max_celsius: float
    min_percent: float
    start_celsius: float | None = None  # temperature before the first round

    def shut(self, state: DeviceState) -> str | None:
        """Why a round may not start in this state, or None."""
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
    """Measure rounds, load times and peak memory (bytes) of a job on a device. The device is restored in any case.

    Burst mode: a cool-down and the gates before each round. Sustained mode: the gates once, then rounds back to back for at
    least five minutes; they stay valid when the device throttles, which is what this mode shows. The profile's cap counts the
    time that the device works, without cool-downs.

    Raises:
        MeasurementFailed: if the device does not deliver, the gates stay shut, or no round was valid.
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
    """Times of whole pictures from components that were timed separately: picture i takes the i-th calls of each component.

    >>> composed({"student": (1.0, 2.0, 3.0, 4.0), "decoder": (10.0, 20.0)}, {"student": 2, "decoder": 1}, 2)
    (13.0, 27.0)

    Raises:
        MeasurementFailed: if a component has the wrong number of samples.
    """
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
        """Run rounds with cool-downs until valid ones meet the profile, or its cap is reached."""
        rounds: list[Round] = []
        done, seconds, worked, pictures, futile = 0, 0.0, 0.0, FIRST_ROUND, 0
        begin = self.clock()
        while (done < profile.queries or seconds < profile.seconds) and worked < profile.cap:
            if rounds:
                self.wait(BURST_PAUSE)
            self._pass_gates()
            made, took = self._round(pictures, begin, tolerant=False, shown=f"{done} of {profile.queries} pictures")
            rounds.append(made)
            worked += took
            futile = 0 if made.valid else futile + 1
            if futile == FUTILE:
                raise MeasurementFailed(
                    f"{FUTILE} rounds in a row were not valid ({made.reason}); cool the device and try again"
                )
            if made.valid:
                done, seconds = done + pictures, seconds + math.fsum(made.samples[QUERY]) / 1000
            pictures = _next_pictures(self.link.name, made)
        return tuple(rounds)

    def sustained(self) -> tuple[Round, ...]:
        """Run rounds back to back, for at least five minutes of the device's work."""
        self._pass_gates()
        rounds: list[Round] = []
        begin, pictures = self.clock(), FIRST_ROUND
        while self.clock() - begin < _SUSTAINED_SECONDS:
            shown = f"{self.clock() - begin:.0f} of {_SUSTAINED_SECONDS:g} s"
            made, _ = self._round(pictures, begin, tolerant=True, shown=shown)
            rounds.append(made)
            pictures = _next_pictures(self.link.name, made)
        return tuple(rounds)

    def _round(self, pictures: int, begin: float, *, tolerant: bool, shown: str) -> tuple[Round, float]:
        """Run one round; also returns its seconds. With `tolerant`, throttling is noted but the round stays valid."""
        with self.progress(f"{self.link.name}: drawing, {shown}"):
            start = self.clock()
            block = self.link.run(self.job, _WARM_UPS, pictures)
            took = self.clock() - start
        samples = dict(block.samples)
        if QUERY not in samples:
            calls = {role: self.job.calls[role] for role in self.job.components}
            samples[QUERY] = composed(samples, calls, pictures)
        hot = _throttled(self.link.name, block)
        state = {"started_s": f"{start - begin:.1f}", "throttled": "yes" if hot else "no"} | _both(block)
        reason = "" if tolerant else hot or self.gates.shut(block.before) or ""
        return Round(samples, not reason, reason, state=state), took

    def _pass_gates(self) -> None:
        """Wait until every gate is open; MeasurementFailed if that takes longer than PATIENCE."""
        waited = 0.0
        while (reason := self.gates.shut(state := self.link.state())) is not None:
            if waited >= PATIENCE:
                raise MeasurementFailed(f"{self.link.name}: after {PATIENCE / 60:g} minutes {reason} and measure again")
            with self.progress(f"{self.link.name}: waiting, {reason}"):
                self.wait(POLL)
            waited += POLL
        if self.gates.start_celsius is None:
            self.gates = Gates(self.gates.max_celsius, self.gates.min_percent, state.battery_celsius)


def _next_pictures(name: str, made: Round) -> int:
    """Number of pictures in the next round: as many as fit in its seconds; after a round that got too hot, half as many."""
    if not made.valid:
        return max(FIRST_ROUND, len(made.samples[QUERY]) // 2)
    values, seconds = made.samples[QUERY], LONGER_ROUNDS.get(name, _ROUND_SECONDS)
    return min(LARGEST_ROUND, max(FIRST_ROUND, round(1000 * seconds * len(values) / max(math.fsum(values), 1e-3))))


def _throttled(name: str, block: SampleBlock) -> str:
    """Why the device was slowed down during the block; empty if it was not."""
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
