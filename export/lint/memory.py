"""Rules about memory: what the app must hold, and what the chip can."""

from __future__ import annotations

from snapgen_deploy.export.lint.findings import Example
from snapgen_deploy.export.lint.graph import VIEWS, Graph, elements, padded_bytes, plain_bytes
from snapgen_deploy.export.lint.rule import Found, Rule, Subject
from snapgen_deploy.export.mil.saved.program import Operation

_ON_CHIP = (2_000_000, 5_000_000)
"""Bytes of activations that a phone's Neural Engine keeps on the chip: the community's lower and upper figure, no
specification. (On an M4 a figure of 32 MB was measured: https://github.com/aosama/astronomical/issues/534.)"""

LARGEST_BUFFER = 4 * 2**30
"""Bytes of Metal's largest buffer on iPads. Source: https://github.com/apple/coreai-models/issues/129"""

_COMPILE_SECONDS = 0.3e-6
"""Of the first load for the Neural Engine, for each weight of each function: between the reports that `first-load` names."""
_LONG_LOAD = 60.0


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


def _check_buffers(subject: Subject) -> Found | None:
    large = [
        (size, Example(op, value.name, str(value.type), f"{size / 2**30:.2f} GiB"))
        for op, value in (*subject.activations(), *subject.weights())
        if (size := plain_bytes(value.type)) > LARGEST_BUFFER
    ]
    if not large:
        return None
    large.sort(key=lambda entry: -entry[0])
    return Found(tuple(example for _, example in large), f"tensors of more than {LARGEST_BUFFER >> 30} GiB: {len(large)}")


def _check_first_load(subject: Subject) -> Found | None:
    counts = {graph.function.name: sum(elements(t) for t in graph.weights().values()) for graph in subject.graphs}
    seconds = sum(counts.values()) * _COMPILE_SECONDS
    if seconds < _LONG_LOAD:
        return None
    examples = tuple(Example("function", name, "", f"{count / 1e6:.0f}M weights") for name, count in counts.items())
    message = (
        f"estimate: about {seconds:.0f} s to compile {len(counts)} function{'s' * (len(counts) > 1)} for the Neural Engine"
    )
    return Found(examples, message)


RULES = (
    Rule(
        "buffer-over-4gib",
        "error",
        "Metal allocates at most 4 GiB in one buffer on iPads, whatever their memory: one larger tensor ends the app",
        ("https://github.com/apple/coreai-models/issues/129",),
        "split the tensor along its first axis, store a weight in fewer bits, or choose a smaller picture or width",
        _check_buffers,
    ),
    Rule(
        "first-load",
        "info",
        "Core ML compiles every function for the Neural Engine when a device first loads the model, which takes minutes for "
        "large ones, and again after a system update",
        (
            "https://github.com/apple/ml-stable-diffusion/issues/292 (860M weights: 274 s, 123M: 18 s)",
            "https://github.com/apple/coremltools/issues/1814 (an iPhone 14 Pro Max, 335 MB: 97 s)",
            "https://github.com/argmaxinc/argmax-oss-swift/issues/309 (an M4 Pro, whisper large v3 turbo: 440 s)",
        ),
        "nothing in the file: load once in the background after the download, and only the sizes that the app needs",
        _check_first_load,
    ),
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
