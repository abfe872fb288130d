"""ONNX for onnxruntime: `torch.onnx.export(dynamo=True)`, cleaned so that the same network always gives the same bytes.

Options of `Onnx.export` (all values are text):

- `optimize`: `none` (default) writes the exported graph as it is; onnxruntime then fuses at load time. `optimum` exports
  through optimum's exporter registry, optimises with its ORTOptimizer and validates with its validator
  (`snapgen_deploy.export.onnx.optimum_exporter`).
- `opset`: 20 (default) or a later one that torch can write.
- `folders`: `flat` (default) or `diffusers`; checked here, applied by `snapgen_deploy.export.onnx.optimum_layout`.
- `attention`: `measured` (default of onnx:cpu) as onnxruntime's own operator where that is quicker
  (`snapgen_deploy.export.onnx.attention_times`), `operator` wherever it can be, `spelled` as two products and a softmax, in
  standard operators alone.
- `license`, `author`: stored in the file's metadata.
- `external_data_bytes`: weights above this many bytes in all go to one `.onnx.data` file beside the model; by default
  2 000 000 000, below the 2 GiB that a protobuf message may have.

Precisions: `snapgen_deploy.export.onnx.quantise`.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snapgen_deploy.errors import BadInput, SnapgenError
from snapgen_deploy.export.base import (
    Arrays,
    Artifact,
    Component,
    Description,
    Headroom,
    Joined,
    Runner,
    Weight,
    average_bits,
    not_quantised,
)
from snapgen_deploy.export.onnx import by_tensor as onnx_by_tensor
from snapgen_deploy.export.onnx import file as onnx_file
from snapgen_deploy.export.onnx import headroom as onnx_headroom
from snapgen_deploy.export.onnx import palettes as onnx_palettes
from snapgen_deploy.export.onnx import quantise as onnx_quantise
from snapgen_deploy.export.onnx import weights as onnx_weights
from snapgen_deploy.export.onnx.fused import fuse
from snapgen_deploy.export.onnx.rules import rules_of_linear_time
from snapgen_deploy.export.onnx.spec import ONNX
from snapgen_deploy.export.onnx.write import GRAPH_KEY, MEASURED, OnnxSettings, check_file, clean, write
from snapgen_deploy.export.shared.weights_given import with_weights_given
from snapgen_deploy.system.quiet import first_line, quiet

if TYPE_CHECKING:
    import onnx_ir

    from snapgen_deploy.export.probe import Probe

# Each session has its own threads, which busy-wait for the next run: three sessions that take turns, as those of a picture do,
# would compete for the processors.
SESSION_CONFIG: Mapping[str, str] = {"session.force_spinning_stop": "1"}
REMEMBERED = 4  # calls whose inputs are kept: the steps of a picture
ORT_TYPES = {"tensor(float)": "float32", "tensor(int32)": "int32"}
_QUANTISED = "quantised"  # prefix of a quantised graph's record


class Onnx:
    """ONNX files, run by onnxruntime's CPU provider."""

    name: str = ONNX.name
    variants: tuple[str, ...] = ONNX.variants
    precisions: tuple[str, ...] = ONNX.precisions
    suffix: str = ONNX.suffix
    providers: tuple[str, ...] = ("CPUExecutionProvider",)  # of onnxruntime, in order of preference
    attention: str = MEASURED  # the option's default

    def export(
        self, component: Component, variant: str, precision: str, directory: Path, options: Mapping[str, str]
    ) -> Artifact:
        """Write `<role>.onnx` (and `<role>.onnx.data` for large weights) into `directory`.

        Nothing is left behind on failure.

        Raises:
            BadInput: if the variant, precision or an option is not offered.
            RuntimeError: if torch, onnx or optimum refuse the network; the message is one line.
        """
        if variant not in self.variants or precision not in self.precisions:
            raise BadInput(
                f"onnx: got variant {variant!r} and precision {precision!r}; "
                f"offered are {', '.join(self.variants)} and {', '.join(self.precisions)}"
            )
        settings = OnnxSettings.parse(options, self.attention)
        how = onnx_quantise.how_of(precision, component)
        if isinstance(how, onnx_quantise.Palettes):
            settings = dataclasses.replace(settings, opset=max(settings.opset, onnx_palettes.OPSET))
        try:
            with quiet(), tempfile.TemporaryDirectory(dir=directory) as scratch:
                if component.on_disk:
                    made = _by_tensor(component, precision, how, settings, Path(scratch))
                else:
                    made = _make(component, settings, Path(scratch))
                    made = _quantised(made, precision, how, component, settings, Path(scratch))
                return Artifact(f"{self.name}:{variant}", component.role, *_place(made, directory))
        except SnapgenError:
            raise
        except Exception as error:
            raise RuntimeError(f"{component.role} -> onnx:{variant}: {first_line(error)}") from error

    def join(self, parts: Mapping[str, Artifact], directory: Path) -> Joined:
        """Write `<role>.onnx` for the first size, `<role>-<size>.onnx` for each other one, and their `<role>.onnx.data`.

        An artifact's files are its own model, the shared data, and further files of the first part (optimum's settings).
        """
        from snapgen_deploy.export.onnx import shared as onnx_shared

        first = next(iter(parts.values()))
        own = (first.path, first.path.with_name(f"{first.path.name}.data"))
        beside = [Path(shutil.copy2(f, directory / f.name)) for f in first.files if f not in own]
        paths = {
            size: directory / f"{first.role}{f'-{size}' if size != next(iter(parts)) else ''}{self.suffix}" for size in parts
        }
        data = directory / f"{first.role}{self.suffix}.data"
        try:
            with quiet():
                onnx_shared.join({part.path: paths[size] for size, part in parts.items()}, data)
        except Exception as error:
            raise RuntimeError(f"{first.role} -> {first.target}, sizes joined: {first_line(error)}") from error
        common = (*([data] if data.is_file() else []), *beside)
        there = (*paths.values(), *common)
        return Joined(
            {s: Artifact(first.target, first.role, p, (p, *common)) for s, p in paths.items()},
            sum(f.stat().st_size for part in parts.values() for f in part.files),
            sum(f.stat().st_size for f in there),
            onnx_shared.shared_bytes({p: onnx_file.read(p)[0] for p in paths.values()}),
        )

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load with onnxruntime (CPU, sequential, `threads` threads within an operator).

        The runner takes exactly the file's inputs, and raises BadInput for others.

        Raises:
            BadInput: if the file is missing or onnxruntime cannot load it, or `entry` is given.
        """
        _no_entry(path, entry)
        session = _session(path, threads, self.providers)
        ports = {i.name: (ORT_TYPES.get(i.type, i.type), list(i.shape)) for i in session.get_inputs()}
        return _Loaded(path, threads, session, ports, [o.name for o in session.get_outputs()], self.providers)

    def unavailable(self, variant: str) -> str | None:
        """None if onnxruntime is installed and the variant is offered."""
        if variant not in self.variants:
            return f"onnx has no variant {variant!r}; it has {', '.join(self.variants)}"
        if util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed"
        return None

    def describe(self, path: Path, entry: str = "") -> Description:
        """Operators and weights of the saved file, and where onnxruntime puts the nodes that it makes of them.

        `placement` counts, per provider, the nodes of onnxruntime's own graph when it assigns them (after its constant folding
        and basic rewrites).

        Raises:
            BadInput: if the file is missing or not a model, or `entry` is given.
        """
        _no_entry(path, entry)
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
        try:
            model, _ = onnx_file.read(path)
        except Exception as error:
            raise BadInput(f"{path.name}: not an ONNX model: {first_line(error)}") from error
        ops = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
        weights = onnx_weights.stored(model)
        opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
        graph = {p.key: p.value for p in model.metadata_props}.get(GRAPH_KEY, "unknown")
        skipped = onnx_weights.skipped(model, weights) if graph.startswith(_QUANTISED) else {}
        data = external_files(model, path)
        gc.collect()  # what an export left in reference cycles would be resident together with onnxruntime's copy
        return Description(
            bytes=sum(f.stat().st_size for f in (path, *data)),
            ops=dict(sorted(ops.items())),
            placement=_placement(path, self.providers),
            weights={name: weight.kind for name, weight in weights.items()},
            average_bits=average_bits(weights.values()),
            skipped=skipped,
            notes=(
                f"opset: {opsets}",
                f"graph: {graph}",
                f"external data files: {len(data)}",
                *not_quantised(skipped, weights),
            ),
        )

    def weights(self, path: Path, entry: str = "") -> dict[str, Weight]:
        """Every weight of a saved file, by its name, and how it is stored."""
        _no_entry(path, entry)
        return onnx_weights.stored(onnx_file.read(path)[0])

    def probe(self, path: Path, inputs: Arrays | None, entry: str = "") -> Probe | str:
        """The file in onnxruntime, with its inputs or noise; or the reason, for operators with quantisation inside."""
        from snapgen_deploy.export.onnx.probe import CLOSED, OnnxProbe, noise_inputs, operators, run_on_cpu

        _no_entry(path, entry)
        if closed := operators(path) & set(CLOSED):
            return f"its operator {min(closed)} quantises by itself; single precision with the same weights is not in the file"
        return OnnxProbe(path, noise_inputs(path) if inputs is None else inputs, run_on_cpu)

    def versions(self) -> dict[str, str]:
        """Versions of the packages that take part in an export."""
        names = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "optimum", "optimum-onnx")
        return {name: metadata.version(name) for name in names}


@dataclasses.dataclass
class _Loaded:
    """A file in a session of onnxruntime, and the inputs of its last calls."""

    path: Path
    threads: int
    session: Any
    ports: Mapping[str, tuple[str, list[int]]]
    outputs: Sequence[str]
    providers: tuple[str, ...]
    last: deque[dict[str, np.ndarray]] = dataclasses.field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Named outputs.

        Raises:
            BadInput: if the inputs are not the file's.
            RuntimeError: if onnxruntime fails.
        """
        _check_inputs(self.path.name, self.ports, inputs)
        given = {name: inputs[name] for name in self.ports}
        self.last.append(given)
        if self.session is None:
            self.session = _session(self.path, self.threads, self.providers)
        try:
            values = self.session.run(self.outputs, given)
        except Exception as error:
            raise RuntimeError(f"{self.path.name}: onnxruntime failed: {first_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def headroom(self) -> Headroom | None:
        """For an fp16 file, from its last calls, which are run once more; None for other files."""
        self.session = None  # two sessions would hold the weights twice; the next call opens it again
        try:
            return onnx_headroom.measure(self.path, self.last, _options(self.threads))
        except Exception as error:
            raise RuntimeError(f"{self.path.name}: its largest values cannot be had: {first_line(error)}") from error


def _no_entry(path: Path, entry: str) -> None:
    """Raise BadInput if a graph is named: a file of this format holds one."""
    if entry:
        raise BadInput(f"{path.name}: an ONNX file holds one graph, got the name {entry!r}; open the file of that size")


def external_files(model: Any, path: Path) -> tuple[Path, ...]:
    """Files beside `path` that hold weights of the ModelProto `model`, sorted."""
    names = {entry.value for w in model.graph.initializer for entry in w.external_data if entry.key == "location"}
    return tuple(path.parent / name for name in sorted(names))


def _make(component: Component, settings: OnnxSettings, scratch: Path) -> Path:
    """Export into `scratch`, check, and return the model's path there."""
    names = ([p.name for p in component.inputs], [p.name for p in component.outputs])
    example = component.example
    plain = scratch / "plain" / f"{component.role}.onnx"
    if settings.optimize == "none":
        model = _convert(component, names, example, settings.opset)
        origin = f"as exported{fuse(model, settings.attention)}"
        write(model, component, origin, plain, settings)
        component.release()
        return plain
    from snapgen_deploy.export.onnx import optimum_exporter

    config = optimum_exporter.exporter_config(component)
    names = (list(config.inputs), list(config.outputs))
    example = tuple(config.generate_dummy_inputs(framework="pt").values())
    reference = optimum_exporter.Recorded(config, component)  # now: a graph beside the activations would be too much
    model = _convert(component, names, example, settings.opset)
    write(model, component, f"as exported{fuse(model, settings.attention)}", plain, settings)
    del model
    return optimum_exporter.optimise(config, component, reference, plain, settings)


def _by_tensor(component: Component, precision: str, how: onnx_quantise.How, settings: OnnxSettings, scratch: Path) -> Path:
    """Export the graph alone into `scratch`, then store its weights one by one, and return the model's path there.

    optimum would load the saved file into memory; onnxruntime fuses the graph when it loads it.
    """
    if not isinstance(how, onnx_quantise.Blocks):
        what = f"{component.role} -> onnx: it is too large to be in memory, which takes precision int4"
        raise BadInput(f"{what}; got {precision}")
    made, given = with_weights_given(component, "float32")
    names = ([p.name for p in made.inputs], [p.name for p in made.outputs])
    model = _convert(made, names, made.example, settings.opset)
    path = scratch / "plain" / f"{component.role}.onnx"
    path.parent.mkdir()
    onnx_by_tensor.store_initializers(model, given, how, path.with_name(f"{path.name}.data"))
    clean(model, component, f"{_QUANTISED} weight by weight: {precision}", settings)
    onnx_by_tensor.write_graph(model, path)
    check_file(path)
    return path


def _quantised(
    plain: Path, precision: str, how: onnx_quantise.How, component: Component, settings: OnnxSettings, scratch: Path
) -> Path:
    """The cleaned file at a precision, with a record of how it was made."""
    import onnx_ir

    if precision == "fp32":
        return plain
    gc.collect()  # as torch's programs do, in reference cycles
    raw = onnx_quantise.quantise(plain, how, component, scratch / "raw-bits" / plain.name)
    by = "the recipe" if isinstance(how, onnx_quantise.Palettes) else f"onnxruntime {metadata.version('onnxruntime')}"
    origin = f"{_QUANTISED} by {by}: {precision}"
    if raw == plain:
        origin += ", which takes no layer of this component"
    gc.collect()  # what the quantiser held
    made = write(onnx_ir.load(raw), component, origin, scratch / "bits" / plain.name, settings)
    for beside in plain.parent.iterdir():  # what optimum says of its graph
        if beside.suffix == ".json":
            os.replace(beside, made.parent / beside.name)
    return made


def _convert(component: Component, names: tuple[list[str], list[str]], example: tuple[Any, ...], opset: int) -> onnx_ir.Model:
    import torch

    with torch.no_grad(), rules_of_linear_time():
        program = torch.onnx.export(
            component.module, example, dynamo=True, opset_version=opset, optimize=True, verbose=False,
            input_names=names[0], output_names=names[1],
        )  # fmt: skip
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return program.model


def _place(made: Path, directory: Path) -> tuple[Path, tuple[Path, ...]]:
    """Move the model and what lies beside it into `directory`; return the model's path and all files."""
    files = sorted(p for p in made.parent.iterdir() if p.is_file())
    for file in files:
        os.replace(file, directory / file.name)
    return directory / made.name, tuple(directory / f.name for f in files)


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors
    for name, value in SESSION_CONFIG.items():
        options.add_session_config_entry(name, value)
    return options


def _session(path: Path, threads: int, providers: Sequence[str], record: bool = False) -> Any:
    import onnxruntime

    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    options = _options(threads)
    if record:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        there = [name for name in providers if name in onnxruntime.get_available_providers()]
        return onnxruntime.InferenceSession(str(path), options, providers=there)
    except Exception as error:
        raise BadInput(f"{path.name}: onnxruntime cannot load it: {first_line(error)}") from error


def _placement(path: Path, providers: Sequence[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in _session(path, 1, providers, record=True).get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(sorted(counts.items()))


def _check_inputs(file: str, ports: Mapping[str, tuple[str, list[int]]], inputs: Mapping[str, np.ndarray]) -> None:
    if set(inputs) != set(ports):
        raise BadInput(f"{file}: got inputs {sorted(inputs)}, expected {list(ports)}")
    for name, (dtype, shape) in ports.items():
        array = inputs[name]
        if (str(array.dtype), list(array.shape)) != (dtype, shape):
            raise BadInput(f"{file}: input {name!r} is {array.dtype} {list(array.shape)}, expected {dtype} {shape}")
