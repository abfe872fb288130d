"""Palettes in a Core ML package: weights that take few values, stored as indices of a few bits and one table each.

Lossless: the weights are palette entries already, and the table holds exactly their values. The file has 1, 2, 3, 4, 6 or 8
bits per weight, the fewest that the number of different values needs. coremltools' own mode for this, `unique`, counts values
by sorting float16, which NumPy 2.4.6 gets wrong for large arrays on some processors with AVX-512: see
findings/numpy-fp16-sort-avx512.sh. It then stores more bits than needed, or nothing; hence a table of our own (mode `custom`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.export.base import Component, Weight
from snapgen_deploy.export.shared.palettes import digest, weights_of

STORED_BITS = (1, 2, 3, 4, 6, 8)  # of an index in an iOS 18 program
KEPT_APART = "common::fuse_conv_scale"  # multiplies a factor into weights, which changes their values when rounded to fp16


def pipeline() -> Any:
    """coremltools' default passes without those that change a layer's weights."""
    import coremltools as ct

    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({KEPT_APART})
    return passes


def palettise(package: Path, palettes: Mapping[str, int], to: Path) -> None:
    """Write `package` to `to` with the named weights as palettes; `check` finds weights that are missing.

    `palettes` maps names of the network's parameters to the bits that their indices may take.
    """
    import coremltools as ct
    import coremltools.optimize.coreml as cto

    names = [constant_name(name) for name in palettes]
    each = cto.OpPalettizerConfig(mode="custom", lut_function=table_of, weight_threshold=0)
    config = cto.OptimizationConfig(op_name_configs=dict.fromkeys(names, each))
    model = ct.models.MLModel(str(package), skip_model_load=True)
    cto.palettize_weights(model, config).save(str(to))


def equals(component: Component) -> list[list[str]]:
    """Names of the component's palettes in groups of equal weights, for which coremltools keeps one constant."""
    weights = weights_of(component)
    found: dict[bytes, list[str]] = {}
    for name in component.palettes:  # one that the network lacks is a group of its own, which `check` will report
        found.setdefault(digest(weights[name]) if name in weights else name.encode(), []).append(name)
    return list(found.values())


def check(palettes: Mapping[str, int], groups: Sequence[Sequence[str]], weights: Mapping[str, Weight]) -> None:
    """Check that `weights`, as read back, have all palettes, in few enough bits, and no others.

    Of a group of equal weights (see `equals`) one is enough.

    Raises:
        RuntimeError: if they do not.
    """
    stored = {name: w.index_bits for name, w in weights.items() if w.index_bits}
    held = [{n: stored[c] for n in group if (c := palette_name(constant_name(n))) in stored} for group in groups]
    wrong = [group[0] for group, there in zip(groups, held, strict=True) if not there]
    wrong += [name for there in held for name, bits in there.items() if bits > palettes[name]]
    if wrong or len(stored) != sum(map(len, held)):
        shown = ", ".join(map(constant_name, wrong[:3])) or "surplus ones"
        raise RuntimeError(f"{len(stored)} palettes were stored for {len(groups)} different weights; wrong: {shown}")


def table_of(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of a weight, padded with zeros to a length that Core ML stores, and each weight's index.

    Raises:
        RuntimeError: if there are more than 256 values.
    """
    exact = weight.astype(np.float32).reshape(-1)
    values = np.unique(exact)
    length = next((2**bits for bits in STORED_BITS if 2**bits >= len(values)), None)
    if length is None:
        raise RuntimeError(f"a weight takes {len(values)} values; a palette holds {2 ** STORED_BITS[-1]}")
    table = np.zeros(length, weight.dtype)
    table[: len(values)] = values
    return table, np.searchsorted(values, exact).astype(np.uint8)


def constant_name(parameter: str) -> str:
    """The name of a parameter of the network in the MIL program: torch.export's name, in half precision."""
    return f"p_{parameter.replace('.', '_')}_to_fp16"


def palette_name(constant: str) -> str:
    """The name of coremltools' palette operation that replaces a constant."""
    return f"{constant}_palettized"
