"""Attention in onnxruntime: its own operator beside two products and a softmax, by shape; makes the table of exports anew.

    python -m benchmarks.attention [--threads 2]

Writes `attention_times.json` of `snapgen_deploy.export.onnx`, which exports read. Run it for every release of onnxruntime, on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from importlib import metadata

import numpy as np
import onnx
from onnx import TensorProto, helper

from snapgen_deploy.export.onnx.attention import ATTENTION
from snapgen_deploy.export.onnx.attention_times import ATTENTION_TIMES, AttentionShape, AttentionTime
from snapgen_deploy.export.onnx.graph import ORT_DOMAIN
from snapgen_deploy.latency.environment import environment

HEADS, ROWS, KEYS, DIMS = (1, 4, 16, 64), (16, 64, 256, 1024, 4096), (16, 64, 256, 1024, 4096), (16, 64)
MOST = 25e9  # floating-point operations of one attention
CACHE = 32_000_000  # bytes of other data that are written before each call
ROUNDS, SECONDS = 15, 2.0  # of a shape: so many rounds, or fewer that take so long in all, but 3 at least
OPSET, IR_VERSION = 20, 10


def main() -> None:
    """Measure all shapes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    shapes = [AttentionShape(*sizes) for sizes in itertools.product(HEADS, ROWS, KEYS, DIMS)]
    shapes = [s for s in shapes if 4 * s.heads * s.rows * s.keys * s.dim <= MOST]
    found = []
    for number, shape in enumerate(shapes, 1):
        found.append(measure(shape, threads))
        print(f"{number} of {len(shapes)}: {shape.sizes} {found[-1].ratio:.2f}", flush=True)
    about = {
        "source": f"python -m benchmarks.attention --threads {threads}",
        "onnxruntime": metadata.version("onnxruntime"),
        "processor": environment()["processor"],
        "threads": threads,
    }
    ATTENTION_TIMES.write_text(f'{json.dumps(about, indent=1)[:-2]},\n "times": [\n  {rows(found)}\n ]\n}}\n')
    print(f"the operator is quicker at {sum(t.ratio < 1 for t in found)} of {len(found)} shapes")


def rows(times: Sequence[AttentionTime]) -> str:
    """A line of JSON each."""
    listed = [
        {"shape": t.shape.sizes, "spelled_ms": round(t.spelled_ms, 4), "operator_ms": round(t.operator_ms, 4)} for t in times
    ]
    return ",\n  ".join(map(json.dumps, listed))


def measure(shape: AttentionShape, threads: int) -> AttentionTime:
    """Both forms in turn, the quickest of all rounds: what else the machine does only ever adds to a time."""
    random = np.random.default_rng(0)
    sizes = {"q": shape.rows, "k": shape.keys, "v": shape.keys}
    feed = {n: random.standard_normal((shape.heads, size, shape.dim), np.float32) for n, size in sizes.items()}
    spelled, operator = quickest([session(nodes, feed, threads) for nodes in (SPELLED, FUSED)])
    return AttentionTime(shape, spelled, operator)


def quickest(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Milliseconds of each call, with nothing of its data left in the caches, as in a network of many layers."""
    other = np.zeros(CACHE // 8)
    found: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    began = time.perf_counter()
    while len(found[0]) < 3 or (len(found[0]) < ROUNDS and time.perf_counter() - began < SECONDS):
        for call, times in zip(calls, found, strict=True):
            other += 1
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return [min(times) for times in found]


SPELLED = (
    helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
    helper.make_node("MatMul", ["q", "kt"], ["scores"]),
    helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
    helper.make_node("MatMul", ["weights", "v"], ["y"]),
)
FUSED = (helper.make_node(ATTENTION, ["q", "k", "v"], ["y"], domain=ORT_DOMAIN, num_heads=1, scale=1.0),)


def session(nodes: Sequence[onnx.NodeProto], feed: dict[str, np.ndarray], threads: int) -> Callable[[], object]:
    """A call of these nodes."""
    import onnxruntime

    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feed.items()]
    graph = helper.make_graph(nodes, "attention", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(ORT_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: made.run(None, feed)


if __name__ == "__main__":
    main()
