"""The export plan, as data: which sub-network, which targets, which forms, and why. `snapgen_deploy.plan.make` makes one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from snapgen_deploy.device_profiles import spaced
from snapgen_deploy.export.precisions import PRECISIONS, Limits
from snapgen_deploy.export.registry import spec_of
from snapgen_deploy.export.spec import TargetSpec
from snapgen_deploy.models.noise import DEFAULT_NOISE
from snapgen_deploy.plan.mixed import MixedSettings
from snapgen_deploy.plan.sizes import Size, size_name


@dataclass(frozen=True)
class TargetPlan:
    """How one target of the plan is exported."""

    target: str  # e.g. "executorch"
    variant: str  # e.g. "xnnpack"; "" where the target has none
    precision: str  # e.g. "fp32"
    layout: str  # "token" or "channels"
    form: str  # kernel form of the local attention: "loop", "batched" or "per_head"
    options: tuple[tuple[str, str], ...] = ()  # e.g. (("deployment", "iOS18"),)
    form_ms: tuple[tuple[str, float], ...] = ()  # ms of a layer per form, the fastest first, if it was tuned here
    own_limits: tuple[tuple[str, float], ...] = ()  # the profile's, which override the precision's

    @property
    def key(self) -> str:
        """`name` or `name:variant`, as on the command line."""
        return f"{self.target}:{self.variant}" if self.variant else self.target

    @property
    def system(self) -> str:
        """The oldest system that runs its files, such as `iOS 18`; "" if the target has no option `deployment`."""
        return spaced(dict(self.options).get("deployment", ""))

    @property
    def limits(self) -> Limits:
        """The limits that the exported files must keep."""
        return replace(PRECISIONS[self.precision].limits, **dict(self.own_limits))

    @property
    def exact(self) -> bool:
        """Whether this is the target's default precision, whose files differ from the reference by rounding only."""
        return self.precision == self.spec.precisions[0]

    @property
    def spec(self) -> TargetSpec:
        """What the target offers."""
        return spec_of(self.key)


@dataclass(frozen=True)
class ExportPlan:
    """Everything that decides what an export writes."""

    device: str
    device_name: str
    width: str
    reasons: tuple[str, ...]  # why this width and these targets, a line each
    targets: tuple[TargetPlan, ...]
    resolution: tuple[int, int]  # picture height, width in pixels
    latent: tuple[int, int, int]  # channels, height, width
    memory_bytes: int  # estimated peak of weights and activations on the device, over the targets
    memory_budget: int | None  # bytes; None if the profile has no figure
    guards: tuple[str, ...]  # guards of `compare` that fail for this device
    latency_ms: float | None  # of one picture; None if it is not known for this model and picture size
    latency_budget_ms: float | None
    other_sizes: tuple[Size, ...] = ()  # besides `resolution`, the default one
    offers: tuple[str, ...] = ()  # keys of further targets that the device runs; exported on request
    mixed: MixedSettings | None = None  # of targets with precision "mixed"
    batch: int = 1  # pictures that a call draws
    noise: str = DEFAULT_NOISE  # what makes the noise from a seed, in `models.noise.GENERATORS`
    os: str = ""  # the device's operating system, such as "iOS"
    warnings: tuple[str, ...] = ()  # what may make bad pictures of good files, a line each

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of all picture sizes, the default one first."""
        return (size_name(self.resolution), *(s.name for s in self.other_sizes))

    def at(self, size: str) -> ExportPlan:
        """The plan of one of `sizes` alone."""
        if size == self.sizes[0]:
            return replace(self, other_sizes=())
        found = next(s for s in self.other_sizes if s.name == size)
        forms = dict(found.forms)
        targets = tuple(replace(t, form=forms.get(t.key, t.form), form_ms=()) for t in self.targets)
        return replace(self, resolution=found.resolution, latent=found.latent, targets=targets, other_sizes=())


def target_at(plan: ExportPlan, key: str) -> TargetPlan:
    """The target of a plan by its key."""
    return next(t for t in plan.targets if t.key == key)
