"""Measures a bundle on this host: loads, rounds of pictures between canaries, peak memory; each in its own process."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from snapgen_deploy.bundle.reader import Bundle, open_bundle
from snapgen_deploy.errors import MeasurementFailed
from snapgen_deploy.latency.environment import canary, environment, host_key, state
from snapgen_deploy.latency.measure.session import Times, bundle_identity, open_session, runs_here
from snapgen_deploy.latency.results import QUERY, Loads, Measurement, Round, RunProfile
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.files import files_under
from snapgen_deploy.system.progress import Progress

_WARM_UPS = 3
DRIFT = 0.10  # a round is discarded if its canaries differ by more than this, from each other or from the first one
_ROUND_SECONDS = 1.0
_SUSTAINED_SECONDS = 300.0
_BURST_PAUSE = 0.2  # seconds between rounds
LOADS = 3
FRESH = "spawn"  # start method of measured processes: their memory holds nothing of this one's


def measure_host(bundle: Bundle, key: str, profile: RunProfile, mode: str, threads: int, progress: Progress) -> Measurement:
    """Measure one target of a bundle on this machine.

    Args:
        bundle: The bundle.
        key: The target.
        profile: How long to measure.
        mode: `burst` or `sustained`.
        threads: CPU threads.
        progress: Shows the stages.

    Raises:
        MeasurementFailed: if the target cannot be timed here, or no round was valid.
    """
    runs_here(key)
    if mode == "sustained":
        seconds = max(profile.seconds, _SUSTAINED_SECONDS)
        profile = replace(profile, seconds=seconds, cap=max(profile.cap, seconds))
    with progress(f"{key}: loading {LOADS + 1} times"):
        loads = _loads(bundle, key, threads)
    with progress(f"{key}: drawing, {profile.queries} pictures and {profile.seconds:g} s at least, {profile.cap:g} s at most"):
        rounds, _ = run_in_child(f"{key} rounds", _rounds, bundle.path, key, profile, mode, threads, method=FRESH)
    with progress(f"{key}: peak memory, in a pass of its own"):
        _, peak = run_in_child(f"{key} memory", _draw_twice, bundle.path, key, threads, method=FRESH)
    if not any(r.valid for r in rounds):
        raise MeasurementFailed(
            f"{key}: none of {len(rounds)} rounds was valid ({rounds[-1].reason}); quiet the machine and measure again"
        )
    return Measurement(
        **bundle_identity(bundle),
        key=host_key(key, bundle.precision(key), threads),
        profile=profile.name,
        mode=mode,
        e2e_is="measured",
        rounds=rounds,
        loads=loads,
        peak_bytes=peak,
        environment=environment(),
    )


def _loads(bundle: Bundle, key: str, threads: int) -> Loads:
    """First-ever: with the files dropped from the system's cache. Cold: in a new process. Warm: again in that process."""
    dropped = _drop_from_cache(bundle.path / key.replace(":", "-"))
    first, _ = run_in_child(f"{key} load", _load, bundle.path, key, threads, method=FRESH)
    runs = [run_in_child(f"{key} load", _load, bundle.path, key, threads, method=FRESH)[0] for _ in range(LOADS)]
    return Loads(first[0] if dropped else None, min(cold for cold, _ in runs), min(warm for _, warm in runs))


def _load(path: Path, key: str, threads: int) -> tuple[float, float]:
    """Times in ms of the first load and of a second one. Runs in a child process."""
    bundle = open_bundle(path)
    first = open_session(bundle, key, threads).load_ms
    return first, open_session(bundle, key, threads).load_ms


def _drop_from_cache(directory: Path) -> bool:
    """Ask the system to drop the files from its cache; False if it has no call for that."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files_under(directory):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages would stay in the cache
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


def _draw_twice(path: Path, key: str, threads: int) -> None:
    session = open_session(open_bundle(path), key, threads)
    session.query()
    session.query()


def _rounds(path: Path, key: str, profile: RunProfile, mode: str, threads: int) -> tuple[Round, ...]:
    """Run warm-ups, then rounds until valid ones meet the profile or its cap is reached. Runs in a child process."""
    session = open_session(open_bundle(path), key, threads)
    warm = [session.query()[QUERY][0] for _ in range(_WARM_UPS)]
    pictures = max(4, round(_ROUND_SECONDS * 1000 / min(warm)))  # per round
    begin, first = time.monotonic(), canary()
    rounds: list[Round] = []
    done, spent = 0, 0.0
    while (done < profile.queries or spent < profile.seconds) and time.monotonic() - begin < profile.cap:
        before, started = canary(), time.monotonic() - begin
        samples: Times = {}
        for _ in range(pictures):
            for name, values in session.query().items():
                samples.setdefault(name, []).extend(values)
        after = canary()
        drift = max(before, after, first) / min(before, after, first) - 1
        conditions = {"started_s": f"{started:.1f}", **state()}
        valid, reason = drift <= DRIFT, "" if drift <= DRIFT else f"the canary moved by {100 * drift:.0f} %"
        if not valid and abs(after / first - 1) > DRIFT and abs(after / before - 1) <= DRIFT:
            first = after  # the machine has settled at another speed, which is the reference from now on
        rounds.append(Round({n: tuple(v) for n, v in samples.items()}, valid, reason, (before, after), conditions))
        if valid:
            done, spent = done + pictures, spent + sum(samples[QUERY]) / 1000
        if mode == "burst":
            time.sleep(_BURST_PAUSE)
    return tuple(rounds)


def sustained_figures(measurement: Measurement) -> dict[str, float]:
    """Figures of a sustained run.

    `first_p50` and `last_p50` are the medians of the first tenth and of the last quarter of the pictures, in ms; `slowdown` is
    their ratio; `stability` is the smallest median of a minute divided by the largest.
    """
    import statistics

    values = [s for r in measurement.rounds for s in r.samples.get(QUERY, ())]
    minutes: dict[int, list[float]] = {}
    for r in measurement.rounds:
        minutes.setdefault(int(float(r.state.get("started_s", 0)) // 60), []).extend(r.samples.get(QUERY, ()))
    medians = [statistics.median(v) for v in minutes.values() if v]
    first = statistics.median(values[: max(1, len(values) // 10)])
    last = statistics.median(values[-max(1, len(values) // 4) :])
    return {"first_p50": first, "last_p50": last, "slowdown": last / first, "stability": min(medians) / max(medians)}
