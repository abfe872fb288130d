"""The basis of an estimate: a calibrated, fitted or derived machine, with a fast and a slow variant for the interval."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from snapgen_deploy.device_profiles import Profile
from snapgen_deploy.export.registry import host_default, spec_of
from snapgen_deploy.latency.estimate import calibrate
from snapgen_deploy.latency.estimate.cost_components import Ops
from snapgen_deploy.latency.estimate.cost_ops import OP_KINDS
from snapgen_deploy.latency.estimate.estimate_fitted import APART_SHARES, PEAK_BANDWIDTH, Fit, fitted
from snapgen_deploy.latency.estimate.machine import Machine, Rate
from snapgen_deploy.latency.estimate.published import Apart, load_of

BasisKind = Literal["measured", "calibrated", "fitted", "derived"]

HOST = "host"  # the device id of this machine
FITTED_DEVICE, FITTED_OPS = "iphone16pm", 35.0  # TOPS, the unit in which Apple publishes the speed of Neural Engines
# Limit for the mean error of the host's calibration on unseen networks (benchmarks/estimate.py). If errors are normal, 90 % of
# them are within 1.645 * sqrt(pi/2) = 2.06 times their mean.
HOST_ERROR = 0.15
SPREAD_OF_MEAN_ERROR = 2.06
# fp32 multiply-accumulates per cycle of one big Arm core: two 128-bit FMLA pipes (Arm software optimization guides of
# Cortex-A76, A78 and A715).
ARM_MACS_PER_CYCLE = 8
# Our choices: the compiler and caches of other Apple chips are not known; nor are the speed of a warm phone's CPU, and how much
# its small cores help.
SCALED_SPREAD, CPU_SLOWER = 1.5, 3.0


@dataclass(frozen=True)
class Host:
    """This machine, with a number of threads."""

    threads: int = 1
    id: str = HOST
    name: str = "this host"


EstimatedDevice = Profile | Host


@dataclass(frozen=True)
class Doubt:
    """What a basis does not describe in one component, and how far that may stretch the ends of its interval."""

    faster: float  # the lower end is divided by this, 1 or more
    slower: float  # the upper end is multiplied by this, 1 or more
    line: str


@dataclass(frozen=True)
class Basis:
    """The machine, those for both ends of the interval, and what it does not describe."""

    kind: BasisKind
    machine: Machine
    fast: Machine
    slow: Machine
    lines: tuple[str, ...]
    doubt: Callable[[Ops], Doubt | None] = lambda _: None  # of a component's operations


@dataclass(frozen=True)
class NoBasis:
    """Why there is no estimate."""

    reason: str


def basis_of(device: EstimatedDevice, target: str) -> Basis | NoBasis:
    """The basis for a target (`name` or `name:variant`) on a device, or the reason why there is none."""
    if isinstance(device, Host):
        return _calibrated(device, target)
    basis = spec_of(target).basis
    if basis == "neural_engine":
        return _apple(device, target)
    if basis == "arm_cpu" and device.os == "Android":
        return _arm_cpu(device)
    return NoBasis(f"no basis for {target} on {device.name}: nothing is published about it there, and nothing was measured")


def target_of_estimate(device: EstimatedDevice, wanted: str | None) -> str:
    """The wanted target, completed by its first variant; else the device's first target with a basis.

    Raises:
        BadInput: if the target is not known.
    """
    if wanted is None:
        keys = [host_default().key] if isinstance(device, Host) else [t.key for t in device.targets]
        return next((key for key in keys if not isinstance(basis_of(device, key), NoBasis)), keys[0])
    return spec_of(wanted).key


def _calibrated(host: Host, target: str) -> Basis | NoBasis:
    if reason := calibrate.unavailable(target):
        return NoBasis(f"{target}: {reason}")
    found = calibrate.load_calibration(calibrate.key_of(target, host.threads))
    if found is None:
        threads = f"{host.threads} thread{'s' if host.threads > 1 else ''}"
        return NoBasis(
            f"this host is not calibrated for {target} with {threads}: run `snapgen-deploy estimate --device host "
            f"--target {target} --threads {host.threads} --calibrate` once"
        )
    factor = 1 + SPREAD_OF_MEAN_ERROR * HOST_ERROR
    lines = (
        f"calibrated on this host by {len(found.samples)} micro-benchmarks through {target.partition(':')[0]} "
        f"{found.key.runtime_version}, {100 * found.fit_error:.0f} % mean error on these",
        f"90 % interval: a mean error of {100 * HOST_ERROR:.0f} % on other networks",
    )
    return Basis("calibrated", found.machine, found.machine.scaled(1 / factor), found.machine.scaled(factor), lines)


_WHAT: Mapping[Apart, str] = MappingProxyType(
    {
        "maps": "convolutions over maps are {share} of its traffic",
        "again": "what is read again, because weights and maps exceed the chip, is {share} of its traffic",
    }
)


def _doubt(fit: Fit, ops: Ops) -> Doubt | None:
    """The doubt about a component that is like a published network which the fit does not describe."""
    load = load_of(ops)
    point = fit.like(load)
    if point is None or point.apart is None:
        return None
    under, ratio = point.error < 0, point.predicted_ms / point.published_ms
    what = _WHAT[point.apart].format(share=f"{100 * APART_SHARES[point.apart](load):.2g} %")
    line = (
        f"{what}: like {point.what.partition(',')[0]}, "
        f"which this fit {'under' if under else 'over'}estimates by {abs(100 * point.error):.0f} %"
    )
    return Doubt(max(1.0, ratio), max(1.0, 1 / ratio), line)


def _apple(device: Profile, target: str) -> Basis | NoBasis:
    fit, doubt = fitted(), functools.partial(_doubt, fitted())
    if device.id == FITTED_DEVICE:
        near = [p for p in fit.points if p.apart is None]
        errors, others = (", ".join(f"{p.name} {100 * p.error:+.0f} %" for p in ps) for ps in (near, fit.apart))
        a = fit.accelerator
        lines = (
            f"fitted to {len(near)} published times (arXiv 2601.08303): {a.macs / 1e12:.2g} TMAC/s, "
            f"{a.stream / 1e9:.3g} GB/s between operations, {a.spill / 1e9:.2g} GB/s for scores beyond the chip; "
            f"the published {PEAK_BANDWIDTH / 1e9:g} GB/s for weights and what is read again",
            f"how well it predicts: each of them, estimated from the other {len(near) - 1}, is off by {errors} "
            f"(A, C: the paper's earlier networks; small, tiny: its widths); not fitted: {others}",
            f"90 % interval from the former errors: a factor of {fit.factor:.2f} each way; wider for networks like the latter",
        )
        quicker, slower = fit.machine.scaled(1 / fit.factor), fit.machine.scaled(fit.factor)
        return Basis("fitted", fit.machine, quicker, slower, lines, doubt)
    ops, bandwidth = device.figures.get("npu_ops"), device.figures.get("bandwidth")
    missing = [name for name, figure in (("NPU operations", ops), ("memory bandwidth", bandwidth)) if figure is None]
    if ops is None or bandwidth is None:
        return NoBasis(f"no basis for {target} on {device.name}: its profile has no published {' and no '.join(missing)}")
    speed, wider = ops.value / FITTED_OPS, bandwidth.value * 1e9 / PEAK_BANDWIDTH
    known, factor = fit.machine, fit.factor * SCALED_SPREAD
    rates = {k: Rate(mac=r.mac / speed, read=r.read / speed) for k, r in known.rates.items()}
    machine = replace(known, rates=rates, spill=known.spill / wider, memory=known.memory / wider)
    line = (
        f"derived from the iPhone 16 Pro Max's fit: arithmetic and on-chip streams by {ops} / {FITTED_OPS:g} TOPS, main "
        f"memory by {bandwidth} / {PEAK_BANDWIDTH / 1e9:g} GB/s; a factor of {factor:.2f} each way, our choice"
    )
    return Basis("derived", machine, machine.scaled(1 / factor), machine.scaled(factor), (line,), doubt)


def _arm_cpu(device: Profile) -> Basis | NoBasis:
    """The basis for an Android phone's CPU, from its published figures.

    Fast end: every MAC at the cores' peak, no memory traffic. Middle: also every byte from main memory at the published
    bandwidth. Slow end: `CPU_SLOWER` times the middle.
    """
    clock, bandwidth, cores = (device.figures.get(n) for n in ("cpu_clock", "bandwidth", "cpu_cores"))
    if clock is None or bandwidth is None:
        missing = "CPU clock" if clock is None else "memory bandwidth"
        return NoBasis(f"no basis for the CPU of {device.name}: its profile has no published {missing}")
    count = cores.value if cores is not None else 1
    mac, byte = 1 / (clock.value * 1e9 * ARM_MACS_PER_CYCLE * count), 1 / (bandwidth.value * 1e9)
    used = [k for k in OP_KINDS if k != "view"]
    machine = Machine({k: Rate(mac=mac, read=byte, written=byte) for k in used})
    line = (
        f"derived from published figures: {count:g} core{'s' if count > 1 else ''} at {clock} x {ARM_MACS_PER_CYCLE} fp32 "
        f"MACs a cycle, {bandwidth}; from arithmetic alone at peak to {CPU_SLOWER:g} times the sum with all traffic, our choice"
    )
    return Basis("derived", machine, Machine({k: Rate(mac=mac) for k in used}), machine.scaled(CPU_SLOWER), (line,))
