from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from snapgen_deploy.checkpoint import Checkpoint, open_checkpoint, read_header, save_checkpoint, save_sharded, validate
from snapgen_deploy.checkpoint.networks import load_decoder, load_student, load_text_encoder, widths_of
from snapgen_deploy.families.registry import student_types
from snapgen_deploy.models import PRESETS, ElasticDiT
from snapgen_deploy.models.serialise import config_from_json, config_to_dict, config_to_json
from snapgen_deploy.system.child import peak_bytes, run_in_child
from tests.checkpoint.cases import TOKENIZER, refused, tiny_config


def same(checkpoint: Checkpoint, state: dict[str, Tensor]) -> bool:
    return set(checkpoint.tensors) == set(state) and all(torch.equal(checkpoint.read(n), t) for n, t in state.items())


def test_one_file(saved: Path, state: dict[str, Tensor]) -> None:
    checkpoint = open_checkpoint(saved)
    assert (checkpoint.config, checkpoint.tokenizer, checkpoint.license) == (tiny_config(), TOKENIZER, "Apache-2.0")
    assert same(checkpoint, state)
    validate(checkpoint)


def test_the_library_reads_it(saved: Path, state: dict[str, Tensor]) -> None:
    with safe_open(str(saved), framework="pt") as file:
        assert set(file.keys()) == set(state)
        assert all(torch.equal(file.get_tensor(n), t) for n, t in state.items())


def test_same_bytes_every_time(saved: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_checkpoint(dict(reversed(state.items())), tiny_config(), again, TOKENIZER, "Apache-2.0")
    assert again.read_bytes() == saved.read_bytes()
    assert open_checkpoint(again).sha256() == open_checkpoint(saved).sha256()


def test_shards(tmp_path: Path, state: dict[str, Tensor]) -> None:
    shards = save_sharded(state, tiny_config(), tmp_path, 60_000)
    assert len(shards) > 3
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert same(open_checkpoint(path), state)
    validate(open_checkpoint(tmp_path))


@pytest.mark.parametrize("nested", [False, True])
def test_torch_file_with_config_beside(tmp_path: Path, state: dict[str, Tensor], nested: bool) -> None:
    torch.save({"student": {n[8:]: t for n, t in state.items() if n.startswith("student.")}} | {
        n: t for n, t in state.items() if not n.startswith("student.")
    } if nested else state, tmp_path / "a.pt")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"snapgen_config": config_to_dict(tiny_config()), "license": "MIT"}))
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    assert same(checkpoint, state)
    assert checkpoint.license == "MIT"


@pytest.mark.parametrize("width", ["tiny", "small", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_slices_are_the_elastic_networks(
    tmp_path: Path, model: tuple[ElasticDiT, dict[str, Tensor]], width: str, dtype: torch.dtype
) -> None:
    elastic, state = model
    save_checkpoint({n: t.to(dtype) for n, t in state.items()}, tiny_config(), tmp_path / "x.safetensors")
    student = load_student(open_checkpoint(tmp_path / "x.safetensors"), width)
    expected = {n: t.to(dtype).float() for n, t in elastic.sliced(width).items()}
    got = student.state_dict()
    assert set(got) == set(expected)
    assert all(t.dtype == torch.float32 and torch.equal(t, expected[n]) for n, t in got.items())
    assert not student.training


def test_decoder_and_text_encoder(saved: Path, state: dict[str, Tensor]) -> None:
    checkpoint = open_checkpoint(saved)
    before = torch.random.get_rng_state()
    decoder, encoder = load_decoder(checkpoint), load_text_encoder(checkpoint)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(t, state[f"decoder.{n}"]) for n, t in decoder.state_dict().items())
    assert all(torch.equal(t, state[f"text_encoder.{n}"]) for n, t in encoder.state_dict().items())
    assert decoder.mean.flatten().tolist() == [0.5, 0.0, -0.5, 1.0]
    assert decoder(torch.zeros(1, 4, 2, 2)).shape == (1, 3, 16, 16)


def test_absent_components(tmp_path: Path, state: dict[str, Tensor]) -> None:
    config = dataclasses.replace(tiny_config(), decoder=None, text_encoder=None)
    path = tmp_path / "x.safetensors"
    save_checkpoint({n: t for n, t in state.items() if n.startswith("student.")}, config, path)
    checkpoint = open_checkpoint(path)
    validate(checkpoint)
    refused(lambda: load_decoder(checkpoint), "no decoder")
    refused(lambda: load_text_encoder(checkpoint), "no text encoder")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_configuration_round_trip(preset: str) -> None:
    config = PRESETS[preset]()
    assert config_from_json(config_to_json(config), student_types()) == config


def test_a_width_without_tensors(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    save_checkpoint({n: t for n, t in state.items() if not n.endswith("@tiny")}, tiny_config(), path)
    checkpoint = open_checkpoint(path)
    assert widths_of(checkpoint) == ("small", "full")
    for width in ("tiny", "huge"):
        refused(lambda w=width: load_student(checkpoint, w), repr(width), "small, full")


@pytest.mark.parametrize("length", [640, 896, 1024, 1280])
def test_header_lengths_that_look_like_pickle(tmp_path: Path, length: int) -> None:
    """640 is 80 02 in little-endian, as a protocol 2 pickle begins."""
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text.ljust(length) + bytes(4))
    assert read_header(path).tensors["a"].shape == (1,)


def test_the_embedded_checkpoint() -> None:
    checkpoint = open_checkpoint(None)
    validate(checkpoint)
    assert checkpoint.config.name == "shapes"
    assert widths_of(checkpoint) == ("tiny", "small", "full")
    assert load_student(checkpoint, "tiny").width == "tiny"


def read_a_corner(path: Path) -> int:
    """How many bytes reading 2 MB adds to the peak memory of this process."""
    checkpoint = open_checkpoint(path)
    before = peak_bytes()
    part = checkpoint.read("student.big", (256, 2048))
    assert part.shape == (256, 2048)
    assert part.is_contiguous()
    assert part.untyped_storage().nbytes() == 256 * 2048 * 4
    return peak_bytes() - before


def test_slices_read_only_their_bytes(tmp_path: Path) -> None:
    """A sparse file that claims 512 MB: reading 2 MB of it may not cost more than a few times that."""
    rows, bytes_all = 65536, 65536 * 2048 * 4
    entry = {"dtype": "F32", "shape": [rows, 2048], "data_offsets": [0, bytes_all]}
    header = json.dumps({"__metadata__": {"snapgen_config": config_to_json(tiny_config())}, "student.big": entry}).encode()
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + bytes_all)
    assert run_in_child("a corner", read_a_corner, path)[0] < 64e6 < bytes_all / 8


def test_what_a_checkpoint_says_of_itself_may_stand_in_two_places(tmp_path: Path, state: dict[str, Tensor]) -> None:
    folder, beside = tmp_path / "c", tmp_path / "c" / "config.json"
    document = config_to_dict(tiny_config())
    save_sharded(state, tiny_config(), folder, 60_000)
    plain = open_checkpoint(folder)
    beside.write_text(json.dumps({"snapgen_config": document, "tokenizer": json.loads(TOKENIZER), "license": "MIT"}))
    opened = open_checkpoint(folder)
    assert opened.tokenizer is not None
    assert json.loads(opened.tokenizer) == json.loads(TOKENIZER)
    assert (opened.config, opened.license) == (tiny_config(), "MIT")
    assert opened.sha256() != plain.sha256()  # what is in config.json counts

    save_checkpoint(state, tiny_config(), tmp_path / "model.safetensors", TOKENIZER, "MIT")
    (tmp_path / "config.json").write_text(json.dumps({"snapgen_config": document}))
    whole = open_checkpoint(tmp_path)
    assert (whole.tokenizer, whole.license, whole.files) == (TOKENIZER, "MIT", (tmp_path / "model.safetensors",))
    (tmp_path / "config.json").write_text(json.dumps({"license": "Apache-2.0"}))
    refused(lambda: open_checkpoint(tmp_path), "config.json: its license is not that of the tensors' header")


def test_a_config_json_of_another_checkpoint_is_not_taken(tmp_path: Path, state: dict[str, Tensor]) -> None:
    other = config_to_dict(dataclasses.replace(tiny_config(), steps=7))
    save_checkpoint(state, tiny_config(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"snapgen_config": other, "tokenizer": TOKENIZER}))
    assert open_checkpoint(tmp_path / "model.safetensors").tokenizer is None  # named itself: the folder may hold others
    refused(lambda: open_checkpoint(tmp_path), "config.json: its snapgen_config is not that of the tensors' header")
    (tmp_path / "config.json").write_text('{"architectures": ["T5"]}')
    assert open_checkpoint(tmp_path).config == tiny_config()


def test_shards_of_two_checkpoints(tmp_path: Path, state: dict[str, Tensor]) -> None:
    shards = save_sharded(state, tiny_config(), tmp_path, 60_000)
    save_sharded(state, dataclasses.replace(tiny_config(), steps=8), tmp_path / "other", 60_000)
    shards[1].write_bytes((tmp_path / "other" / shards[1].name).read_bytes())
    refused(lambda: open_checkpoint(tmp_path), shards[1].name, "its snapgen_config is not that of the shards before it")


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"shift": 1e-20}, "shift: got 1e-20, expected a finite number, 0.001 to 1000"),
        ({"shift": 1e300}, "shift: got 1e+300"),
        ({"prompts": ["a ring", "\ud800"]}, "prompts[1]: got '\\ud800', expected text without lone surrogates"),
    ],
)
def test_values_that_no_export_survives(changed: dict[str, object], part: str) -> None:
    document = json.dumps(config_to_dict(tiny_config()) | changed)
    refused(lambda: config_from_json(document, student_types()), part)
