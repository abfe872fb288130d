"""The few classes of coremltools that the links use, with its names, coroutines and units; predictions take made-up times."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

MS = {"text_encoder": 2.0, "student": 8.0, "decoder": 3.0}
FLOAT32, INT32, FLOAT16 = 65568, 131104, 65552
SEVERAL = "several"  # in the name of a package of two picture sizes


class ComputeUnit(enum.Enum):
    ALL = 1
    CPU_AND_GPU = 2
    CPU_ONLY = 3
    CPU_AND_NE = 4


class MLCPUComputeDevice: ...


class MLNeuralEngineComputeDevice: ...


class MLModel:
    """`skip_model_load` has to be given: loading twice would spoil the load times."""

    def __init__(self, model: str, *, compute_units: ComputeUnit, skip_model_load: bool = False) -> None:
        assert model.endswith(".mlpackage")
        assert skip_model_load
        self.role = model.rpartition("/")[2].removesuffix(".mlpackage")


@dataclass
class Benchmarks:
    """What went through the benchmarkers, and how they fail."""

    calls: list[str] = field(default_factory=list)
    fails: str = ""


def benchmarker(log: Benchmarks) -> type:
    class MLModelBenchmarker:
        def __init__(self, model: MLModel, device: Any = None) -> None:
            self.model = model

        async def benchmark_load(self, iterations: int = 1) -> SimpleNamespace:
            return SimpleNamespace(samples=[100.0 / (i + 1) for i in range(iterations)])

        async def benchmark_predict(self, inputs: Any = None, iterations: int = 1, warmup: bool = False) -> SimpleNamespace:
            if log.fails:
                raise RuntimeError(log.fails)
            assert {n: (a.shape, str(a.dtype)) for n, a in inputs.items()} == {"x": ((2, 3), "float32"), "n": ((4,), "int32")}
            assert not warmup
            log.calls += [self.model.role] * iterations
            return SimpleNamespace(samples=[MS[self.model.role]] * iterations)

    return MLModelBenchmarker


def load_spec(path: str) -> SimpleNamespace:
    def port(name: str, shape: tuple[int, ...], kind: int) -> SimpleNamespace:
        return SimpleNamespace(name=name, type=SimpleNamespace(multiArrayType=SimpleNamespace(shape=shape, dataType=kind)))

    ports = [port("x", (2, 3), FLOAT16 if "half" in path else FLOAT32), port("n", (4,), INT32)]
    if SEVERAL not in path:
        return SimpleNamespace(description=SimpleNamespace(input=ports, functions=[], defaultFunctionName=""))
    functions = [SimpleNamespace(name="size_4x4", input=[]), SimpleNamespace(name="size_8x8", input=ports)]
    return SimpleNamespace(description=SimpleNamespace(input=[], functions=functions, defaultFunctionName="size_8x8"))


class MLComputePlan:
    """Five operations, one of them a constant without a device, one within a nested block."""

    @classmethod
    def load_from_path(cls, path: str, compute_units: ComputeUnit) -> MLComputePlan:
        assert path.endswith(".mlmodelc")
        return cls(several=SEVERAL in path)

    def __init__(self, several: bool) -> None:
        def op(name: str, *inner: Any) -> SimpleNamespace:
            return SimpleNamespace(operator_name=name, blocks=[SimpleNamespace(operations=list(inner))] if inner else [])

        block = SimpleNamespace(operations=[op("const"), op("ane"), op("cpu", op("ane")), op("ane")])
        functions = {"size_4x4": SimpleNamespace(block=block), "size_8x8": SimpleNamespace(block=block)}
        functions = functions if several else {"main": SimpleNamespace(block=block)}
        self.model_structure = SimpleNamespace(program=SimpleNamespace(functions=functions))

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        devices = {"ane": MLNeuralEngineComputeDevice(), "cpu": MLCPUComputeDevice()}
        device = devices.get(operation.operator_name)
        return device and SimpleNamespace(preferred_compute_device=device, supported_compute_devices=[device])

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        return SimpleNamespace(weight=0.3 if operation.operator_name == "ane" else 0.1)


def install(patch: pytest.MonkeyPatch) -> Benchmarks:
    """Put the fake in coremltools' place for one test."""
    log = Benchmarks()
    parts: dict[str, dict[str, Any]] = {
        "": {"ComputeUnit": ComputeUnit},
        ".utils": {"load_spec": load_spec},
        ".models": {"MLModel": MLModel},
        ".models.utils": {"compile_model": lambda path: path.replace(".mlpackage", ".mlmodelc")},
        ".models.compute_plan": {"MLComputePlan": MLComputePlan},
        ".models.ml_program": {},
        ".models.ml_program.experimental": {},
        ".models.ml_program.experimental.perf_utils": {"MLModelBenchmarker": benchmarker(log)},
    }
    modules = {name: ModuleType(f"coremltools{name}") for name in parts}
    for name, module in modules.items():
        vars(module).update(parts[name])
        patch.setitem(sys.modules, f"coremltools{name}", module)
        if name:
            parent, _, own = name.rpartition(".")
            setattr(modules[parent], own, module)
    return log
