from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact, Role
from snapgen_deploy.export.onnx.optimum_layout import arrange, load, scheduler_config, unshifted
from snapgen_deploy.export.onnx.target import Onnx
from tests.export.conftest import Exported
from tests.export.onnx_cases import CONFIG, decoder, student, text_encoder

pytest.importorskip("optimum.onnxruntime")
FOLDERS = (("student", "transformer"), ("decoder", "vae_decoder"), ("text_encoder", "text_encoder"))
COMPONENTS = {"student": student, "decoder": decoder, "text_encoder": text_encoder}
TARGET = Onnx()


def tokenizer_json() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "red": 2, "ring": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=6)
    text: str = tokenizer.to_str()
    return text


OPTIONS = {"student": {"optimize": "optimum"}, "decoder": {"external_data_bytes": "2000"}, "text_encoder": {}}


def artifact_of(role: Role, directory: Path, exported: Exported) -> Artifact:
    """A copy of an exported component in `directory`."""
    made = exported(COMPONENTS[role], OPTIONS[role])
    shutil.copytree(made.path.parent, directory, dirs_exist_ok=True)
    return replace(made, path=directory / made.path.name, files=tuple(directory / f.name for f in made.files))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, exported):
    directory = tmp_path_factory.mktemp("server")
    artifacts = {role: artifact_of(role, directory, exported) for role in COMPONENTS}
    return directory, arrange(directory, artifacts, CONFIG, {"text_encoder": tokenizer_json()}, width="full")


def test_every_file_is_where_optimum_looks_for_it(bundle):
    directory, arranged = bundle
    files = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    assert files == {
        "model_index.json",
        "pipeline.py",
        "philox.py",
        "server_loop.py",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "text_encoder/model.onnx",
        "text_encoder/config.json",
        "transformer/model.onnx",
        "transformer/config.json",
        "transformer/ort_config.json",
        "vae_decoder/model.onnx",
        "vae_decoder/model.onnx_data",
        "vae_decoder/config.json",
    }
    for role, folder in FOLDERS:
        assert arranged[role].path == directory / folder / "model.onnx"
        assert set(arranged[role].files) == set((directory / folder).iterdir())


@pytest.mark.parametrize(("role", "folder"), FOLDERS)
def test_optimum_and_the_target_both_run_the_folder(role, folder, bundle):
    directory, arranged = bundle
    component = COMPONENTS[role]()
    inputs = {p.name: t for p, t in zip(component.inputs, component.example, strict=True)}
    with torch.no_grad():
        expected = component.module(*component.example).numpy()
    name = component.outputs[0].name
    through_optimum = load(directory, folder)(**inputs)[name].numpy()
    through_target = TARGET.open(arranged[role].path, threads=1)({k: v.numpy() for k, v in inputs.items()})[name]
    for got in (through_optimum, through_target):
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_transformers_reads_the_tokenizer_and_the_configurations(bundle):
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

    directory, _ = bundle
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "tokenizer")
    assert tokenizer("red ring", padding="max_length")["input_ids"] == [2, 3, 0, 0, 0, 0]
    assert (tokenizer.pad_token, tokenizer.model_max_length) == ("[PAD]", 6)
    config = PretrainedConfig.from_pretrained(directory / "transformer")
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.width) == (64, 8, 4, "full")
    decoding = json.loads((directory / "vae_decoder" / "config.json").read_text())
    assert (decoding["scaling_factor"], decoding["shift_factor"], decoding["latent_channels"]) == (1.0, 0.0, 4)


def test_index_names_a_class_that_exists_for_every_component(bundle):
    import importlib

    directory, _ = bundle
    index = json.loads((directory / "model_index.json").read_text())
    assert index["_class_name"] == "SnapgenPipeline"
    for part in ("transformer", "vae_decoder", "text_encoder", "tokenizer"):
        library, name = index[part]
        assert hasattr(importlib.import_module(library), name)


def test_scheduler_and_levels_agree(bundle):
    directory, _ = bundle
    scheduler = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler == scheduler_config(3.0)
    levels = json.loads((directory / "model_index.json").read_text())["snapgen"]
    assert levels["sigmas"] == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert levels["unshifted_sigmas"] == pytest.approx([1, 0.75, 0.5, 0.25])
    shift = scheduler["shift"]  # what diffusers does with the levels that it is given
    assert [shift * s / (1 + (shift - 1) * s) for s in levels["unshifted_sigmas"]] == pytest.approx(levels["sigmas"][:-1])


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_unshifted_is_the_inverse_of_the_shift(level):
    assert unshifted(3 * level / (1 + 2 * level), 3.0) == pytest.approx(level)


def test_the_same_artifacts_give_the_same_bytes(bundle, tmp_path):
    """Everything but the student and the text encoder, whose export is compared in test_onnx."""
    first, _ = bundle
    artifact = TARGET.export(decoder(), "cpu", "fp32", tmp_path, OPTIONS["decoder"])
    arrange(tmp_path, {"decoder": artifact}, CONFIG, {"text_encoder": tokenizer_json()}, width="full")
    same = [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file() and p.name != "model_index.json"]
    assert len(same) == 9
    assert [p for p in same if (tmp_path / p).read_bytes() != (first / p).read_bytes()] == []


def test_absent_parts_are_left_out(tmp_path):
    artifact = TARGET.export(decoder(), "cpu", "fp32", tmp_path, {})
    arrange(tmp_path, {"decoder": artifact}, CONFIG, {})
    assert not (tmp_path / "tokenizer").exists()
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert set(index) == {"_class_name", "scheduler", "snapgen", "vae_decoder"}
    with pytest.raises(BadInput, match="the layout has no transformer"):
        load(tmp_path, "transformer")


def test_a_foreign_artifact_is_refused_before_anything_moves(tmp_path, exported):
    artifact = artifact_of("text_encoder", tmp_path, exported)
    foreign = Artifact("executorch:xnnpack", "decoder", tmp_path / "decoder.pte", (tmp_path / "decoder.pte",))
    with pytest.raises(BadInput, match=r"decoder\.pte: got an artifact of executorch:xnnpack"):
        arrange(tmp_path, {"text_encoder": artifact, "decoder": foreign}, CONFIG, {})
    assert [p.name for p in tmp_path.iterdir()] == ["text_encoder.onnx"]


def test_what_an_interrupted_run_left_is_replaced(tmp_path):
    """Heavy weights first, light ones after: no stale data file stays beside the new model."""
    for options in ({"external_data_bytes": "2000", "optimize": "optimum"}, {}):
        artifact = TARGET.export(decoder(), "cpu", "fp32", tmp_path, options)
        moved = arrange(tmp_path, {"decoder": artifact}, CONFIG, {})["decoder"]
        assert set(moved.files) == set((tmp_path / "vae_decoder").iterdir())
    assert {p.name for p in moved.files} == {"model.onnx", "config.json"}
