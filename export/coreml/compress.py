"""Core ML packages in fewer bits: coremltools' palettes and linear quantisers, applied to a saved fp16 package.

Only weights of layers (`LAYERS`) are compressed: tables that are added or multiplied stay fp16, since they are small and a
palette of a few values would destroy them. Activations are quantised with ranges that our MIL executor measures; coremltools
would use Core ML itself, which runs on macOS only.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from snapgen_deploy.export.base import Arrays, Component
from snapgen_deploy.export.shared.replaced import replaced

LAYERS = ("conv", "conv_transpose", "linear", "matmul", "gather")  # MIL operations whose constants are weights
LEAST_VALUES = 2048  # a weight of fewer values stays as it is: coremltools' own threshold
GROUP = 16  # output channels that share a palette
BLOCK = 32  # inputs that share a scale
_LEFT_KEY = "snapgen_precision_left"  # in a package's metadata: at which the quantiser took no layer of it


@dataclass(frozen=True)
class Exact:
    """Computes and stores in one float type: `fp16` or `fp32`."""

    dtype: str


@dataclass(frozen=True)
class Palette:
    """k-means palettes of 2^bits values, one per layer or per `group` output channels."""

    bits: int
    group: int | None = None


@dataclass(frozen=True)
class Linear:
    """Symmetric integers with a scale for every `block` inputs, or for every output channel."""

    bits: int
    block: int | None = None


@dataclass(frozen=True)
class WeightsAndActivations:
    """8-bit weights with a scale per channel, and 8-bit inputs of convolutions and linear layers with a fixed scale each."""


Scheme = Exact | Palette | Linear | WeightsAndActivations
PRECISIONS: Mapping[str, Scheme] = MappingProxyType(
    {
        "fp16": Exact("fp16"),
        "fp32": Exact("fp32"),
        **{f"palette{bits}": Palette(bits) for bits in (8, 6, 4)},
        **{f"palette{bits}-grouped": Palette(bits, GROUP) for bits in (8, 6, 4)},
        "int8": Linear(8, BLOCK),
        "int4": Linear(4, BLOCK),
        "w8a8": WeightsAndActivations(),
    }
)


def refusal(how: Scheme, shape: Sequence[int], outputs: int, inputs: int) -> str:
    """Why the quantisers leave a layer's weight as it is, "" where they take it; `outputs` and `inputs` are axes of `shape`."""
    if (values := math.prod(shape)) <= LEAST_VALUES:
        return f"{values} values, the quantiser takes more than {LEAST_VALUES}"
    sizes = "x".join(map(str, shape))
    if isinstance(how, Palette) and how.group and shape[outputs] % how.group:
        return f"{sizes} does not divide into groups of {how.group} outputs"
    if isinstance(how, Linear) and how.block and shape[inputs] % how.block:
        return f"{sizes} does not divide into blocks of {how.block} inputs"
    return ""


def state_left(spec: Any, precision: str) -> None:
    """Write into a package's model message that the quantiser took no layer at this precision."""
    spec.description.metadata.userDefined[_LEFT_KEY] = precision


def left_in(spec: Any) -> Scheme | None:
    """How a package's weights were to be stored of which the quantiser took none; None for every other package."""
    return PRECISIONS.get(spec.description.metadata.userDefined.get(_LEFT_KEY, ""))


def scheme_of(kinds: Iterable[str]) -> Scheme | None:
    """How the weights of these kinds (see `Weight.kind`) were stored, by the first one that is compressed."""
    for kind in kinds:
        if found := re.fullmatch(r"(palette|u?int)(\d+)(?: per (\d+) \w+)?(?: per channel)?", kind):
            form = Palette if found[1] == "palette" else Linear
            return form(int(found[2]), int(found[3]) if found[3] else None)
    return None


def compress(package: Path, how: Scheme, component: Component) -> None:
    """Replace the package by its compressed form; a no-op for `Exact`.

    The same package gives the same weights: k-means starts from a fixed seed, with one worker and one thread.

    Raises:
        BadInput: if `how` needs calibration inputs and the component has none.
        Exception: if coremltools fails; its own exception.
    """
    import coremltools as ct
    from threadpoolctl import threadpool_limits

    if isinstance(how, Exact):
        return
    model = ct.models.MLModel(str(package), skip_model_load=True)
    with threadpool_limits(1):  # the sums of k-means depend on how they are split
        model = _step(model, package, how, component)
    made = package.with_name(f"compressed-{package.name}")
    model.save(str(made))
    del model
    shutil.rmtree(package)
    made.rename(package)


def _step(model: Any, package: Path, how: Scheme, component: Component) -> Any:
    import coremltools.optimize.coreml as cto

    if isinstance(how, Palette):
        granularity = "per_tensor" if how.group is None else "per_grouped_channel"
        palette = cto.OpPalettizerConfig(
            mode="kmeans", nbits=how.bits, granularity=granularity, group_size=how.group or GROUP, weight_threshold=LEAST_VALUES
        )
        return cto.palettize_weights(model, _for_layers(palette))
    if isinstance(how, Linear):
        return cto.linear_quantize_weights(model, _for_layers(_linear(how)))
    with _measured_by_us(package, component):
        fixed = cto.OpLinearQuantizerConfig(mode="linear_symmetric")
        # `add` and pooling stay exact: the residual stream would lose bits in every block.
        config = cto.OptimizationConfig(op_type_configs={"conv": fixed, "linear": fixed})
        model = cto.linear_quantize_activations(model, config, [{}])
    return cto.linear_quantize_weights(model, _for_layers(_linear(Linear(8))))


def _linear(how: Linear) -> Any:
    import coremltools.optimize.coreml as cto

    return cto.OpLinearQuantizerConfig(
        mode="linear_symmetric",
        dtype=f"int{how.bits}",
        granularity="per_channel" if how.block is None else "per_block",
        block_size=how.block or BLOCK,
        weight_threshold=LEAST_VALUES,
    )


def _for_layers(config: Any) -> Any:
    import coremltools.optimize.coreml as cto

    return cto.OptimizationConfig(op_type_configs=dict.fromkeys(LAYERS, config))


@contextlib.contextmanager
def _measured_by_us(package: Path, component: Component) -> Iterator[None]:
    """Within the block, coremltools gets the ranges of activations from `ranges` instead of from Core ML."""
    from coremltools.optimize.coreml import _post_training_quantization as quantiser

    with replaced(quantiser, "_get_activation_calibration_stats", lambda *_: ranges(package, component.calibrating())):
        yield


def ranges(package: Path, samples: Iterator[Arrays]) -> dict[str, dict[str, float]]:
    """{value: {rmin, rmax}} of every floating-point value in the package's program over the samples; ranges include zero.

    Raises:
        RuntimeError: if a range is not finite, or nothing was measured.
    """
    import torch

    from snapgen_deploy.export.mil import open_package

    found: dict[str, dict[str, float]] = {}

    def note(name: str, value: torch.Tensor) -> None:
        if value.is_floating_point() and value.numel():
            low, high = (float(v) for v in torch.aminmax(value))
            known = found.setdefault(name, {"rmin": 0.0, "rmax": 0.0})
            known["rmin"], known["rmax"] = min(known["rmin"], low), max(known["rmax"], high)

    runner = open_package(package, mode="device", threads=torch.get_num_threads())
    runner.watch(note)
    for inputs in samples:
        runner(inputs)
    if not found or not all(np.isfinite(list(r.values())).all() for r in found.values()):
        raise RuntimeError("the ranges of the activations are not finite, or nothing was measured")
    return found
