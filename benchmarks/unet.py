"""SnapGen's U-Net, seeded weights: our conversion of one step beside each converter's own of the reference, in one run.

    python -m benchmarks.unet                                          full size, a step at 1024 x 1024, three targets
    python -m benchmarks.unet --preset shapes-unet --targets onnx:cpu  a small one

Each conversion runs in a process of its own, from the network in fp32 to a file that was read back and run. Seconds are those
from the network to the file, imports apart. Memory is the peak of the process, and that of converting alone. The error is that
of the file against the reference in fp32. A step is timed where the file runs at the device's speed: both files in one process,
in turn, two threads. Rows of targets that are left out stay.
Writes benchmarks/results/unet.json and .md after every row.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import in_turn
from snapgen_deploy.checkpoint.initial import initial_tensor
from snapgen_deploy.cli.console import megabytes
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import ComponentSpec, Ports, Spelling
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden.vectors import GoldenSize
from snapgen_deploy.models import PRESETS
from snapgen_deploy.system.child import peak_bytes, run_in_child

RESULTS = Path(__file__).parent / "results"
TARGETS = ("onnx:cpu", "coreml", "executorch:xnnpack")
FILES = {"onnx:cpu": "stock.onnx", "coreml": "stock.mlpackage", "executorch:xnnpack": "stock.pte"}
MODULES = {
    "coreml": ("coremltools",),
    "executorch:xnnpack": ("executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner"),
    "onnx:cpu": ("onnx", "onnxscript", "onnxruntime", "torch.onnx"),
}
ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """One step of a preset's student."""

    preset: str
    side: int  # pixels

    @property
    def spec(self) -> ComponentSpec:
        """The student."""
        return components_of(PRESETS[self.preset]()).denoiser

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        student = PRESETS[self.preset]().student
        return student.latent_channels, self.side // student.latent_factor, self.side // student.latent_factor

    @property
    def ports(self) -> Ports:
        """The student's."""
        return self.spec.ports(GoldenSize("full", (self.side, self.side), self.latent))

    def network(self) -> nn.Module:
        """Seeded weights."""
        network = self.spec.build("full")
        with torch.no_grad():
            for name, tensor in network.named_parameters():
                tensor.copy_(initial_tensor(self.spec, name, tuple(tensor.shape), 0))
        return network.eval().requires_grad_(False)

    def inputs(self) -> dict[str, Tensor]:
        """Seeded inputs; of each text half the tokens."""
        generator = torch.Generator().manual_seed(3)
        found = {p.name: torch.randn(p.shape, generator=generator) for p in self.ports.inputs}
        for name, value in found.items():
            if name.endswith("_mask"):
                found[name] = (torch.arange(value.shape[1])[None] < value.shape[1] // 2).float()
        return found


class Positional(nn.Module):
    """The reference with its inputs in the order of the ports."""

    def __init__(self, spec: ComponentSpec, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.spec, self.names = network, spec, names

    def forward(self, *values: Tensor) -> Tensor:
        """The inputs in order -> velocity."""
        velocity = self.spec.apply(self.network, dict(zip(self.names, values, strict=True)))
        assert isinstance(velocity, Tensor)
        return velocity


def expected(case: Case) -> np.ndarray:
    """What the reference computes."""
    with torch.no_grad():
        velocity: Tensor = Positional(case.spec, case.network(), tuple(case.inputs()))(*case.inputs().values())
        return velocity.numpy()


@dataclass(frozen=True)
class Converted:
    """One conversion, and where its file lies."""

    seconds: float
    bytes: int
    error: float
    operations: int
    delegates: int | None
    outside: dict[str, int]
    path: Path
    peak: int  # bytes of the process before it read the file back


def ours(case: Case, key: str, directory: Path, reference: np.ndarray) -> Converted:
    """Our conversion, as an export does it."""
    (target, variant), record = target_of(key), spec_of(key)
    _import(key)
    network = case.network()
    start = time.monotonic()
    layout, writing = "channels" if record.layout == "channels" else "token", record.writing
    how = Spelling(layout, writing.ops_at(record.precisions[0]), writing.upsample, "", writing.text_form)  # type: ignore[arg-type]
    module = case.spec.rewrite(network, case.latent[1:], how)
    del network
    ports, example = case.ports, tuple(case.inputs().values())
    component = Component(case.spec.name, module, ports.inputs, ports.outputs, example, ports.doc, expendable=True)
    artifact = target.export(component, variant, record.precisions[0], directory, {})
    return _read_back(key, artifact.path, time.monotonic() - start, case, reference)


def stock(case: Case, key: str, directory: Path, reference: np.ndarray) -> Converted:
    """The converter's own way, from the reference."""
    _import(key)
    inputs = case.inputs()
    module = Positional(case.spec, case.network(), tuple(inputs)).eval()
    start, path = time.monotonic(), directory / FILES[key]
    _STOCK[key](module, inputs, path)
    return _read_back(key, path, time.monotonic() - start, case, reference)


def _stock_coreml(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    import coremltools as ct

    program = torch.export.export(module, tuple(inputs.values())).run_decompositions({})
    kinds = [ct.TensorType(name=name, shape=tuple(value.shape), dtype=np.float32) for name, value in inputs.items()]
    fp16, newest = ct.precision.FLOAT16, ct.target.iOS18
    package = ct.convert(
        program, inputs=kinds, outputs=[ct.TensorType(name="velocity", dtype=np.float32)], minimum_deployment_target=newest,
        compute_precision=fp16, skip_model_load=True,
    )  # fmt: skip
    package.save(str(path))


def _stock_xnnpack(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(module, tuple(inputs.values()))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    with path.open("wb") as file:
        lowered.write_to_file(file)


def _stock_onnx(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    torch.onnx.export(
        module, tuple(inputs.values()), str(path), dynamo=True, external_data=True, verbose=False, input_names=list(inputs),
        output_names=["velocity"],
    )  # fmt: skip


_STOCK: Mapping[str, Callable[[nn.Module, Mapping[str, Tensor], Path], None]] = {
    "coreml": _stock_coreml, "executorch:xnnpack": _stock_xnnpack, "onnx:cpu": _stock_onnx,
}  # fmt: skip


def _runner(key: str, path: Path, case: Case) -> Callable[[], np.ndarray]:
    """A function that runs a step from a file, by the runtime itself where a converter's own file has no names of ports."""
    inputs = case.inputs()
    if key == "executorch:xnnpack":
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(path).load_method("forward")
        return lambda: method.execute(tuple(inputs.values()))[0].numpy()
    run, arrays = target_of(key)[0].open(path, threads=2), {name: value.numpy() for name, value in inputs.items()}
    return lambda: run(arrays)["velocity"]


def _read_back(key: str, path: Path, seconds: float, case: Case, reference: np.ndarray) -> Converted:
    peak = peak_bytes()
    told = target_of(key)[0].describe(path)
    got = _runner(key, path, case)()
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in (*files, *path.parent.glob(f"{path.name}.data")))
    error = float(np.linalg.norm(got - reference) / np.linalg.norm(reference))
    delegates = told.placement.get("XnnpackBackend")
    return Converted(seconds, size, error, sum(told.ops.values()), delegates, dict(told.portable_ops), path, peak)


def step_times(case: Case, key: str, paths: tuple[Path, ...]) -> list[float]:
    """Median milliseconds of a step for each file."""
    times = in_turn([_runner(key, path, case) for path in paths], ROUNDS)
    return [round(statistics.median(found), 1) for found in times]


def _import(key: str) -> None:
    """Import what a conversion needs, which is not part of its time."""
    for module in ("torch.export", "torch._dynamo", *MODULES[key]):
        importlib.import_module(module)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="snapgen", choices=[n for n, make in PRESETS.items() if make().family == "unet"])
    parser.add_argument("--side", type=int, default=0, help="pixels; default: the preset's")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    options = parser.parse_args()
    case = Case(options.preset, options.side or PRESETS[options.preset]().resolution[0])
    reference, _ = run_in_child("reference", expected, case)
    rows = kept_rows(case, options.targets)
    for key in options.targets:
        with tempfile.TemporaryDirectory() as place:
            made: dict[int, Path] = {}
            for name, convert in (("ours", ours), ("stock", stock)):
                folder = Path(place, name)
                folder.mkdir()
                rows.append({"target": key, "who": name})
                try:
                    found, peak = run_in_child(f"{name} {key}", convert, case, key, folder, reference)
                except Exception as error:  # converters raise anything; that is the measurement
                    rows[-1]["failed"] = (str(error).splitlines() or [type(error).__name__])[0][:200]
                else:
                    made[len(rows) - 1] = found.path
                    rows[-1] |= {
                        "seconds": round(found.seconds, 1), "peak_bytes": peak, "converting_bytes": found.peak,
                        "bytes": found.bytes,
                        "error": float(f"{found.error:.2g}"), "operations": found.operations, "delegates": found.delegates,
                        "outside": found.outside,
                    }  # fmt: skip
                print(rows[-1], flush=True)
                write(case, rows)
            if made and not spec_of(key).runtime.numbers_only:
                times, _ = run_in_child(f"steps {key}", step_times, case, key, tuple(made.values()))
                for row, ms in zip(made, times, strict=True):
                    rows[row]["ms"] = ms
                print(key, times, flush=True)
                write(case, rows)


def kept_rows(case: Case, again: list[str]) -> list[dict[str, Any]]:
    """The rows of an earlier run of the same step, without those of targets that are measured again."""
    path = RESULTS / "unet.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    same = (before.get("preset"), before.get("side")) == (case.preset, case.side)
    return [row for row in before["rows"] if row["target"] not in again] if same else []


def write(case: Case, rows: list[dict[str, Any]]) -> None:
    """The results as JSON and as a table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "unet.json").write_text(json.dumps({"preset": case.preset, "side": case.side, "rows": rows}, indent=1) + "\n")
    (RESULTS / "unet.md").write_text(markdown(case, rows))


def markdown(case: Case, rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        f"# One step of `{case.preset}` at {case.side} x {case.side}, seeded weights",
        "",
        "`python -m benchmarks.unet`; Core ML in fp16, others in fp32, two threads. Error: against the reference in fp32.",
        "",
        "| target | converted by | seconds | peak | converting alone | file | error | operations | delegates "
        "| operators outside | ms a step |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        head = f"| {r['target']} | {'us' if r['who'] == 'ours' else 'the converter'} |"
        if "failed" in r:
            lines.append(f"{head} {r['failed']} | | | | | | | | |")
        elif "seconds" in r:
            outside = ", ".join(f"{n} x {op}" for op, n in r["outside"].items()) or "-"
            columns = (
                r["seconds"], megabytes(r["peak_bytes"]),
                megabytes(r["converting_bytes"]) if "converting_bytes" in r else "-",
                megabytes(r["bytes"]), f"{r['error']:g}", r["operations"],
                "-" if r["delegates"] is None else r["delegates"], outside, r.get("ms", "-"),
            )  # fmt: skip
            lines.append(f"{head} {' | '.join(map(str, columns))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
