"""Makes a bundle that really does more work: its ONNX student computes a part of itself twice."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from snapgen_deploy.bundle.reader import Bundle, open_bundle, write_manifest
from snapgen_deploy.latency.measure.session import open_session

PAIRS, LOADS = 25, 6  # to compare two models: calls of each per load, and number of loads


def heavier_bundle(bundle: Bundle, share: float, place: Path) -> tuple[Bundle, float]:
    """Copy `bundle` so that pictures take `share` longer in onnxruntime. Also returns the share that was measured.

    The student's first nodes are repeated until they take that share of the time, on inputs scaled by 1 + 1e-6, so that an
    optimiser cannot merge them. Their means are added to the output with a weight of 1e-30, so that they are not dead code.
    """
    session = open_session(bundle, "onnx:cpu", 1)
    session.query()
    queries = [session.query() for _ in range(20)]
    whole = statistics.median(q["e2e"][0] for q in queries)
    student = statistics.median(t for q in queries for t in q["student"])
    steps = len(bundle.schedule.sigmas) - 1
    wanted = 1 + share * whole / (steps * student)
    shutil.copytree(bundle.path, place)
    path = place / bundle.artifacts("onnx:cpu")["student"].path.relative_to(bundle.path)
    model = onnx.load(path)
    low, high, best = 1, len(model.graph.node), (0, 1.0)
    while low < high - 1 and abs(best[1] - wanted) > 0.002:
        middle = (low + high) // 2
        onnx.save(repeated(model, middle), path)
        found = ratio(bundle.artifacts("onnx:cpu")["student"].path, path)
        if abs(found - wanted) < abs(best[1] - wanted):
            best = (middle, found)
        low, high = (middle, high) if found < wanted else (low, middle)
    onnx.save(repeated(model, best[0]), path)
    manifest = dict(open_bundle(place).manifest)
    (place / "SHA256SUMS").unlink()
    write_manifest(place, manifest)
    return open_bundle(place), (best[1] - 1) * steps * student / whole


def repeated(model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """The model with its first `count` nodes computed a second time."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    floats = [i.name for i in graph.input if i.type.tensor_type.elem_type == TensorProto.FLOAT]
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(1 + 1e-6), "again_scale"),
            numpy_helper.from_array(np.float32(1e-30), "again_weight"),
        ]
    )
    nodes = [helper.make_node("Mul", [name, "again_scale"], [f"{name}_again"]) for name in floats]
    renamed = {name: f"{name}_again" for name in floats}
    first = list(graph.node)[:count]
    for node in first:
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name = f"{node.name}_again"
        twin.input[:] = [renamed.get(name, name) for name in node.input]
        twin.output[:] = [f"{name}_again" for name in node.output]
        renamed.update(zip(node.output, twin.output, strict=True))
        nodes.append(twin)
    used = {name for node in nodes for name in node.input}
    kinds = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    leaves = [n for node in first for n in node.output if f"{n}_again" not in used and kinds.get(n) == TensorProto.FLOAT]
    velocity = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["velocity_plain" if name == velocity else name for name in node.output]
    total = "velocity_plain"
    tail = []
    for i, leaf in enumerate(leaves):
        tail += [
            helper.make_node("ReduceMean", [f"{leaf}_again"], [f"again_mean{i}"], keepdims=0),
            helper.make_node("Mul", [f"again_mean{i}", "again_weight"], [f"again_part{i}"]),
            helper.make_node("Add", [total, f"again_part{i}"], [velocity if i == len(leaves) - 1 else f"again_sum{i}"]),
        ]
        total = f"again_sum{i}"
    body = [*graph.node, *nodes, *tail]
    del graph.node[:]
    graph.node.extend(body)
    return out


def ratio(base: Path, candidate: Path) -> float:
    """Time of one call of the candidate divided by that of the base, with one thread.

    Calls alternate, and so does the order of loading. Two loads of the same file can differ by a percent, so the result is the
    mean over `LOADS` pairs of loads.
    """
    return statistics.fmean(_ratio((base, candidate), first=number % 2) for number in range(LOADS))


def _ratio(paths: tuple[Path, Path], first: int) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    order = (first, 1 - first)
    loaded = {side: onnxruntime.InferenceSession(paths[side], options, providers=["CPUExecutionProvider"]) for side in order}
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {i.name: rng.standard_normal(i.shape, dtype=np.float32) for i in loaded[0].get_inputs()}
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(PAIRS):
        for side in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter()
            loaded[side].run(None, inputs)
            times[side].append(time.perf_counter() - start)
    return statistics.median(b / a for a, b in zip(*times, strict=True))
