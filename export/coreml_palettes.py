"""Palettes in a Core ML package: weights that take few values, stored as indices of a few bits and one table each.

Lossless: the weights come in as palette entries, and the table holds the very values that are found. The file holds 1, 2, 3, 4,
6 or 8 bits a weight, the fewest that the number of different values needs. coremltools' own mode for this, `unique`, counts
values by sorting float16, which NumPy 2.4.6 gets wrong for large arrays on processors with AVX-512 (measured: 304 for 256
values), and then stores more bits than needed, or nothing; hence a table of our own (mode `custom`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.export.coreml_functions import SINGLE
from snapgen_deploy.export.coreml_weights import dtype, shape_of

PALETTE = "constexpr_lut_to_dense"
STORED_BITS = (1, 2, 3, 4, 6, 8)  # of an index in an iOS 18 program
KEPT_APART = "common::fuse_conv_scale"  # multiplies a factor into weights: rounded to fp16 again, they are other values


@dataclass(frozen=True)
class Stored:
    """One palette weight as it lies in the file."""

    bits: int
    weights: int
    table_bytes: int


def pipeline() -> Any:
    """coremltools' default passes without those that change a layer's weights."""
    import coremltools as ct

    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({KEPT_APART})
    return passes


def palettise(package: Path, palettes: Mapping[str, int], to: Path) -> None:
    """Write `package` to `to` with the named weights as palettes.

    `palettes` maps names of the network's parameters to the bits that their indices may take. Raises RuntimeError where a
    weight is not in the package under the name that coremltools gives it, or takes more bits there.
    """
    import coremltools as ct
    import coremltools.optimize.coreml as cto

    names = {constant_name(name): bits for name, bits in palettes.items()}
    each = cto.OpPalettizerConfig(mode="custom", lut_function=table_of, weight_threshold=0)
    config = cto.OptimizationConfig(op_name_configs=dict.fromkeys(names, each))
    model = ct.models.MLModel(str(package), skip_model_load=True)
    cto.palettize_weights(model, config).save(str(to))
    stored = stored_palettes(to)
    wrong = [name for name, bits in names.items() if palette_name(name) not in stored or stored[palette_name(name)].bits > bits]
    if wrong or len(stored) != len(names):
        raise RuntimeError(
            f"{len(stored)} of {len(names)} palettes were stored; wrong: {', '.join(wrong[:3]) or 'surplus ones'}"
        )


def table_of(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of a weight, padded with zeros to a number that Core ML stores, and each weight's index."""
    exact = weight.astype(np.float32).reshape(-1)
    values = np.unique(exact)
    size = next((2**bits for bits in STORED_BITS if 2**bits >= len(values)), None)
    if size is None:
        raise RuntimeError(f"a weight takes {len(values)} values; a palette holds {2 ** STORED_BITS[-1]}")
    table = np.zeros(size, weight.dtype)
    table[: len(values)] = values
    return table, np.searchsorted(values, exact).astype(np.uint8)


def constant_name(parameter: str) -> str:
    """What a parameter of the network is called in the MIL program: torch.export's name, in half precision."""
    return f"p_{parameter.replace('.', '_')}_to_fp16"


def palette_name(constant: str) -> str:
    """What coremltools calls the palette operation that takes a constant's place."""
    return f"{constant}_palettized"


def stored_palettes(package: Path) -> dict[str, Stored]:
    """Every palette weight of a saved package by the name of its operation, read from the file."""
    from snapgen_deploy.export.coreml import operations, read_spec

    return dict(_stored(operations(read_spec(package).mlProgram.functions[SINGLE])))


def stored_rest(package: Path) -> tuple[int, int]:
    """Elements and bytes of every other constant in the package's weight file."""
    from snapgen_deploy.export.coreml import operations, read_spec

    elements = size = 0
    for op in operations(read_spec(package).mlProgram.functions[SINGLE]):
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue":
            count = math.prod(shape_of(op.outputs[0].type))
            elements, size = elements + count, size + count * _bytes(op.outputs[0].type)
    return elements, size


def _bytes(kind: Any) -> int:
    """Of one element; the weight file holds nothing else beside palettes."""
    return {"float32": 4, "float16": 2, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "uint16": 2, "bool": 1}[dtype(kind)]


def _stored(operations: Iterator[Any]) -> Iterator[tuple[str, Stored]]:
    for op in operations:
        if op.type != PALETTE:
            continue
        values = {name: a.arguments[0].value for name, a in op.inputs.items()} | dict(op.attributes)
        entries, weights = math.prod(shape_of(values["lut"].type)), math.prod(shape_of(op.outputs[0].type))
        # iOS 18 has a table (1, ..., 1, entries, 1), iOS 16 a flat one; both have a power of two of entries
        yield op.outputs[0].name, Stored(entries.bit_length() - 1, weights, 2 * entries)
