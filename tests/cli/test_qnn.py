"""From a checkpoint to a Snapdragon bundle and back: export, generate, verify and doctor on Qualcomm's emulation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.bundle.vectors import port_values
from snapgen_deploy.export.qnn.target import OnnxQnn
from tests.cli.conftest import invoke

MISSING = OnnxQnn().unavailable("qnn")


@pytest.mark.skipif(MISSING is None, reason="the extra is installed")
def test_without_the_extra_one_line_says_what_to_install(checkpoint: Path, tmp_path: Path) -> None:
    done = invoke("export", "--device", "android-mid", "--checkpoint", checkpoint, "-o", tmp_path, "--target", "onnx:qnn")
    assert done.exit_code == 2
    assert "pip install 'snapgen-deploy[qnn]'" in done.output
    assert list(tmp_path.iterdir()) == []
    plan = invoke("export", "--device", "android-mid", "--checkpoint", checkpoint, "--dry-run")
    assert plan.exit_code == 0
    assert "onnx:qnn left out: onnx:qnn needs an extra that is not installed" in plan.output
    assert "executorch:xnnpack" in plan.output


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_snapdragon_bundle_is_exported_drawn_with_and_looked_into(checkpoint: Path, tmp_path: Path) -> None:
    done = invoke(
        "export", "--device", "android-mid", "--checkpoint", checkpoint, "-o", tmp_path, "--target", "onnx:qnn",
        "--width", "tiny", "--threads", 1, "--fidelity-samples", 1,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    bundle = tmp_path / "tiny-test-android-mid"
    manifest = open_bundle(bundle).manifest
    target = manifest["targets"]["onnx:qnn"]
    assert target["precision"] == "w8a16"
    assert target["options"] == {"soc_model": "64", "htp_arch": "73"}
    assert target["versions"]["QNN"]
    for role, component in target["components"].items():
        assert set(component["placement"]) == {"HTP"}
        assert {Path(f).name for f in component["files"]} == {f"{role}.onnx", f"{role}-graph.onnx", f"{role}_qnn.bin"}
        assert component["bytes"] == sum(f["bytes"] for f in component["files"].values())
    gates = {(g["component"], g["name"]): g["verdict"] for g in manifest["gates"]}
    assert gates["pipeline", "psnr"] == gates["student", "nodes_outside_npu"] == "passed"
    idle = {name for (_, name), verdict in gates.items() if verdict != "passed"}
    assert idle <= {"fidelity_score_change"}  # no scorer knows this checkpoint
    run = json.loads((bundle / "export_run.json").read_text())
    assert set(run["targets"]["onnx:qnn"]["compile_seconds"]) == set(target["components"])

    done = invoke("generate", bundle, "--prompt", "a red ring", "--seed", 3, "-o", tmp_path / "out.png")
    assert done.exit_code == 0, done.output
    assert "onnx:qnn" in done.output
    assert Image.open(tmp_path / "out.png").size == (64, 64)
    np.savez(tmp_path / "x.npz", **port_values(open_bundle(bundle))["decoder"])  # noise would leave the calibrated ranges
    done = invoke("doctor", bundle / "onnx-qnn" / "decoder.onnx", "--layers", "--inputs", tmp_path / "x.npz")
    assert done.exit_code == 0, done.output
    assert "decoder.onnx: no wrong layer" in done.output
    assert invoke("bench", bundle).exit_code == 4
