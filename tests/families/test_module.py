"""Students of a user's own class: the package of examples/postcard, opened, held to its golden vectors, written for targets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from snapgen_deploy.asked import AskedModel
from snapgen_deploy.check.golden import GoldenTask, hold_reference
from snapgen_deploy.checkpoint import Checkpoint, CheckpointPlace, validate
from snapgen_deploy.checkpoint.networks import load_component
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import Spelling
from snapgen_deploy.families.registry import components_of, student_types
from snapgen_deploy.golden.vectors import open_golden, refuse_without_vectors
from snapgen_deploy.job.convert import unconverted
from snapgen_deploy.latency.estimate.cost import total
from snapgen_deploy.latency.estimate.cost_components import NoCosts, picture_costs
from snapgen_deploy.models.module_config import ClassRecord, ModuleStudent, module_student_of
from snapgen_deploy.models.serialise import config_from_json, config_to_json
from snapgen_deploy.sparse import Layout, OpForm
from snapgen_deploy.system.files import sha256_of
from tests.cli.conftest import invoke
from tests.own_module import EXAMPLE, POSTCARD, example_paths

WAYS: tuple[tuple[Layout, OpForm], ...] = (
    ("token", "native"), ("token", "spelled"), ("token", "half"), ("channels", "spelled"),
)  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the example writes; its package is installed meanwhile."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*example_paths(tmp_path_factory.mktemp("site")), *sys.path])
        from postcard_student.write import write

        write(folder)
        yield folder


@pytest.fixture(scope="module")
def place(desk: Path) -> CheckpointPlace:
    return CheckpointPlace(desk / "postcard.safetensors", config=desk / "postcard.json", module=POSTCARD)


@pytest.fixture(scope="module")
def opened(place: CheckpointPlace) -> Checkpoint:
    return place.open()


def test_it_is_opened_with_its_record(opened: Checkpoint) -> None:
    validate(opened)
    student = module_student_of(opened.config.student)
    source = EXAMPLE / "src/postcard_student/network.py"
    assert student.code == ClassRecord(POSTCARD, "postcard-student", "0.1.0", sha256_of(source))
    assert source in opened.files  # so that a change of the code is another checkpoint
    assert (opened.config.family, opened.config.shift, opened.config.resolution) == ("module", 3.0, (64, 64))


def test_what_a_bundle_says_builds_nothing(opened: Checkpoint) -> None:
    again = config_from_json(config_to_json(opened.config), student_types())
    assert type(again.student) is ModuleStudent
    assert config_to_json(again) == config_to_json(opened.config)
    spec = components_of(again).denoiser
    with pytest.raises(BadInput, match="its class is named with --module package.module:Class; no checkpoint and no bundle"):
        spec.build("full")


def test_its_speed_is_estimated_where_it_can_be_built(opened: Checkpoint) -> None:
    for target in ("executorch:xnnpack", "onnx:cpu"):
        (costs,) = picture_costs(opened.config, "full", (64, 64), target).values()
        assert total(costs).macs > 2e6
    of_bundle = config_from_json(config_to_json(opened.config), student_types())
    with pytest.raises(NoCosts, match="nothing is known of the student's speed: student: its class is named with --module"):
        picture_costs(of_bundle, "full", (32, 32), "executorch:xnnpack")


def test_reference_and_picture_hold_the_golden_vectors(place: CheckpointPlace, opened: Checkpoint, desk: Path) -> None:
    golden = open_golden(desk / "postcard-golden.safetensors", opened.config)
    refuse_without_vectors(golden, opened.config)
    held = hold_reference(GoldenTask(place, "full", golden, 1, 0.0))
    assert {(g.component, g.verdict) for g in held.gates} == {("student", "passed"), ("pipeline", "passed")}


def test_golden_vectors_are_needed(opened: Checkpoint, desk: Path, tmp_path: Path) -> None:
    said = "no library can check this student; give inputs and outputs of your own code with --golden FILE"
    with pytest.raises(BadInput, match=said):
        refuse_without_vectors(None, opened.config)
    arrays = load_file(desk / "postcard-golden.safetensors")
    save_file({n: t for n, t in arrays.items() if n.startswith("pipeline.")}, tmp_path / "pictures.safetensors")
    with pytest.raises(BadInput, match="has no calls of the student, and " + said):
        refuse_without_vectors(open_golden(tmp_path / "pictures.safetensors", opened.config), opened.config)


def test_golden_vectors_that_do_not_agree_fail(place: CheckpointPlace, opened: Checkpoint, desk: Path, tmp_path: Path) -> None:
    arrays = load_file(desk / "postcard-golden.safetensors")
    arrays["student.velocity"] *= 1.01
    save_file({n: t for n, t in arrays.items() if n.startswith("student.")}, tmp_path / "other.safetensors")
    golden = open_golden(tmp_path / "other.safetensors", opened.config)
    (gate,) = hold_reference(GoldenTask(place, "full", golden, 1, 0.0)).gates
    assert (gate.name, gate.verdict, round(gate.value or 0.0, 4)) == ("golden_error", "failed", 0.0099)


def test_the_command_line(desk: Path, tmp_path: Path) -> None:
    config = ("--module", POSTCARD, "--config", desk / "postcard.json")
    refused = invoke("export", "--device", "iphone16pm", "--checkpoint", desk / "postcard.safetensors", *config, "-o", tmp_path)
    assert "student: no licence is stated" in " ".join(refused.output.split())
    stated = ("--checkpoint", desk / "postcard.safetensors", *config, "--license", "Apache-2.0")
    refused = invoke("export", "--device", "iphone16pm", *stated, "-o", tmp_path)
    assert refused.exit_code == 2
    assert "error: golden vectors: got none, and no library can check this student" in " ".join(refused.output.split())
    arrays = load_file(desk / "postcard-golden.safetensors")
    arrays["pipeline.latent"] += 0.1
    save_file({n: t for n, t in arrays.items() if n.startswith("pipeline.")}, tmp_path / "other.safetensors")
    failed = invoke("inspect", desk / "postcard.safetensors", *config, "--golden", tmp_path / "other.safetensors", "--json")
    assert failed.exit_code == 1
    assert [g["verdict"] for g in json.loads(failed.stdout)["golden"]["gates"]] == ["failed"]


def test_every_layout_computes_what_the_module_does(opened: Checkpoint, desk: Path) -> None:
    spec, network = components_of(opened.config).denoiser, load_component(opened, "student", "full")
    cases = open_golden(desk / "postcard-golden.safetensors", opened.config).cases["student"]
    for rows, ways in ((1, WAYS), (2, WAYS[1:2])):
        inputs, outputs = next(cases.rows(rows))
        given, expected = [torch.from_numpy(v) for v in inputs.values()], torch.from_numpy(outputs["velocity"])
        for layout, ops in ways:
            written = spec.rewrite(network, (8, 8), Spelling(layout, ops, None, "dense", batch=rows))
            with torch.no_grad():
                got = written(*given)
            assert float((got - expected).norm() / expected.norm()) < 1e-6, (layout, ops)


def test_a_module_that_fails_is_one_line(opened: Checkpoint) -> None:
    spec, network = components_of(opened.config).denoiser, load_component(opened, "student", "full")
    said = "student: forward of Postcard fails on its inputs (Attempting to broadcast a dimension of length 16"
    with pytest.raises(BadInput) as caught:  # its table of positions is of one size
        spec.rewrite(network, (16, 16), Spelling("token", "native", None, "dense"))
    assert str(caught.value).startswith(said), caught.value


def test_the_operator_that_does_not_convert_is_named() -> None:
    said = "the operator {} is not converted; the general passes (docs/students.md) have no other form of it"
    inner = RuntimeError("No ONNX function found for <OpOverload(op='aten._linalg_svd', overload='default')>")
    outer = RuntimeError("student -> onnx:cpu: Failed to convert the exported program")
    outer.__cause__ = inner
    assert unconverted(outer) == said.format("aten._linalg_svd")
    assert unconverted(RuntimeError("Unsupported fx node fft_fft2, kind fft_fft2")) == said.format("fft_fft2")
    assert unconverted(RuntimeError("Operator torch._ops.aten.polar.default is not in")) == said.format("aten.polar")
    assert unconverted(ValueError("no\nidea")) == "is not converted (no)"


Change = dict[str, Any]
STUDENT_CHANGES: list[tuple[Change, str]] = [
    ({"arguments": {"hiden": 64}}, "student: Postcard takes no such arguments (Postcard.__init__() got an unexpected keyword"),
    ({"arguments": {"hidden": "wide"}}, "student: Postcard takes no such arguments ("),
    ({"inputs": {"latent": "x", "time_features": "when"}}, "forward of Postcard cannot be called with x, when ("),
    ({"inputs": {"latent": "x"}}, "inputs: time_features is missing"),
    ({"inputs": {"latent": "x", "time_features": "t", "txt": "prompt"}}, "inputs: 'txt' is no input, expected one of latent,"),
    ({"inputs": {"latent": "x", "time_features": "x"}}, "inputs: 'x' is given twice"),
    ({"time_module": "time.sinusoids"}, "time_module: Postcard has no module 'time.sinusoids'"),
    ({"scheduler": {"_class_name": "DDIMScheduler"}}, "scheduler: _class_name: got 'DDIMScheduler', expected one of"),
    ({"code": {"module": "os:system"}}, "student.code: is written by exports, expected none; the class is named with --module"),
    ({"time_features": 63}, "student.time_features: got 63"),
]


@pytest.mark.parametrize(("change", "said"), STUDENT_CHANGES, ids=[said[:40] for _, said in STUDENT_CHANGES])
def test_bad_configurations_are_one_line(change: Change, said: str, desk: Path, tmp_path: Path) -> None:
    data = json.loads((desk / "postcard.json").read_text())
    data["student"] |= change
    (tmp_path / "changed.json").write_text(json.dumps(data))
    place = CheckpointPlace(desk / "postcard.safetensors", config=tmp_path / "changed.json", module=POSTCARD)
    with pytest.raises(BadInput) as caught:
        place.open()
    assert said in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_one_line(desk: Path, tmp_path: Path) -> None:
    state = load_file(desk / "postcard.safetensors")
    state["text.wait"] = state.pop("text.weight")
    state["patch.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "other.safetensors")
    opened = CheckpointPlace(tmp_path / "other.safetensors", config=desk / "postcard.json", module=POSTCARD).open()
    with pytest.raises(BadInput) as caught:
        validate(opened)
    for said in ("3 problems", "missing 'student.text.weight'", "extra 'student.text.wait'", "got shape [3], expected [64]"):
        assert said in str(caught.value)


def test_options_that_do_not_go_together(desk: Path) -> None:
    weights, config = desk / "postcard.safetensors", desk / "postcard.json"
    cases = [
        (None, AskedModel(module=POSTCARD, config=config), "has no weights; give the file with --checkpoint"),
        (weights, AskedModel(module=POSTCARD), "has no configuration; name its file with --config"),
        (weights, AskedModel(module=POSTCARD, config=config, family="unet"), "is of family module, got --family unet"),
        (weights, AskedModel(module=POSTCARD, config=config, key_map=config), "--key-map: does not go with --module"),
        (weights, AskedModel(config=config), "family module: name the class with --module package.module:Class"),
        (weights, AskedModel(config=config, family="module"), "name the class with --module package.module:Class"),
        (weights, AskedModel(module="postcard_student.network:math", config=config), "has no class math"),
        (weights, AskedModel(module="safetensors:SafetensorError", config=config), "is a class, but no torch.nn.Module"),
    ]
    for path, asked, said in cases:
        with pytest.raises(BadInput) as caught:
            CheckpointPlace.of(path, asked).open()
        assert said in str(caught.value), caught.value
