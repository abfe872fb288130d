"""optimum's part in the server bundle: exporter registry, input generators, graph optimisation and validation.

Each component has an `OnnxConfig` in optimum's TasksManager (model types `snapgen-student`, `snapgen-decoder`,
`snapgen-text_encoder`). It names the inputs and outputs, makes the inputs that the network is exported with, and drives
optimum's ORTOptimizer and `validate_model_outputs`. What optimum does not do here, and why:

- Its `export()` calls `torch.onnx.export(dynamo=False)`. On a small student that gives 1484 nodes, with shape arithmetic
  left in the graph, where the dynamo exporter gives 567 static ones; therefore the graph itself comes from
  `snapgen_deploy.export.onnx.target`, with optimum's names and inputs.
- ORTOptimizer runs onnxruntime's extended fusions (level 2) alone. Its transformers-specific fusions look for the attention
  of BERT-like networks: on this student the bert, clip and vit kinds stop with an IndexError, and the unet kind finds no
  attention and inserts NHWC convolutions that the CPU provider does not have. Level 99 would bake the layout of this
  machine's processor into the file. Since onnxruntime does the same fusions whenever it loads a plain file, the gain is in
  loading, not in running: the `shapes` student at full width loaded in 0.67 instead of 1.06 s and ran in 52 ms either way
  (one thread of a busy x86-64 box).
- `main_export` and `ORTDiffusionPipeline` need a pipeline class that diffusers knows; a SnapGen student takes other inputs
  than any of those (features of sigma instead of a timestep). The folder layout is `snapgen_deploy.export.onnx.optimum_layout`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import Tensor, nn

from snapgen_deploy.export.base import Component
from snapgen_deploy.export.onnx.write import OnnxSettings, without_weights, write
from snapgen_deploy.export.shared.replaced import replaced
from snapgen_deploy.families.component import TIME
from snapgen_deploy.families.names import DECODER, STUDENT, TEXT_ENCODER
from snapgen_deploy.models import time_features
from snapgen_deploy.system.quiet import first_line, quiet

with quiet():  # importing transformers probes optional packages and logs what it does not find
    from optimum.exporters.onnx.base import OnnxConfig
    from optimum.exporters.onnx.convert import validate_model_outputs
    from optimum.exporters.tasks import TasksManager
    from optimum.onnxruntime import OptimizationConfig, ORTConfig, ORTOptimizer
    from optimum.onnxruntime.utils import ORTConfigManager
    from optimum.utils import DummyInputGenerator, NormalizedConfigManager
    from optimum.utils.normalized_config import NormalizedConfig
    from transformers import PretrainedConfig

TASK = "feature-extraction"  # optimum's registry needs one of its own tasks; inputs and outputs below are ours
RELATIVE_LIMIT = 1e-5  # largest |optimised - reference| over largest |reference|, fp32
# onnxruntime's optimiser class per component, further text encoders like the first. With the transformers-specific fusions off
# it decides nothing but is asked for.
OPTIMISER_KINDS = {TEXT_ENCODER: "clip", DECODER: "vae", STUDENT: "unet"}


class SnapgenConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is not typed here
    """A component in the form of optimum's configuration classes: its ports and the largest token id of its example."""

    def __init__(self, component: Component | None = None, **kwargs: Any) -> None:
        if component is not None:
            self.model_type = model_type(component.role)
            self.input_shapes = {p.name: list(p.shape) for p in component.inputs}
            self.input_types = {p.name: p.dtype for p in component.inputs}
            self.output_names = [p.name for p in component.outputs]
            integers = [int(t.max()) for t in component.example if not t.is_floating_point()]
            self.largest_token = max(integers, default=0)
        super().__init__(**kwargs)


class NormalizedSnapgenConfig(NormalizedConfig):  # type: ignore[misc]
    """Makes ORTOptimizer detect heads and width (0 = unknown)."""

    num_attention_heads = 0
    hidden_size = 0


class PortInputGenerator(DummyInputGenerator):  # type: ignore[misc]
    """Inputs of a port's shape: tokens, a mask with a padded tail, features of a noise level, or standard normal values."""

    def __init__(self, task: str, normalized_config: Any, **_: Any) -> None:
        self.config: SnapgenConfig = normalized_config.config
        self.generator = torch.Generator().manual_seed(0)

    def supports_input(self, input_name: str) -> bool:
        """Whether the component has this input."""
        return input_name in self.config.input_shapes

    def generate(self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32") -> Any:
        """A tensor of the port's shape and dtype, the same at every call order and on every machine."""
        shape = self.config.input_shapes[input_name]
        value: Tensor
        if self.config.input_types[input_name] == "int32":
            value = torch.randint(0, self.config.largest_token + 1, shape, generator=self.generator, dtype=torch.int32)
        elif input_name.endswith("mask"):
            value = (torch.arange(shape[-1]) < (shape[-1] + 1) // 2).float().expand(shape).contiguous()
        elif input_name == TIME:
            value = time_features(torch.full(shape[:1], 0.75), shape[1])
        else:
            value = torch.randn(shape, generator=self.generator)
        return value if framework == "pt" else value.numpy()


class SnapgenOnnxConfig(OnnxConfig):  # type: ignore[misc]
    """Names and inputs of a component for optimum's exporter; every axis is static."""

    NORMALIZED_CONFIG_CLASS = NormalizedSnapgenConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (PortInputGenerator,)
    DEFAULT_ONNX_OPSET = 20

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Input names in order; no dynamic axis."""
        return {name: {} for name in self._config.input_shapes}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Output names in order; no dynamic axis."""
        return {name: {} for name in self._config.output_names}


class Named(nn.Module):
    """The component called by input names, as optimum's validator calls a reference model."""

    def __init__(self, component: Component) -> None:
        super().__init__()
        self.module = component.module
        self.order = [p.name for p in component.inputs]

    def forward(self, **tensors: Tensor) -> Any:
        """Named inputs -> the module's output."""
        return self.module(*(tensors[name] for name in self.order))


class Recorded(nn.Module):
    """The recorded output of the component's module for the config's inputs: a reference that needs no weights."""

    def __init__(self, config: Any, component: Component) -> None:
        super().__init__()
        self.inputs: dict[str, Tensor] = config.generate_dummy_inputs(framework="pt")
        with torch.no_grad():
            self.outputs = Named(component).eval()(**self.inputs)

    def forward(self, **tensors: Tensor) -> Any:
        """Named inputs, which must be the recorded ones -> the module's output."""
        if set(tensors) != set(self.inputs) or not all(torch.equal(t, self.inputs[n]) for n, t in tensors.items()):
            raise ValueError("the reference was asked for other inputs than those that it was recorded with")
        return self.outputs


def model_type(role: str) -> str:
    """The component's model type in optimum's and transformers' registries."""
    return f"snapgen-{role}"


@functools.cache
def register(role: str) -> None:
    """Enter a component into optimum's registries, once per process."""
    onnx = TasksManager.create_register("onnx", overwrite_existing=True)
    onnx(model_type(role), TASK, library_name="transformers")(SnapgenOnnxConfig)
    # ORTOptimizer asks these two tables; optimum has no function to extend them.
    NormalizedConfigManager._conf[model_type(role)] = NormalizedSnapgenConfig
    ORTConfigManager._conf[model_type(role)] = next(kind for name, kind in OPTIMISER_KINDS.items() if role.startswith(name))


def exporter_config(component: Component) -> Any:
    """The component's OnnxConfig, out of optimum's TasksManager."""
    register(component.role)
    construct = TasksManager.get_exporter_config_constructor(
        exporter="onnx", model_type=model_type(component.role), task=TASK, library_name="transformers"
    )
    return construct(SnapgenConfig(component))


def optimise(config: Any, component: Component, reference: Recorded, plain: Path, settings: OnnxSettings) -> Path:
    """Optimise the exported file `plain` with ORTOptimizer and return the path of the file to ship.

    The optimised graph is shipped if optimum's validator accepts it; otherwise the plain one, and its metadata says why.

    Raises:
        Exception: if the plain one does not match the module either: optimum's AtolError, ShapeError or OutputMatchError.
    """
    work = plain.parent.parent
    component.release()
    gc.collect()  # the exported program holds the weights, too, in reference cycles
    try:
        chosen = _optimised(config, component, plain, settings)
        _validate(config, reference, chosen)
        return chosen
    except Exception as error:
        refused = first_line(error).replace(str(work), "")
    _validate(config, reference, plain)
    origin = f"as exported; optimum's optimised graph was refused: {refused}"
    return write(onnx_ir.load(without_weights(plain)), component, origin, work / "kept" / plain.name, settings)


def _optimised(config: Any, component: Component, plain: Path, settings: OnnxSettings) -> Path:
    """ORTOptimizer's graph and its `ort_config.json`, cleaned, in a directory of their own beside `plain`'s."""
    raw = plain.parent.parent / "raw"
    level = OptimizationConfig(optimization_level=2, enable_transformers_specific_optimizations=False)
    light = without_weights(plain)
    ORTOptimizer([light], config=config._config).optimize(level, save_dir=raw, file_suffix="")
    before, model = len(onnx_ir.load(light).graph), onnx_ir.load(raw / plain.name)
    version = metadata.version("optimum-onnx")
    origin = f"optimised by optimum-onnx {version} (ORTOptimizer, level 2): {before} -> {len(model.graph)} nodes"
    path = write(model, component, origin, raw.with_name("optimised") / plain.name, settings)
    settings_file = ORTConfig.from_pretrained(raw)
    settings_file.use_external_data_format = len(list(plain.parent.iterdir())) > 1  # and not as for `light`
    settings_file.save_pretrained(raw)
    os.replace(raw / "ort_config.json", path.with_name(f"{component.role}.ort_config.json"))
    return path


def _validate(config: Any, reference: Recorded, path: Path) -> None:
    """Run optimum's validator on the saved file against what the component's module computed, with the config's inputs.

    Each value may differ by `RELATIVE_LIMIT` of the largest reference value (plus numpy.allclose's 1e-5 of itself).

    Raises:
        Exception: if the outputs differ: optimum's AtolError, ShapeError or OutputMatchError.
    """
    outputs = reference.outputs
    largest = max(float(t.abs().max()) for t in ((outputs,) if isinstance(outputs, Tensor) else outputs))
    gc.collect()  # what optimising left in reference cycles would be resident together with the validator's session
    with _thrifty_sessions():
        validate_model_outputs(
            config=config,
            reference_model=reference,
            onnx_model=without_weights(path),  # a session maps weights that are referred to, and copies those of one file
            onnx_named_outputs=list(config.outputs),
            atol=RELATIVE_LIMIT * largest,
            use_subprocess=False,
        )


@contextlib.contextmanager
def _thrifty_sessions() -> Iterator[None]:
    """Within the block, new sessions use little memory; optimum has no option for it.

    Mapped weights are used without a packed copy, and results are freed at once. That is slower, but each runs only once.
    """
    import onnxruntime

    class Thrifty(onnxruntime.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.enable_cpu_mem_arena = False
            self.add_session_config_entry("session.disable_prepacking", "1")

    with replaced(onnxruntime, "SessionOptions", Thrifty):
        yield
