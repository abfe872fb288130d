"""Export of a large language model as text encoder: a Gemma 3 4B text tower in 4 bits, where fp32 does not fit in memory.

    python -m benchmarks.language_model                       # 34 layers, ONNX and Core ML; rows replace those of earlier runs
    python -m benchmarks.language_model --layers 6 --target coreml

Writes seeded weights in bf16 (7.8 GB) to a temporary folder, runs transformers' forward pass, converts for each target, and
runs what was saved, each in a process of its own as an export does. The limit for every process is 1.3 times the bytes in bf16.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snapgen_deploy.checkpoint import CheckpointPlace
from snapgen_deploy.checkpoint.expected import expected_shapes
from snapgen_deploy.checkpoint.header import TensorInfo
from snapgen_deploy.checkpoint.writer import stream_sharded
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.reference import reference_runners
from snapgen_deploy.export.base import Arrays, Artifact
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.families.component import MASK, TOKENS
from snapgen_deploy.families.names import TEXT_ENCODER
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.job.convert import ComponentTask, export_in_child
from snapgen_deploy.job.memory import predict
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.models.config import LibraryTextEncoder, TextStream
from snapgen_deploy.models.dit_config import DiTConfig
from snapgen_deploy.models.presets import shapes
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.system.child import run_in_child

RESULTS = Path(__file__).parent / "results"
TARGETS = ("onnx:cpu", "coreml")
LIMIT = 1.3  # times the bytes in bf16
LENGTH = 77  # tokens
DRAWN = 1 << 24  # normal numbers that are drawn; each weight is a part of them, repeated, from a place of its own
# As in the config.json of gemma-3-4b-it, below `text_config`.
GEMMA: dict[str, Any] = {
    "model_type": "gemma3_text", "vocab_size": 262_144, "hidden_size": 2560, "intermediate_size": 10_240,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
    "sliding_window": 1024, "sliding_window_pattern": 6, "max_position_embeddings": 131_072, "rope_theta": 1e6,
    "rope_local_base_freq": 1e4, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=34)
    parser.add_argument("--target", action="append", choices=TARGETS, help="repeatable; by default all")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    config = configuration(options.layers)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        place, _ = timed("weights", write_weights, config, root / "checkpoint")
        plans = {key: plan_of(config, key) for key in options.target or TARGETS}
        reference, about = timed("reference", encode, place, next(iter(plans.values())), options.threads)
        for key, plan in plans.items():
            row = f"{key}, {options.layers} layers"
            write(row, measured(key, config, plan, place, options.threads, root) | {"reference": about}, reference)
    print((RESULTS / "language_model.md").read_text())


def configuration(layers: int) -> ModelConfig:
    """The embedded student's, with a text stream of Gemma's width."""
    small = shapes()
    assert isinstance(small.student, DiTConfig)
    student = replace(small.student, text_streams=(TextStream("text", GEMMA["hidden_size"], LENGTH),))
    encoder = LibraryTextEncoder("transformers", GEMMA | {"num_hidden_layers": layers}, LENGTH)
    return replace(small, student=student, text_encoder=encoder, name="gemma", trained=False)


def plan_of(config: ModelConfig, key: str) -> ExportPlan:
    """In 4 bits, whatever fits on the device."""
    return make_plan(config, load_profile("iphone16pm").with_memory_budget(2**40), targets=[key], precision="int4")


def timed(what: str, function: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, float]]:
    """The result of a function in a process of its own, the seconds, and the process's peak memory."""
    start = time.monotonic()
    result, peak = run_in_child(what, function, *args)
    found = {"seconds": time.monotonic() - start, "peak_bytes": peak}
    print(f"{what}: {found['seconds']:.0f} s, peak {peak / 1e9:.2f} GB", flush=True)
    return result, found


def write_weights(config: ModelConfig, folder: Path) -> CheckpointPlace:
    """A checkpoint in bf16, of order one at any depth: deviation fan_in^-1/2, norms one (Gemma adds one to what is stored)."""
    drawn = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    wanted = expected_shapes(config)
    infos = {name: TensorInfo(shape, "BF16", 2 * math.prod(shape)) for name, shape in wanted.items()}
    places = {name: 7919 * number % (DRAWN // 2) for number, name in enumerate(wanted)}

    def make(name: str) -> Tensor:
        shape, count = wanted[name], math.prod(wanted[name])
        if len(shape) < 2:
            return torch.zeros(shape, dtype=torch.bfloat16)
        part = (drawn[places[name] : places[name] + count] * math.sqrt(1 / math.prod(shape[1:]))).to(torch.bfloat16)
        return part.repeat(-(-count // len(part)))[:count].reshape(shape)

    stream_sharded(infos, make, config, folder, 10**9)
    return CheckpointPlace(folder)


def inputs() -> Arrays:
    """Seeded tokens, the last ones padding."""
    tokens = np.random.default_rng(0).integers(0, GEMMA["vocab_size"], (1, LENGTH), dtype=np.int32)
    mask = np.ones((1, LENGTH), np.float32)
    mask[:, -17:] = 0.0
    return {TOKENS: tokens, MASK: mask}


def encode(place: CheckpointPlace, plan: ExportPlan, threads: int) -> np.ndarray:
    """Embeddings by transformers."""
    torch.set_num_threads(threads)
    run = reference_runners(place.open(), plan.width, ("encode",))[TEXT_ENCODER]
    return next(iter(run(inputs()).values()))


def run_saved(key: str, artifact: Artifact, threads: int) -> np.ndarray:
    """Embeddings by the saved files."""
    return next(iter(target_of(key)[0].open(artifact.path, threads=threads)(inputs()).values()))


def measured(
    key: str, config: ModelConfig, plan: ExportPlan, place: CheckpointPlace, threads: int, root: Path
) -> dict[str, Any]:
    """Convert for a target and run the files, which are deleted afterwards."""
    folder = root / "converted"
    task = ComponentTask(place, plan, plan.targets[0], TEXT_ENCODER, folder, drawn=folder, threads=threads)
    done, converting = timed(f"{key}: conversion", export_in_child, task)
    embeddings, checking = timed(f"{key}: check", run_saved, key, done.artifact, threads)
    shutil.rmtree(folder)
    (expected,) = (p.bytes for p in predict(config, plan) if p.role == TEXT_ENCODER)
    return {
        "half_bytes": 2 * components_of(config)[TEXT_ENCODER].parameters(""),
        "conversion": converting,
        "predicted_bytes": expected,
        "check": checking,
        "bytes": done.description.bytes,
        "average_bits": done.description.average_bits,
        "embeddings": embeddings,
        "environment": environment(),
    }


def write(name: str, found: dict[str, Any], reference: np.ndarray) -> None:
    """Write one row to the results, as JSON and Markdown. The error is over tokens; padding means nothing."""
    seen = inputs()[MASK][0] > 0
    got, expected = found.pop("embeddings")[0, seen], reference[0, seen]
    found["error"] = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    path = RESULTS / "language_model.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    record[name] = found
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    (RESULTS / "language_model.md").write_text(table(record))


def table(record: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"Gemma 3 text tower, {GEMMA['hidden_size']} wide, {GEMMA['vocab_size']} words, {LENGTH} tokens, seeded weights, int4.",
        "Every step is a process of its own; they follow each other. The reference is transformers' forward pass.",
        "",
        "| export | bf16 GB | file GB | bits a weight | conversion | peak GB (predicted) | reference | peak GB | check "
        "| peak GB | largest peak, times bf16 | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in sorted(record.items()):
        half, steps = found["half_bytes"], [found[step] for step in ("conversion", "reference", "check")]
        seconds, peaks = [f"{step['seconds']:.0f} s" for step in steps], [step["peak_bytes"] for step in steps]
        lines.append(
            f"| {name} | {half / 1e9:.2f} | {found['bytes'] / 1e9:.2f} | {found['average_bits']:.2f} "
            f"| {seconds[0]} | {peaks[0] / 1e9:.2f} ({found['predicted_bytes'] / 1e9:.2f}) "
            f"| {seconds[1]} | {peaks[1] / 1e9:.2f} | {seconds[2]} | {peaks[2] / 1e9:.2f} "
            f"| {max(peaks) / half:.2f} (limit {LIMIT}) | {found['error']:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
