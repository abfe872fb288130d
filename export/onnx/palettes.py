"""Palettes in an ONNX file: a weight as 4- or 8-bit indices and a table, decoded by Cast and Gather.

Lossless: the weights are palette entries already, and the table holds exactly their values. onnxruntime's constant folding
decodes the float weight when a session is created, so the file is small, but the session computes with the fp32 kernels and
uses the memory of fp32. `MatMulNBits`, which keeps few bits in memory, has evenly spaced values only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from snapgen_deploy.export.base import Component
from snapgen_deploy.export.shared.palettes import digest, weights_of

OPSET = 21  # the first with 4-bit integers
INDICES, TABLE = ".indices", ".palette"  # endings of what stands for a weight
FEW = 4  # bits up to which an index takes half a byte

Owners = dict[bytes, list[str]]  # digest of a weight -> names of the parameters that have it


def owners(component: Component) -> Owners:
    """The parameters with palettes by the digest of their weight, to find them in the exported graph.

    A matrix is also listed transposed, as exporters write it.
    """
    found: Owners = defaultdict(list)
    for name, weight in weights_of(component).items():
        for form in [weight, weight.T] if weight.ndim == 2 and min(weight.shape) > 1 else [weight]:
            found[digest(form)].append(name)
    return found


def palettise(model: Any, palettes: Mapping[str, int], known: Owners) -> None:
    """Replace every weight of `palettes` (name -> bits) in place by indices and a table, under its own name.

    Raises:
        RuntimeError: if one is not in the graph, or has more different values than its bits allow.
    """
    import onnx

    missing, nodes, renamed, stored = dict(palettes), [], {}, set[str]()
    for tensor in list(model.graph.initializer):
        values = onnx.numpy_helper.to_array(tensor)
        alike = known.get(digest(values), ())
        name = next((n for n in alike if n in missing), None)
        if name is None:
            continue
        stored.update(alike)
        parts = _parts(name, values, missing.pop(name))
        model.graph.initializer.remove(tensor)
        model.graph.initializer.extend(parts)
        renamed[tensor.name] = name
        nodes.append(onnx.helper.make_node("Cast", [name + INDICES], [f"{name}.index"], to=onnx.TensorProto.INT32))
        nodes.append(onnx.helper.make_node("Gather", [name + TABLE, f"{name}.index"], [name], axis=0))
    if lost := [name for name in missing if name not in stored]:  # of equal weights exporters keep one
        raise RuntimeError(f"{len(lost)} of {len(palettes)} palettes are not in the graph, first {lost[0]}")
    rest = list(model.graph.node)
    for node in rest:
        node.input[:] = [renamed.get(n, n) for n in node.input]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def _parts(name: str, weight: np.ndarray, bits: int) -> list[Any]:
    """Indices of 4 or 8 bits and the table of a weight."""
    import ml_dtypes
    import onnx

    table, indices = np.unique(weight, return_inverse=True)
    if len(table) > 2**bits:
        raise RuntimeError(f"{name} takes {len(table)} values; its palette has {2**bits}")
    kind = ml_dtypes.uint4 if bits <= FEW else np.uint8
    packed = indices.reshape(weight.shape).astype(np.uint8).astype(kind)
    return [onnx.numpy_helper.from_array(packed, name + INDICES), onnx.numpy_helper.from_array(table, name + TABLE)]
