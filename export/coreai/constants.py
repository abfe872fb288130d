"""Gives large constants of a Core AI program keys from their content, so that files are reproducible and functions share them.

coreai-core 1.0.0b3 names a large constant by a hash that differs from process to process: the same network would give other
bytes, and functions that were converted in two processes would not share equal weights.
"""

from __future__ import annotations

import hashlib
import math
import re
from importlib import import_module
from typing import Any

import numpy as np

from snapgen_deploy.export.base import element_bits
from snapgen_deploy.export.coreai.weights import CONSTANT, dtype, graphs, operations, short


def by_content(program: Any) -> None:
    """In place: rename every constant of the file's resource section; equal ones get one key and one place."""
    from coreai._compiler.ir import DenseResourceElementsAttr

    bindings: Any = import_module("coreai._compiler._mlir_libs._coreaiIR")._bindings  # its stub lacks what is used here
    known: dict[str, Any] = {}
    for graph in graphs(program).values():
        for op in operations(graph):
            if short(op.name) != CONSTANT or (now := _key_of(op)) is None:
                continue
            kind = op.results[0].type
            data = np.empty(bytes_of(op), np.uint8)
            bindings.compiler.copy_constant_value_to_array(constant_op=op, destination=data)
            key = f"constant_{hashlib.sha256(str(kind).encode() + data.tobytes()).hexdigest()[:32]}"
            if key not in known:
                same = now == key  # as loaded from a file that was written so
                value = op.attributes["value"]
                known[key] = value if same else DenseResourceElementsAttr.get_from_buffer(data, key, kind, context=op.context)
            op.attributes["value"] = known[key]


def shared_bytes(program: Any) -> int:
    """Bytes of constants that more than one function of a program refers to, each counted once."""
    users: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for name, graph in graphs(program).items():
        for op in operations(graph):
            if short(op.name) == CONSTANT and (key := _key_of(op)) is not None:
                users.setdefault(key, set()).add(name)
                counts[key] = bytes_of(op)
    return sum(counts[key] for key, found in users.items() if len(found) > 1)


def _key_of(constant: Any) -> str | None:
    """The key of a constant in the resource section; None for one that is stored inline."""
    found = re.match(r"dense_resource<(\w+)>", str(constant.attributes["value"]))
    return found[1] if found else None


def bytes_of(constant: Any) -> int:
    """Bytes of its data."""
    kind = constant.results[0].type
    bits: int = math.prod(kind.shape) * element_bits(dtype(kind))
    return -(-bits // 8)
