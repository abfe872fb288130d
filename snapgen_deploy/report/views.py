"""What the page shows, as plain data. Everything is read, checked and computed before a template gets it."""

from __future__ import annotations

from dataclasses import dataclass

from snapgen_deploy.golden.vectors import OWN_REFERENCE
from snapgen_deploy.latency.results import MEASURED_ON, ON_HOST, Measurement


@dataclass(frozen=True)
class GateView:
    """One gate of a manifest."""

    target: str
    component: str
    name: str
    value: float | None
    limit: float
    verdict: str  # passed, failed, not_run
    detail: str


@dataclass(frozen=True)
class ComponentView:
    """One exported network of one target."""

    role: str
    bytes: int
    parameters: int | None  # None if the configuration cannot be built
    dtypes: tuple[tuple[str, int], ...]  # stored dtype -> number of tensors
    placement: tuple[tuple[str, int], ...]  # place -> number of operators; () if the device decides when it loads the file
    ops: tuple[tuple[str, int], ...]  # operator -> count, most frequent first
    lint: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]

    @property
    def op_count(self) -> int:
        """Number of operators in the graph."""
        return sum(count for _, count in self.ops)

    @property
    def bits(self) -> float | None:
        """Bits of the file per weight; the graph and everything else in the file counts too."""
        return 8 * self.bytes / self.parameters if self.parameters else None


@dataclass(frozen=True)
class TargetView:
    """One target of a bundle."""

    key: str
    precision: str
    form: str
    layout: str
    components: tuple[ComponentView, ...]
    versions: tuple[tuple[str, str], ...]
    psnr: float | None  # against the reference, in dB; None if it was not run
    separate_bytes: int | None = None  # bytes of separate bundles for each picture size, if this one has several
    score: float | None = None  # share of what the scorer found right, of the fidelity gate's pictures; None without one

    @property
    def bytes(self) -> int:
        """Bytes of all components together."""
        return sum(c.bytes for c in self.components)

    @property
    def parameters(self) -> int | None:
        """Of all components together; None if one is not known."""
        counts = [c.parameters for c in self.components]
        return sum(n for n in counts if n) if all(counts) else None

    @property
    def bits(self) -> float | None:
        """Bits of the files per weight, over all components."""
        return 8 * self.bytes / self.parameters if self.parameters else None


@dataclass(frozen=True)
class Picture:
    """A picture for the page."""

    title: str  # the column: "reference" or a target's key
    source: str  # data URI
    width: int
    height: int


@dataclass(frozen=True)
class PromptRow:
    """One prompt, drawn by the reference and by every target that ran."""

    prompt: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class BundleView:
    """One bundle."""

    label: str  # directory name, made unique within the report
    anchor: str
    name: str
    device: str
    device_id: str
    is_server: bool  # then a measurement of a host is one of the device
    width: str
    resolution: tuple[int, int]
    steps: int
    trained: bool
    sha256: str  # hash of SHA256SUMS
    checkpoint: str
    license: str
    generator: str
    damage: str  # what differs from SHA256SUMS; "" if every file is what was exported
    reasons: tuple[str, ...]
    targets: tuple[TargetView, ...]
    gates: tuple[GateView, ...]
    rows: tuple[PromptRow, ...]  # preview.png cut into pictures; () if it could not be cut
    sheet: Picture | None  # the whole preview.png, if it could not be cut
    sizes: tuple[str, ...] = ()  # picture sizes, if there are several
    compared_with: str = OWN_REFERENCE
    loras: tuple[str, ...] = ()  # added to the weights, with their scales and hashes
    warnings: tuple[str, ...] = ()
    calls: str = ""  # what a call draws, where that is more than the picture of a prompt

    def count(self, verdict: str) -> int:
        """Number of gates with this verdict."""
        return sum(g.verdict == verdict for g in self.gates)

    @property
    def gates_by_target(self) -> tuple[tuple[str, tuple[GateView, ...]], ...]:
        """The gates of every target, in the order of the targets."""
        names = dict.fromkeys([*(t.key for t in self.targets), *(g.target for g in self.gates)])
        grouped = ((name, tuple(g for g in self.gates if g.target == name)) for name in names)
        return tuple((name, gates) for name, gates in grouped if gates)

    @property
    def verdict(self) -> str:
        """failed, incomplete (nothing failed, but something was not run) or passed."""
        if self.damage or self.count("failed"):
            return "failed"
        return "passed" if self.gates and self.count("passed") == len(self.gates) else "incomplete"


@dataclass(frozen=True)
class MeasuredView:
    """A measurement and the bundle that it belongs to."""

    measurement: Measurement
    label: str
    owner: str  # label of its bundle in this report, "" if it is not in the report
    stale: bool  # the bundle in this report has the same name, but other files

    @property
    def on_host(self) -> bool:
        """Whether it was measured on a computer, not through a link to a device; older files do not say and were."""
        return self.measurement.environment.get(MEASURED_ON, ON_HOST) == ON_HOST

    @property
    def discarded(self) -> tuple[str, ...]:
        """Why rounds were discarded, each reason once."""
        return tuple(dict.fromkeys(r.reason or "no reason given" for r in self.measurement.rounds if not r.valid))


@dataclass(frozen=True)
class EstimateView:
    """Estimated and measured time of one picture, in ms; None if there is no figure."""

    bundle: str
    target: str
    where: str
    estimate: float | None
    low: float | None
    high: float | None
    basis: str
    measured: float | None

    @property
    def error(self) -> float | None:
        """Relative error of the estimate: estimate / measurement - 1."""
        return self.estimate / self.measured - 1 if self.estimate is not None and self.measured else None


@dataclass(frozen=True)
class MetricView:
    """One metric of a comparison; changes are relative."""

    name: str
    base: float | None
    candidate: float | None
    change: float | None
    low: float | None
    high: float | None
    detectable: float | None
    limit: float | None
    warn: bool
    verdict: str


@dataclass(frozen=True)
class ComparisonView:
    """One comparison of two bundles."""

    base: str
    candidate: str
    target: str
    soc: str
    mode: str
    rounds: int
    created: str  # time as recorded, "" if it was not
    commit: str
    verdict: str
    metrics: tuple[MetricView, ...]
    changed: tuple[tuple[str, str, str], ...]  # guard, verdict, difference
    unchanged: int  # number of unchanged guards
    self_check: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ReportView:
    """The whole page."""

    bundles: tuple[BundleView, ...]
    measured: tuple[MeasuredView, ...]
    estimates: tuple[EstimateView, ...]
    comparisons: tuple[ComparisonView, ...]  # oldest first

    @property
    def verdict(self) -> str:
        """The worst verdict of all bundles."""
        found = {b.verdict for b in self.bundles}
        return next((v for v in ("failed", "incomplete") if v in found), "passed")
