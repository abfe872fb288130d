"""Chooses the kernel form of the local attention by timing all forms on this host."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from snapgen_deploy.export.registry import spec_of
from snapgen_deploy.families.base import Layer
from snapgen_deploy.families.registry import family_of
from snapgen_deploy.latency.estimate.calibrate import prepare, timed, unavailable
from snapgen_deploy.latency.estimate.calibrate_graphs import BenchmarkGraph
from snapgen_deploy.latency.estimate.cost_components import spelling_of
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.system.progress import Progress

ATTENTION_OPTION = "attention"  # a target's option


@dataclass(frozen=True)
class Choice:
    """How the local attention is exported."""

    form: str
    attention: str = ""  # the value of the target's option of that name; "" for targets without it

    @property
    def name(self) -> str:
        """As printed and stored, e.g. "loop, operator"."""
        return f"{self.form}, {self.attention}" if self.attention else self.form

    @property
    def options(self) -> Mapping[str, str]:
        """Of the target."""
        return {ATTENTION_OPTION: self.attention} if self.attention else {}


@dataclass(frozen=True)
class TunedForms:
    """Times in ms of one layer by choice, the fastest first."""

    ms: Mapping[Choice, float]

    @property
    def best(self) -> Choice:
        """The fastest choice."""
        return next(iter(self.ms))

    @property
    def margin(self) -> float:
        """How much longer the second fastest form takes; 0.1 is 10 %."""
        best, following = list(self.ms.values())[:2]
        return following / best - 1


def tune_plan(config: ModelConfig, plan: ExportPlan, threads: int, progress: Progress) -> ExportPlan:
    """The plan with the fastest form for every target that runs here with the token layout; others keep the stored choice.

    For a target that writes attention in several ways, each of them is timed with each form, unless its options name one; all
    picture sizes share that of the first. Every picture size is timed. The reasons name the forms and their times. If the model
    has no choice of forms, the plan does not change.
    """
    if not layers(config, plan, plan.targets[0].key):
        return plan
    if plan.other_sizes:
        first, common = tune_plan(config, plan.at(plan.sizes[0]), threads, progress), len(plan.reasons)
        following = replace(plan, targets=first.targets)
        rest = {name: tune_plan(config, following.at(name), threads, progress) for name in plan.sizes[1:]}
        tuned = {plan.sizes[0]: first, **rest}
        lines = [f"{name}: {line}" for name, found in tuned.items() for line in found.reasons[common:]]
        others = (replace(s, forms=tuple((t.key, t.form) for t in tuned[s.name].targets)) for s in plan.other_sizes)
        return replace(first, reasons=(*plan.reasons, *lines), other_sizes=tuple(others))
    targets, reasons = [], list(plan.reasons)
    for target in plan.targets:
        reason = unavailable(target.key) or ("" if target.layout == "token" else "its layout is timed nowhere here")
        if reason:
            targets.append(target)
            reasons.append(f"{target.key}: not tuned ({reason}); stored form {target.form}")
            continue
        with progress(f"{target.key}: timing {', '.join(target.spec.writing.forms)}"):
            found = tune_forms(config, plan, target, threads)
        best, named = found.best, {choice.name: ms for choice, ms in found.ms.items()}
        options = tuple(sorted({**dict(target.options), **best.options}.items()))
        targets.append(replace(target, form=best.form, form_ms=tuple(named.items()), options=options))
        times = ", ".join(f"{name} {ms:.3g} ms" for name, ms in named.items())
        reasons.append(
            f"{target.key}: form {best.name}, {100 * found.margin:.0f} % ahead ({times} a layer, threads: {threads})"
        )
    return replace(plan, targets=tuple(targets), reasons=tuple(reasons))


def tune_forms(config: ModelConfig, plan: ExportPlan, target: TargetPlan, threads: int) -> TunedForms:
    """Export a layer in every form, at the plan's width and picture size, and time them in turn."""
    named = dict(target.options).get(ATTENTION_OPTION)
    attentions = (named,) if named else target.spec.writing.attentions or ("",)
    with tempfile.TemporaryDirectory() as folder:
        calls = {}
        for form, layer in layers(config, plan, target.key).items():
            graph = BenchmarkGraph(form, layer.module, layer.shapes).component()
            for choice in (Choice(form, attention) for attention in attentions):
                calls[choice] = prepare(choice.name, graph, target.key, threads, Path(folder), choice.options).call
        seconds = timed(list(calls.values()), threads)
    by_time = sorted(zip(calls, seconds, strict=True), key=lambda pair: pair[1])
    return TunedForms({choice: 1e3 * value for choice, value in by_time})


def layers(config: ModelConfig, plan: ExportPlan, key: str) -> Mapping[str, Layer]:
    """A layer of the student in every kernel form that the target supports, with random weights.

    Empty if the student's family has no choice of forms.
    """
    found = family_of(config).forms(config, plan.width, (plan.latent[1], plan.latent[2]), spelling_of(key).ops)
    return {name: layer for name, layer in found.items() if name in spec_of(key).writing.forms}
