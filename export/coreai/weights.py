"""What is in a Core AI program: operations, ports and how weights are stored, read back from the graph of a function.

Constants have no names in the file. A weight is called after what uses it first: `conv2d.3.1` is operand 1 of the function's
fourth `conv2d`, counted from 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from snapgen_deploy.export.base import Port, Weight, element_bits, packed
from snapgen_deploy.export.coreai.compress import LAYERS
from snapgen_deploy.export.coreml.compress import Scheme, refusal, scheme_of
from snapgen_deploy.export.coreml.weights import per

CONSTANT, RETURN = "constant", "output"
PALETTE, SCALED = "lut_to_dense", "blockwise_shift_scale"  # constants in fewer bits -> floats
PREFIXES = ("coreai.decomposable.", "coreai.")
_KINDS = {"f": "float", "bf": "bfloat", "si": "int", "ui": "uint", "i": "bool"}  # of MLIR's element types


def short(operation: str) -> str:
    """`coreai.decomposable.broadcasting_add` -> `broadcasting_add`."""
    prefix = next((p for p in PREFIXES if operation.startswith(p)), "")
    return operation.removeprefix(prefix)


def graphs(program: Any) -> dict[str, Any]:
    """The functions of a program by name."""
    return {op.attributes["sym_name"].value: op for op in program._module._mlir_module.body.operations}


def operations(graph: Any) -> Iterator[Any]:
    """Every operation of a function, those of nested regions included, in order."""
    for region in graph.regions:
        for block in region.blocks:
            for op in block.operations:
                yield op
                yield from operations(op)


def ports(graph: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of a function; documentation is left out, since the program has none."""
    kind = graph.attributes["function_type"].value
    return _ports(graph.attributes["arg_attrs"], kind.inputs), _ports(graph.attributes["res_attrs"], kind.results)


def _ports(attributes: Any, types: Any) -> tuple[Port, ...]:
    named = zip(attributes, types, strict=True)
    return tuple(Port(a["coreai.name"].value, tuple(t.shape), dtype(t), "") for a, t in named)  # type: ignore[arg-type]


def histogram(graph: Any) -> dict[str, int]:
    """How often each operation occurs, without constants and the return."""
    counted = Counter(short(op.name) for op in operations(graph))
    return {name: counted[name] for name in sorted(counted) if name not in (CONSTANT, RETURN)}


def stored(graph: Any) -> dict[str, Weight]:
    """How each weight of a function is stored: constants of floats with more than one value, and compressed ones."""
    found = {result: weight for result, weight in _weights(graph).items() if weight.shape}
    named = {_name(result, graph): weight for result, weight in found.items()}
    return dict(sorted(named.items()))


def skipped(weights: Mapping[str, Weight], asked: Scheme | None) -> dict[str, str]:
    """Layers that a quantiser left in floats, and why, where it shows.

    `asked` is how weights were to be stored in a function that has none stored so; None where no quantiser was asked.
    """
    how = scheme_of(w.kind for w in weights.values()) or asked
    if how is None:
        return {}
    left = {n: w for n, w in weights.items() if _is_layer(n) and not packed(w.kind)}
    return {name: f"{w.kind}: {_refusal(name, w, how) or 'left by the quantiser'}" for name, w in left.items()}


def check_compressed(graph: Any, how: Scheme) -> bool:
    """Whether any weight is compressed.

    Raises:
        RuntimeError: if none is, although there are layers that coreai-opt should take.
    """
    weights = stored(graph)
    if any(packed(w.kind) for w in weights.values()):
        return True
    missed = [name for name, weight in weights.items() if _is_layer(name) and not _refusal(name, weight, how)]
    if missed:
        raise RuntimeError(f"coreai-opt compressed no weight of {len(missed)} that it should take, first {missed[0]}")
    return False


def dtype(kind: Any) -> str:
    """Name of the element type of a tensor type: `f16` -> float16, `si4` -> int4."""
    text = str(kind.element_type)
    letters = text.rstrip("0123456789")
    return "bool" if text == "i1" else f"{_KINDS.get(letters, letters)}{text.removeprefix(letters)}"


def _weights(graph: Any) -> dict[Any, Weight]:
    """Value -> how it is stored; without a shape if it is not a weight (a single number)."""
    found: dict[Any, Weight] = {}
    for op in operations(graph):
        name = short(op.name)
        if name == CONSTANT:
            found[op.results[0]] = _constant(op)
        elif name in (PALETTE, SCALED) and op.operands[0] in found:
            parts = [found.pop(value) for value in op.operands if value in found]
            shape = tuple(op.results[0].type.shape)
            bits = sum(part.bits for part in parts)
            groups = tuple(op.operands[1].type.shape)
            found[op.results[0]] = Weight(_kind(name, dtype(op.operands[0].type), shape, groups), math.prod(shape), bits, shape)
    return {value: weight for value, weight in found.items() if packed(weight.kind) or "float" in weight.kind}


def _constant(op: Any) -> Weight:
    kind, value = op.results[0].type, op.attributes["value"]
    shape, name = tuple(kind.shape), dtype(kind)
    values = math.prod(shape)
    single = values == 1 or getattr(value, "is_splat", False)
    return Weight(name, values, (1 if single else values) * element_bits(name), () if single else shape)


def _kind(operation: str, data: str, shape: tuple[int, ...], groups: tuple[int, ...]) -> str:
    """E.g. `palette4 per 16 channels`, `int8 per 32 values`; `groups` is the shape of the palettes or scales."""
    if operation == PALETTE:
        bits, groups = round(math.log2(groups[-2])), groups[:-2]
        return f"palette{bits}{per(shape, groups, 'channels')}"
    return f"{data}{per(shape, groups, 'values')}"


def _name(value: Any, graph: Any) -> str:
    use = next(iter(value.uses), None)
    if use is None:
        return "unused"
    user = use.owner
    alike = [op for op in operations(graph) if op.name == user.name]
    return f"{short(user.name)}.{alike.index(user)}.{use.operand_number}"


def _is_layer(name: str) -> bool:
    operation, _, operand = name.rpartition(".")
    convolution = operation.startswith("conv")
    return operation.partition(".")[0] in LAYERS if not convolution else operand == "1"


def _refusal(name: str, weight: Weight, how: Scheme) -> str:
    """Why coreai-opt leaves a layer's weight as it is, "" where it takes it."""
    operation, _, operand = name.split(".")
    if operation not in LAYERS:
        return f"coreai-opt takes no constants of {operation}"
    axes = (0, 1) if "matmul" not in operation else (-2, -1) if operand == "0" else (-1, -2)
    return refusal(how, weight.shape, *axes)
