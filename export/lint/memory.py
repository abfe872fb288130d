"""Rules about memory: what the app must hold, and what the chip can."""

from __future__ import annotations

from snapgen_deploy.export.lint.findings import Example
from snapgen_deploy.export.lint.graph import VIEWS, Graph, padded_bytes
from snapgen_deploy.export.lint.rule import Found, Rule, Subject
from snapgen_deploy.export.mil.saved.program import Operation

_ON_CHIP = (2_000_000, 5_000_000)
"""Bytes of activations that a phone's Neural Engine keeps on the chip: the community's lower and upper figure, no
specification. (On an M4 a figure of 32 MB was measured: https://github.com/aosama/astronomical/issues/534.)"""


def _check_weights(subject: Subject) -> Found | None:
    limit = subject.memory_limit
    if limit is None or subject.weight_bytes <= limit:
        return None
    what = f"{subject.weight_bytes / 1e6:.2f} MB of weights; the app's limit is {limit / 1e6:.2f} MB"
    return Found((Example("weights", "", "", what),), what)


def live_bytes(graph: Graph) -> list[tuple[int, Operation]]:
    """(bytes alive while it runs, operation) for each operation in the order of the program: its outputs, and every value
    that it or a later operation still needs. Last axes are padded to 64 bytes, views share their input's memory, weights
    and values of unknown size do not count."""
    owner: dict[str, str] = {}
    for op in graph.operations:
        names = graph.inputs(op)
        if op.type in VIEWS and names:
            owner[op.outputs[0].name] = owner.get(names[0], names[0])
    needed = {owner.get(n, n): len(graph.operations) for n in graph.function.outputs}
    for place, op in enumerate(graph.operations):
        for name in graph.inputs(op):
            root = owner.get(name, name)
            needed[root] = max(place, needed.get(root, place))
    alive = {v.name: padded_bytes(v.type) for v in graph.function.inputs if v.name in needed}
    result = []
    for place, op in enumerate(graph.operations):
        alive |= {v.name: padded_bytes(v.type) for v in op.outputs if v.name not in owner}
        result.append((sum(alive.values()), op))
        alive = {name: size for name, size in alive.items() if needed.get(name, place) > place}
    return result


def _check_working_set(subject: Subject) -> Found | None:
    lower, upper = _ON_CHIP
    over = [(size, op) for graph in subject.graphs for size, op in live_bytes(graph) if size > lower]
    if not over:
        return None
    over.sort(key=lambda entry: -entry[0])
    certain = sum(size > upper for size, _ in over)
    message = (
        f"estimate: up to {over[0][0] / 1e6:.1f} MB of activations alive at once; operations with more than "
        f"{lower / 1e6:g} MB around them: {len(over)}, with more than {upper / 1e6:g} MB: {certain}"
    )
    return Found(tuple(subject.example(op, f"about {size / 1e6:.1f} MB alive") for size, op in over), message)


RULES = (
    Rule(
        "weights-over-limit",
        "error",
        "iOS ends an app that takes more memory than its share of the device's",
        (
            "https://github.com/apple/ml-stable-diffusion/issues/298",
            "https://github.com/madebyollin/maple-diffusion/issues/5",
            "https://developer.apple.com/documentation/bundleresources/entitlements/com.apple.developer.kernel.increased-memory-limit",
        ),
        "choose a narrower width or a palettised precision, or ask for the increased-memory-limit entitlement",
        _check_weights,
    ),
    Rule(
        "working-set",
        "info",
        "activations that do not fit on the chip stream from memory at its bandwidth (an estimate from the order of the "
        "saved program; the compiler may reorder and tile)",
        (
            "https://machinelearning.apple.com/research/neural-engine-transformers",
            "https://github.com/sbryngelson/ANEForge/blob/main/docs/op-catalog.md (linear: 2 MB working set)",
            "community measurements between 2 and 5 MB on phones",
        ),
        "work on one head or one block at a time, and free long skips early",
        _check_working_set,
    ),
)
