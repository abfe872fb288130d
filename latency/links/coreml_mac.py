"""This Mac, through coremltools' experimental benchmarker and Core ML's compute plan.

`MLModelBenchmarker` (coremltools 8.3 and later) reports the time that Core ML itself took for a load or a prediction, without
the conversion of arrays. From its source: every method is a coroutine; its warm-up is exactly one call; without inputs it makes
random ones, which are not valid tokens; times of single operations are apportioned, not measured, so they are not used. Each
load starts from a fresh copy of the package. Whether the system's cache helps is not known, so there is no first-ever time. The
plan says where the system prefers to run an operation, not where it ran.
The output of `pmset -g therm` under load is taken from its manual.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.errors import BadInput, MeasurementFailed
from snapgen_deploy.export.base import Role
from snapgen_deploy.latency.links.base import DeviceState, LinkJob, SampleBlock
from snapgen_deploy.latency.links.shell import QUICK, Shell, checked, run_command
from snapgen_deploy.latency.results import DeviceKey, Loads
from snapgen_deploy.system.child import ChildDied, run_in_child
from snapgen_deploy.system.quiet import first_line

_UNITS = ("all", "cpu_only", "cpu_and_gpu", "cpu_and_ne")
_DTYPES = {65568: "float32", 131104: "int32"}  # ArrayFeatureType.ArrayDataType of Core ML's FeatureTypes.proto
_DEVICES = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "neural engine"}

Child = Callable[..., tuple[Any, int]]  # run_in_child: (what, function, *arguments) -> its result and peak bytes


@dataclass(frozen=True)
class MacOptions:
    """Options of the link, as text."""

    compute_units: str = "all"


@dataclass(frozen=True)
class PackageInput:
    """One input of a Core ML package, in the package's order."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # numpy's name


@dataclass(frozen=True)
class _Placement:
    """Where the system plans to run a component."""

    operations: Mapping[str, int]  # device -> number of operations that prefer it
    neural_engine: float | None  # share of the estimated cost, 0 to 1; None if Core ML estimates no costs
    switches: int  # number of changes of device from one operation to the next

    def __str__(self) -> str:
        counts = ", ".join(f"{n} on the {device}" for device, n in self.operations.items())
        share = self.neural_engine
        cost = "no cost is estimated" if share is None else f"{100 * share:.1f} % of the cost on the neural engine"
        return f"{counts}; {cost}; {self.switches} switches (planned)"


def package_inputs(path: Path) -> tuple[PackageInput, ...]:
    """Names, shapes and types of a package's inputs. Works on any system.

    Raises:
        MeasurementFailed: if an input is neither float32 nor int32.
    """
    import coremltools as ct

    described = ct.utils.load_spec(str(path)).description
    functions = {f.name: f.input for f in described.functions}  # in a package of several picture sizes
    found = []
    for feature in functions.get(described.defaultFunctionName, described.input):
        array = feature.type.multiArrayType
        if array.dataType not in _DTYPES:
            raise MeasurementFailed(f"{path.name}: input {feature.name} has type {array.dataType}, expected float32 or int32")
        found.append(PackageInput(feature.name, tuple(array.shape), _DTYPES[array.dataType]))
    return tuple(found)


def check_units(name: str) -> str:
    """Check the option `compute_units` and return it.

    Raises:
        BadInput: if the value is not known.
    """
    if name not in _UNITS:
        raise BadInput(f"compute_units is '{name}', expected one of {', '.join(_UNITS)}")
    return name


class CoreMLMacLink:
    """This Mac. Components are timed separately, in one process, in the order in which a picture calls them."""

    name = "mac"
    e2e_is = "composed"
    never_run_on_hardware = True

    def __init__(self, options: MacOptions, shell: Shell = run_command, child: Child = run_in_child) -> None:
        if platform.system() != "Darwin":
            raise MeasurementFailed(
                f"the link mac times Core ML, which this system ({platform.system()}) lacks; run it on a Mac, or use iphone"
            )
        self.units = check_units(options.compute_units)
        self._shell, self._child = shell, child
        self._placement: dict[str, str] = {}

    def key(self, job: LinkJob) -> DeviceKey:
        """Chip, build of macOS, coremltools' version with the compute units, power source."""
        soc, build = self._output("sysctl", "-n", "machdep.cpu.brand_string"), self._output("sw_vers", "-buildVersion")
        runtime = f"coremltools {metadata.version('coremltools')}, {self.units}"
        power = "AC" if "AC Power" in self._output("pmset", "-g", "batt") else "battery"
        mode = f"{power}, low power" if self.state().low_power else power
        return DeviceKey(soc, build, job.target, runtime, job.precision, job.threads, mode)

    def environment(self) -> Mapping[str, str]:
        """Model and system; after `prepare` also where each component is planned to run."""
        mac = {"model": self._output("sysctl", "-n", "hw.model"), "macos": self._output("sw_vers", "-productVersion")}
        return mac | {"compute_units": self.units} | {f"placement_{role}": text for role, text in self._placement.items()}

    def state(self) -> DeviceState:
        """From `pmset`: thermal warnings, battery level (None on a desktop), low power mode."""
        return mac_state(*(self._output("pmset", "-g", *what) for what in (("therm",), ("batt",), ())))

    def prepare(self, job: LinkJob) -> None:
        """Check the target and the inputs, and read the compute plan of each component."""
        if job.target.partition(":")[0] != "coreml":
            raise BadInput(f"mac cannot run the target '{job.target}', expected coreml; choose it with --target")
        self._placement = {}
        for role, path in job.components.items():
            read_inputs(package_inputs(path), job.inputs[role])
            self._placement[role] = str(self._call(f"{role}: compute plan", mac_placement, str(path), self.units)[0])

    def load(self, job: LinkJob) -> Loads:
        """Cold: the first load in a new process. Warm: again in that process."""
        cold, warm = self._call("mac: load", load_times, _paths(job), self.units)[0]
        return Loads(None, cold, warm)

    def run(self, job: LinkJob, warmups: int, queries: int) -> SampleBlock:
        """Run one process with all components; each picture calls them in turn."""
        before = self.state()
        samples, peak = self._draw("mac: pictures", job, warmups, queries)
        return SampleBlock(samples, before, self.state(), peak)

    def memory(self, job: LinkJob) -> int | None:
        """Peak resident memory in bytes of a process that draws two pictures, perhaps without that of the Neural Engine."""
        return self._draw("mac: memory", job, 0, 2)[1]

    def restore(self) -> None:
        """A no-op: `prepare` changes and copies nothing."""

    def _output(self, *argv: str) -> str:
        return checked(self._shell, argv, QUICK).out.strip()

    def _draw(self, what: str, job: LinkJob, warmups: int, queries: int) -> tuple[Any, int]:
        return self._call(what, _draw, _paths(job), dict(job.inputs), dict(job.calls), self.units, warmups, queries)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
        """Call in a child process; any error of coremltools becomes one line."""
        try:
            return self._child(what, function, *arguments)
        except MeasurementFailed:
            raise
        except (ChildDied, Exception) as error:
            raise MeasurementFailed(
                f"{what}: Core ML failed: {first_line(error)}; open the package in Xcode to see why"
            ) from None


def mac_state(therm: str, batt: str, settings: str) -> DeviceState:
    """Parse `pmset -g therm`, `pmset -g batt` and `pmset -g`."""
    warning = re.search(r"thermal (?:warning )?level\s*=\s*(\d+)", therm, re.IGNORECASE)
    limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", therm)
    slowed = limit is not None and int(limit[1]) < 100
    level = re.search(r"(\d+)%", batt)
    saver = re.search(r"^\s*lowpowermode\s+(\d)", settings, re.M)
    notes = {"cpu_speed_limit": limit[1]} if limit else {}
    thermal = int(warning[1]) if warning else 1 if slowed else 0
    return DeviceState(thermal, float(level[1]) if level else None, None, saver[1] == "1" if saver else None, notes)


def read_inputs(ports: Sequence[PackageInput], files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Read raw files as named arrays, in the package's order.

    Raises:
        MeasurementFailed: if the number of files, or of values in a file, is wrong.
    """
    if len(ports) != len(files):
        raise MeasurementFailed(f"got {len(files)} input files for {len(ports)} inputs; export the bundle again")
    arrays = {}
    for port, path in zip(ports, files, strict=True):
        values = np.frombuffer(path.read_bytes(), port.dtype)
        if values.size != math.prod(port.shape):
            raise MeasurementFailed(f"{path.name} holds {values.size} numbers, {port.name} takes {math.prod(port.shape)}")
        arrays[port.name] = values.reshape(port.shape)
    return arrays


def load_times(paths: Mapping[Role, str], units: str) -> tuple[float, float]:
    """Time in ms to load all components for the first time in this process, and again. Runs in a child process."""

    async def both() -> list[list[float]]:
        return [(await _benchmarker(path, units).benchmark_load(iterations=2)).samples for path in paths.values()]

    samples = asyncio.run(both())
    return sum(s[0] for s in samples), sum(s[1] for s in samples)


def _draw(
    paths: Mapping[Role, str],
    files: Mapping[Role, Sequence[Path]],
    calls: Mapping[Role, int],
    units: str,
    warmups: int,
    queries: int,
) -> dict[str, tuple[float, ...]]:
    """Times in ms of every call of `queries` pictures, after `warmups` untimed ones. Runs in a child process."""
    inputs = {role: read_inputs(package_inputs(Path(path)), files[role]) for role, path in paths.items()}
    models = {role: _benchmarker(path, units) for role, path in paths.items()}
    samples: dict[str, list[float]] = {role: [] for role in paths}

    async def pictures() -> None:
        for picture in range(warmups + queries):
            for role, model in models.items():
                measured = await model.benchmark_predict(inputs=inputs[role], iterations=calls[role], warmup=False)
                if picture >= warmups:
                    samples[role].extend(measured.samples)

    asyncio.run(pictures())
    return {role: tuple(values) for role, values in samples.items()}


def mac_placement(path: str, units: str) -> _Placement:
    """Summarise the compute plan of a package, with the operations of nested blocks. Runs in a child process."""
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    default = ct.utils.load_spec(path).description.defaultFunctionName
    plan = MLComputePlan.load_from_path(path=ct.models.utils.compile_model(path), compute_units=ct.ComputeUnit[units.upper()])
    order: list[str] = []
    weight: defaultdict[str, float] = defaultdict(float)
    functions = plan.model_structure.program.functions
    timed = [functions[default]] if default in functions else functions.values()  # with several picture sizes, one is timed
    for function in timed:
        for operation in _operations(function.block):
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            if usage is not None:  # constants have none
                order.append(_DEVICES.get(type(usage.preferred_compute_device).__name__, "unknown device"))
                weight[order[-1]] += cost.weight if cost is not None else 0.0
    switches = sum(a != b for a, b in itertools.pairwise(order))
    whole = sum(weight.values())
    return _Placement(dict(sorted(Counter(order).items())), weight["neural engine"] / whole if whole else None, switches)


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _benchmarker(path: str, units: str) -> Any:
    import coremltools as ct
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

    # not loaded here: the benchmarker loads a copy of its own
    return MLModelBenchmarker(ct.models.MLModel(path, compute_units=ct.ComputeUnit[units.upper()], skip_model_load=True))


def _paths(job: LinkJob) -> dict[Role, str]:
    return {role: str(path) for role, path in job.components.items()}
