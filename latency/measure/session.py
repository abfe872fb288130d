"""A bundle's target, loaded on this host, to draw the same picture repeatedly and time it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from snapgen_deploy.bundle.reader import SUMS, Bundle, bundle_name
from snapgen_deploy.bundle.vectors import read_vectors
from snapgen_deploy.drawing.pipeline import Condition, Pipeline, in_calls, noise_for
from snapgen_deploy.errors import MeasurementFailed
from snapgen_deploy.export.base import Arrays, Role, Runner
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.latency.results import QUERY
from snapgen_deploy.system.files import sha256_of

Times = dict[str, list[float]]  # name -> ms, one per call


@dataclass(frozen=True)
class Session:
    """A loaded target; `query` draws a picture, of a server's bundle a batch, and returns its time and that of each call."""

    pipeline: Pipeline
    text: Callable[[], Arrays]  # the student's text inputs; runs the text encoder if there is one
    noise: np.ndarray
    clock: Times
    load_ms: float

    def query(self) -> Times:
        """Draw one picture: text encoder, every step of the student, decoder. Returns times in ms for `e2e` and the roles."""
        self.clock.clear()
        start = time.perf_counter_ns()
        latent = self.pipeline.denoise(self.noise, self.text())
        if self.pipeline.decodes:
            self.pipeline.decode(latent)
        total = (time.perf_counter_ns() - start) / 1e6
        return {QUERY: [total], **{name: list(values) for name, values in self.clock.items()}}


def bundle_identity(bundle: Bundle) -> dict[str, Any]:
    """The fields of `results.Measurement` that describe the bundle."""
    height, width = bundle.manifest["resolution"]
    return {
        "bundle": bundle_name(bundle.manifest["name"], bundle.manifest["device"]["id"]),  # whatever the folder is called
        "bundle_sha256": sha256_of(bundle.path / SUMS),
        "device": bundle.manifest["device"]["id"],
        "width": bundle.manifest["width"],
        "resolution": (height, width),
        "steps": len(bundle.schedule.sigmas) - 1,
        "batch": bundle.batch,
    }


def runs_here(key: str) -> None:
    """Check that a target can be timed on this host.

    Raises:
        MeasurementFailed: if its times here would not be meaningful, or its runtime is missing.
    """
    runtime = spec_of(key).runtime
    if runtime.numbers_only:
        raise MeasurementFailed(f"{key}: {runtime.numbers_only}; {runtime.instead}")
    target, variant = target_of(key)
    if reason := target.unavailable(variant):
        raise MeasurementFailed(f"{key}: {reason}")


def first_timed(bundle: Bundle) -> str:
    """The bundle's first target that can be timed on this host.

    Raises:
        MeasurementFailed: with the reasons, if none can.
    """
    reasons = []
    for key in bundle.targets:
        try:
            runs_here(key)
        except MeasurementFailed as error:
            reasons.append(str(error))
        else:
            return key
    raise MeasurementFailed(f"no target of {bundle.name} can be timed here: {'; '.join(reasons)}")


def open_session(bundle: Bundle, key: str, threads: int) -> Session:
    """Load every component of a target and time it (`load_ms`). The inputs are the bundle's first test vector."""
    target, _ = target_of(key)
    artifacts = bundle.artifacts(key)
    vectors = read_vectors(bundle)
    clock: Times = {}
    if module := spec_of(key).runtime.module:
        importlib.import_module(module)  # not part of the load time: an app imports no Python
    start = time.perf_counter_ns()
    opened = {role: target.open(a.path, threads=threads, entry=a.entry) for role, a in artifacts.items()}
    load_ms = (time.perf_counter_ns() - start) / 1e6
    components = components_of(bundle.config)
    rows = in_calls(len(vectors.prompts), bundle.batch)[0]
    prompt, *negative = vectors.conditions(rows, bundle.config, opened)
    # the negative prompt is the bundle's: an app encodes it once
    conditions = (prompt, *(Condition({}, c.text) for c in negative))
    pipeline = Pipeline(
        components, {role: _timed(role, run, clock) for role, run in opened.items()}, bundle.schedule, bundle.latent
    )

    def text() -> Arrays:
        return pipeline.condition(*conditions)

    made = bundle.latent, bundle.noise_generator, bundle.schedule.fresh
    noise = np.concatenate([noise_for(seed, *made) for seed in range(bundle.batch)])
    return Session(pipeline, text, noise, clock, load_ms)


def _timed(role: Role, run: Runner, clock: Times) -> Runner:
    def timed(inputs: Mapping[str, np.ndarray]) -> Arrays:
        start = time.perf_counter_ns()
        out = run(inputs)
        clock.setdefault(role, []).append((time.perf_counter_ns() - start) / 1e6)
        return out

    return timed
