"""`export --precision mixed`: what is in the bundle is what was tuned, said as read back; bad input is one line and exit 2."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.check import verify as verifier
from snapgen_deploy.checkpoint import checkpoint_state, open_checkpoint, save_checkpoint
from snapgen_deploy.checkpoint.networks import load_student
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.export.coreml.palettes import table_of
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.job import checked, drawn
from snapgen_deploy.models import ElasticDiT
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.quantise import executors, stage
from snapgen_deploy.quantise.layers import layers_of
from snapgen_deploy.quantise.memory import predicted_peak
from snapgen_deploy.quantise.recipe import recipes_root
from snapgen_deploy.system.child import peak_bytes, run_in_child
from tests.cli.conftest import in_this_process, invoke
from tests.quantise.quantise_cases import tiny_checkpoint, tiny_config

OPTIONS = ("--device", "iphone16pm", "--target", "coreml", "--precision", "mixed", "--width", "full", "--threads", 1)
QUICK = ("--tune-iterations", 5, "--calibration-pictures", 16, "--fidelity-samples", 6)


@pytest.fixture(scope="module")
def student_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is nothing but a student: one component to convert."""
    whole = tiny_config()
    student = replace(whole.student, depths=(1, 1, 1), blocks=2)
    config = replace(whole, student=student, decoder=None, text_encoder=None)
    torch.manual_seed(0)
    elastic = ElasticDiT(config.student)
    for tensor in elastic.tensors.values():
        torch.nn.init.normal_(tensor, std=0.05 if tensor.ndim < 2 else tensor[0].numel() ** -0.5)
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_checkpoint(checkpoint_state(elastic, None, None), config, path, license="MIT")
    return path


@pytest.mark.parametrize("key", ["coreml", "onnx:cpu"])
def test_a_bundle_says_what_its_file_holds_and_computes_what_was_tuned(
    key: str, student_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch, modules=(drawn, checked, verifier))  # the recipe has a child of its own all the same
    options = (*OPTIONS[:3], key, *OPTIONS[4:])
    arguments = ("export", *options, *QUICK, "--checkpoint", student_only, "--bits", 4.3)
    done = invoke(*arguments, "-o", tmp_path)
    assert done.exit_code == 0, done.output
    bundle = tmp_path / "tiny-test-iphone16pm"
    manifest = json.loads((bundle / "manifest.json").read_text())
    target = manifest["targets"][key]
    assert target["precision"] == "mixed"
    config = open_checkpoint(student_only).config
    plan = make_plan(config, load_profile("iphone16pm"), width="full", targets=[key], precision="mixed")
    inherited, _ = run_in_child("nothing", peak_bytes)  # the tests' server holds more imports than an export's
    peak = open_bundle(bundle).run()["recipe_peak_bytes"]
    assert 100e6 < inherited <= peak < inherited + predicted_peak(config, "full", plan.latent)

    mixed, recipe = target["mixed"], target["mixed"]["recipe"]
    file = bundle / target["components"]["student"]["path"]
    stored = {name: w for name, w in target_of(key)[0].weights(file).items() if w.index_bits}
    layers = layers_of(load_student(open_checkpoint(student_only), "full"))
    assert mixed["layers"] == {name: w.index_bits for name, w in stored.items()}
    assert len(stored) >= len(layers)  # onnx holds the compression of keys and values in two parts each
    assert mixed["weights"] == sum(m.weight.numel() for m in layers.values())
    assert 4.0 <= mixed["average_bits"] <= recipe["average_bits"] + 1e-6 < 4.3 + 2e-6
    assert mixed["average_bits"] < mixed["average_bits_with_tables"] < mixed["average_bits_of_all"] < 16
    assert set(recipe["sensitivities"]) == set(layers)
    assert recipe["tune_iterations"] == 5
    assert (bundle / "mixed" / "tuning.png").is_file()

    gates = {g["name"]: g for g in manifest["gates"]}
    assert gates["error_to_tuned"]["verdict"] == "passed"
    assert 0 < gates["error_to_tuned"]["value"] < gates["relative_error"]["value"]
    assert invoke("verify", bundle).exit_code == 0

    again = invoke(*arguments, "-o", tmp_path / "again", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["run"]["cached"] is True
    for name in ("manifest.json", "SHA256SUMS"):
        assert (tmp_path / "again" / bundle.name / name).read_bytes() == (bundle / name).read_bytes()
    assert len(list(recipes_root().glob("recipe-*"))) == 1


def test_tables_hold_every_value_of_large_half_precision_arrays() -> None:
    """NumPy 2.4.6 sorts large float16 arrays wrongly on some processors."""
    values = np.unique(np.random.default_rng(0).standard_normal(256).astype(np.float16).astype(np.float32)).astype(np.float16)
    weight = np.random.default_rng(1).choice(values, (512, 512))
    table, indices = table_of(weight)
    assert table.dtype == np.float16
    assert len(table) == 256
    assert np.array_equal(table[indices].reshape(weight.shape), weight)
    assert len(table_of(weight[:1, :5])[0]) == 8
    with pytest.raises(RuntimeError, match="a palette holds 256"):
        table_of(np.arange(300, dtype=np.float16))


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "bits beyond the range": ((*OPTIONS, "--bits", 9), "--bits: got 9, expected 3 to 8"),
    "bits that are no number": ((*OPTIONS, "--bits", "nan"), "--bits: got nan"),
    "bits without mixed precision": (("--device", "iphone16pm", "--bits", 4.3), "--bits belongs to mixed precision"),
    "another target": (
        ("--device", "android-mid", "--target", "executorch", "--precision", "mixed"),
        "choose --target coreml or onnx:cpu, which have it",
    ),
    "fewer bits than ONNX has": (("--device", "server", "--precision", "mixed", "--bits", 3.5), "choose 4 to 8"),
    "an unknown executor": ((*OPTIONS, "--executor", "ssh:box"), "expected here, processes:N or dask://host:port"),
    "too few pictures": ((*OPTIONS, "--calibration-pictures", 3), "got 3, expected 16 to 100000"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    arguments, says = BAD[case]
    done = invoke("export", *arguments, "-o", tmp_path / "out", "--dry-run")
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.output.split())


def test_bad_prompts(student_only: Path, tmp_path: Path) -> None:
    few, texts = tmp_path / "few.txt", tiny_checkpoint(tmp_path).path
    few.write_text("a red ring\na blue ring\n")
    for checkpoint, options, says in (
        (texts, (), "needs 16 or more different calibration prompts, the checkpoint tiny.safetensors has 4"),
        (texts, ("--calibration", few), f"{few} has 2"),
        (texts, ("--calibration", tmp_path / "none.txt"), "cannot be read"),
        (student_only, ("--calibration", few), "has no text encoder with a tokenizer"),
    ):
        done = invoke("export", *OPTIONS, "--checkpoint", checkpoint, *options, "--dry-run")
        assert done.exit_code == 2, done.output
        assert says.replace(" ", "") in "".join(done.output.split())


def test_a_cluster_that_is_not_there_ends_the_export_before_any_work(
    student_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "CONNECTING", 0.5)
    in_this_process(monkeypatch, modules=(stage,))
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        address = f"dask://127.0.0.1:{held.getsockname()[1]}"
        done = invoke("export", *OPTIONS, *QUICK, "--checkpoint", student_only, "--executor", address, "-o", tmp_path)
    assert done.exit_code == 2, done.output
    assert "no Dask scheduler answers" in done.output
    assert not list(tmp_path.iterdir())


def test_dry_run_shows_the_settings() -> None:
    done = invoke("export", *OPTIONS, "--dry-run", "--overwrite", "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    mixed, memory = plan["mixed"], plan["export_memory"]
    assert 480e6 < memory["recipe"] <= memory["predicted_peak_bytes"]
    assert (mixed["bits"], mixed["iterations"], mixed["pictures"], len(mixed["prompts"])) == (4.3, 1000, 256, 256)
    assert "mixed precision: 4.3 bits" in invoke("export", *OPTIONS, "--dry-run", "--overwrite").output
