"""A checkpoint with components from the folders of their libraries in the place of its own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from snapgen_deploy.checkpoint import CheckpointPlace, embedded_path
from snapgen_deploy.checkpoint.library import open_library_folder
from snapgen_deploy.errors import BadInput


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "clip"
    root.mkdir()
    (root / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModel"]}))
    save_file({"a": torch.zeros(2)}, root / "model.safetensors")
    return root


def test_a_stream_can_stay_empty() -> None:
    opened = CheckpointPlace(None, without=("text",)).open()
    assert opened.config.text_encoder is None
    assert opened.config.absent_streams == ("text",)
    assert opened.tokenizers == {}
    assert {name.partition(".")[0] for name in opened.tensors} == {"student", "decoder"}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (CheckpointPlace(None, without=("llm",)), "no such text stream; it has text"),
        (CheckpointPlace(None, without=("text", "text")), "got 2 times, expected one folder or none"),
        (CheckpointPlace(None, text_encoders=(("text", Path("/nowhere")),)), "not a folder; give one with config.json"),
        (CheckpointPlace(None, decoder=Path("/nowhere")), "decoder /nowhere: not a folder"),
    ],
)
def test_what_is_refused(place: CheckpointPlace, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        place.open()


def test_a_library_folder(folder: Path) -> None:
    opened = open_library_folder(folder, "text encoder")
    assert opened.config == {"architectures": ["CLIPTextModel"]}
    assert [f.name for f in opened.files] == ["model.safetensors", "config.json"]
    assert opened.stored["a"].info.shape == (2,)


def test_a_library_folder_in_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    opened = open_library_folder(folder, "text encoder")
    assert set(opened.stored) == {"a"}
    assert index in opened.files


def test_two_sets_of_weights_are_refused(folder: Path) -> None:
    save_file({"a": torch.ones(2)}, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(BadInput, match="two sets of weights"):
        open_library_folder(folder, "text encoder")


def test_other_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"got pytorch_model.bin, expected model.safetensors or"):
        open_library_folder(folder, "text encoder")


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The embedded checkpoint as the student of a pipeline in diffusers' layout."""
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "diffusion_pytorch_model.safetensors").symlink_to(embedded_path())
    (tmp_path / "scheduler").mkdir()
    write_scheduler(tmp_path, shift=CheckpointPlace(None).open().config.shift)
    index = {"_class_name": "SnapGenPipeline", "student": ["snapgen_deploy", "ElasticDiT"], "vae": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return tmp_path


def write_scheduler(root: Path, **settings: object) -> None:
    said = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0} | settings
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))


def test_a_folder_in_the_layout_of_diffusers(pipeline: Path) -> None:
    opened = CheckpointPlace(pipeline).open()
    assert opened.config == CheckpointPlace(None).open().config
    names = ["diffusion_pytorch_model.safetensors", "model_index.json", "scheduler_config.json"]
    assert [file.name for file in opened.files] == names


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shift": 1.5}, "got shift 1.5, the student's configuration says 3"),
        ({"_class_name": "DDIMScheduler"}, "got the class DDIMScheduler, expected FlowMatchEuler"),
        ({"use_dynamic_shifting": True}, "got use_dynamic_shifting, expected a constant shift"),
    ],
)
def test_another_schedule_is_refused(pipeline: Path, settings: dict[str, object], said: str) -> None:
    write_scheduler(pipeline, **settings)
    with pytest.raises(BadInput, match=said):
        CheckpointPlace(pipeline).open()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "got none, expected one of student, transformer, unet"),
        (
            {"student": ["a", "A"], "text_encoder": ["transformers", "CLIPTextModel"]},
            "names 'text_encoder', which is no folder",
        ),
    ],
)
def test_an_index_that_does_not_fit_is_refused(pipeline: Path, index: dict[str, object], said: str) -> None:
    (pipeline / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=said):
        CheckpointPlace(pipeline).open()


def test_more_text_encoders_than_streams_are_refused(pipeline: Path) -> None:
    index = json.loads((pipeline / "model_index.json").read_text())
    for name in ("text_encoder", "text_encoder_2"):
        (pipeline / name).mkdir()
        index[name] = ["transformers", "CLIPTextModel"]
    (pipeline / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match="has 2 text encoders, the student has 1 text streams"):
        CheckpointPlace(pipeline).open()
