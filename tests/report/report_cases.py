"""Small bundles, measurements and comparisons made by code: what the report and the exporters are tried on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.bundle.preview import write_preview
from snapgen_deploy.bundle.reader import write_manifest
from snapgen_deploy.latency.results import DeviceKey, Loads, Measurement, Round
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.models.serialise import config_to_dict
from tests.cli.conftest import tiny_config
from tests.manifests import files_of

PROMPTS = ("a red ring left of a blue square", "a small cyan diamond above a large orange circle on a navy background")
TARGETS = ("coreml", "executorch:xnnpack", "onnx:cpu")
COLOURS = ((196, 62, 52), (44, 102, 173), (226, 148, 52), (60, 140, 96))


def config() -> ModelConfig:
    return replace(tiny_config(), name="shapes", prompts=PROMPTS)


def picture(index: int, noise: int = 0) -> np.ndarray:
    """A disc on a background."""
    y, x = np.mgrid[0:64, 0:64]
    image = np.full((64, 64, 3), 232 - 90 * (index % 2), dtype=np.int16)
    disc = (x - 22 - 12 * index) ** 2 + (y - 30) ** 2 < (10 + 4 * index) ** 2
    image[disc] = COLOURS[index % 4]
    if noise:
        image += np.random.default_rng(index).integers(-noise, noise + 1, image.shape, dtype=np.int16)
    return np.clip(image, 0, 255).astype(np.uint8)


def gate(target: str, component: str, name: str, value: float | None, limit: float, verdict: str, detail: str = "") -> Any:
    return {
        "target": target, "component": component, "name": name, "value": value, "limit": limit, "verdict": verdict,
        "detail": detail,
    }  # fmt: skip


def component(target: str, role: str, width: str) -> dict[str, Any]:
    scale = {"tiny": 1, "small": 2, "full": 4}[width] if role == "student" else 1
    size = {"student": 60_000, "decoder": 14_000, "text_encoder": 19_000}[role] * scale * (1 if target == "coreml" else 2)
    common = {"path": f"{target}/{role}", "files": {}, "bytes": size, "doc": "", "inputs": [], "outputs": [], "weights": {}}
    common |= {"portable_ops": {}, "lint": {}, "placement": {}, "notes": ["opset: ai.onnx 20"]}
    if target == "coreml":
        ops = {"conv": 38, "mul": 60, "add": 41, "slice_by_index": 24, "softmax": 12, "reshape": 9, "cast": 2}
        return common | {"ops": ops, "lint": {"width-slice": 9, "off-engine": 2}, "weight_dtypes": {"float16": 71}}
    if target == "onnx:cpu":
        ops = {"MatMul": 40, "Add": 28, "Reshape": 13, "Softmax": 6, "Gemm": 3}
        return common | {"ops": ops, "placement": {"CPUExecutionProvider": 90}, "weight_dtypes": {"float": 55, "int64": 3}}
    ops = {"XNNFullyConnected": 40, "XNNMultiply": 37, "XNNAdd": 27, "aten::embedding.out": 1}
    placed = {"XnnpackBackend": 1, "portable": 1}
    outside = {"aten::embedding.out": 1}
    return common | {"ops": ops, "placement": placed, "portable_ops": outside, "weight_dtypes": {"float32": 58}}


def gates_of(key: str, ran: bool, psnr: float) -> list[dict[str, Any]]:
    limits = (2e-2, 40.0) if key == "coreml" else (1e-4, 60.0)
    why = "largest over prompts and steps" if ran else "this host has no runtime for it"
    verdict = "passed" if ran else "not_run"
    found = [
        gate(key, role, "relative_error", limits[0] / 17 if ran else None, limits[0], verdict, why)
        for role in ("text_encoder", "student", "decoder")
    ]
    good = "not_run" if not ran else "passed" if psnr >= limits[1] else "failed"
    return [
        *found,
        gate(key, "pipeline", "psnr", psnr if ran else None, limits[1], good, "dB, least of 2 pictures" if ran else why),
    ]


def make_bundle(
    root: Path, width: str = "full", *, idle: tuple[str, ...] = (), psnr: float = 67.3, changes: dict[str, Any] | None = None
) -> Path:
    """A bundle directory as `export` writes it, without the networks; `idle` targets were not run."""
    root.mkdir(parents=True)
    ran = [t for t in TARGETS if t not in idle]
    columns = {"reference": [picture(i) for i in range(len(PROMPTS))]}
    columns |= {t: [picture(i, 3) for i in range(len(PROMPTS))] for t in ran}
    write_preview(root / "preview.png", PROMPTS, columns)
    gates = [g for t in TARGETS for g in gates_of(t, t in ran, psnr if t == "coreml" else 133.0)]
    if "coreml" in ran:
        line = "add add_25: largest 10014.9 (15.29% of 65504); add add_23: largest 10009.8 (15.28% of 65504)"
        gates.append(gate("coreml", "student", "largest_value", 10100.0, 65504.0, "passed", line))
    targets = {
        t: {
            "precision": "fp16" if t == "coreml" else "fp32",
            "layout": "channels" if t == "coreml" else "token",
            "attention_form": "batched",
            "options": {},
            "components": {role: component(t, role, width) for role in ("text_encoder", "student", "decoder")},
            "versions": {"torch": "2.13.0"},
        }
        for t in TARGETS
    }
    manifest = {
        "schema_version": 1, "generator": "snapgen-deploy 0.1.0", "name": "shapes", "trained": True,
        "device": {"id": "iphone16pm", "name": "iPhone 16 Pro Max", "memory_budget": 3_000_000_000},
        "width": width, "reasons": [f"{width} fits: memory 0.0451 GB (estimate) of 3 GB"], "resolution": [64, 64],
        "latent": {"shape": [4, 8, 8], "mean": [], "std": [], "note": ""},
        "schedule": {"sampler": "euler", "sigmas": [1.0, 0.9, 0.75, 0.5, 0.0], "shift": 3.0, "time_features": {"count": 16}},
        "checkpoint": {"sha256": "628e4443801abe0d" * 4, "license": "Apache-2.0"}, "config": config_to_dict(config()),
        "prompts": list(PROMPTS), "seeds": [0, 1], "target_order": list(TARGETS), "targets": targets, "gates": gates,
        "files": files_of(root),
    }  # fmt: skip
    write_manifest(root, manifest | (changes or {}))
    return root


def make_measurement(
    bundle: str = "shapes-iphone16pm",
    sha256: str = "",
    *,
    width: str = "full",
    backend: str = "onnx:cpu",
    soc: str = "Example CPU 8-core",
    base: float = 40.0,
    rounds: int = 12,
    mode: str = "burst",
    environment: dict[str, str] | None = None,
) -> Measurement:
    rng = random.Random(ascii((backend, width, base)))
    made = []
    for i in range(rounds):
        drift = 1.0 + 0.01 * rng.random()
        valid = i != 5
        slow = 1.0 if valid else 1.35
        text = [0.04 * base * drift * slow * rng.lognormvariate(0, 0.05) for _ in range(12)]
        student = [0.21 * base * drift * slow * rng.lognormvariate(0, 0.03) for _ in range(48)]
        decoder = [0.12 * base * drift * slow * rng.lognormvariate(0, 0.04) for _ in range(12)]
        e2e = [text[q] + sum(student[4 * q : 4 * q + 4]) + decoder[q] for q in range(12)]
        e2e[rng.randrange(12)] *= 1.25
        made.append(
            Round(
                {"text_encoder": tuple(text), "student": tuple(student), "decoder": tuple(decoder), "e2e": tuple(e2e)},
                valid,
                "" if valid else "the canary moved by 35 %",
                (10.0, 10.1 if valid else 13.5),
                {"started_s": str(30.0 * i)},
            )
        )
    return Measurement(
        bundle=bundle, bundle_sha256=sha256, device="iphone16pm", width=width, resolution=(64, 64), steps=4,
        key=DeviceKey(soc, "Linux 6.1", backend, "1.31.1", "fp32", 1, "performance"), profile="quick", mode=mode,
        e2e_is="measured", rounds=tuple(made), loads=Loads(None, 31.2, 24.9), peak_bytes=187_000_000,
        environment={"processor": soc, "cores": "8", "system": "Linux"} | (environment or {}), notes=("plugged in",),
    )  # fmt: skip


def metric(name: str = "e2e_p50", change: float = 0.004, verdict: str = "ok", **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "base_ms": 40.0, "candidate_ms": 40.0 * (1 + change), "change": change, "low": change - 0.006,
        "high": change + 0.006, "detectable": 0.009, "limit": 0.03, "warn": False, "verdict": verdict,
        "rounds": [change, change + 0.001],
    } | changes  # fmt: skip


def guard(name: str = "bytes", verdict: str = "same", detail: str = "") -> dict[str, Any]:
    return {
        "name": name, "component": "onnx:cpu student", "base": "120000", "candidate": "120000", "verdict": verdict,
        "detail": detail,
    }  # fmt: skip


def make_comparison(**changes: Any) -> dict[str, Any]:
    key = {
        "soc": "Example CPU 8-core", "os_build": "Linux 6.1", "backend": "onnx:cpu", "runtime_version": "1.31.1",
        "precision": "fp32", "threads": 1, "power_mode": "performance",
    }  # fmt: skip
    return {
        "schema_version": 1, "kind": "comparison", "base": {"bundle": "shapes-old", "sha256": "a" * 64},
        "candidate": {"bundle": "shapes-iphone16pm", "sha256": "b" * 64}, "target": "onnx:cpu", "key": key,
        "mode": "interleaved", "rounds": 10,
        "self_check": {"rounds": 5, "low": -0.004, "high": 0.005, "detectable": 0.008, "passed": True},
        "metrics": [metric(), metric("student_p50", 0.002)], "guards": [guard(), guard("ops")], "verdict": "ok",
        "notes": [], "commit": "4f2a9c1d00", "created": "2026-03-02T10:15:00+00:00",
    } | changes  # fmt: skip
