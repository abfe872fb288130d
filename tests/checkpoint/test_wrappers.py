"""Checkpoints as training scripts leave them: what stands around the weights, number formats, pointers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from snapgen_deploy.checkpoint import (
    Checkpoint,
    CheckpointPlace,
    load_key_map,
    open_checkpoint,
    read_header,
    save_checkpoint,
    validate,
)
from snapgen_deploy.checkpoint.lora import open_adapter
from snapgen_deploy.checkpoint.networks import load_decoder
from snapgen_deploy.checkpoint.wrappers import Selection
from snapgen_deploy.models.serialise import config_to_dict
from tests.checkpoint.cases import TOKENIZER, refused, tiny_config

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def optimizer() -> dict[str, Any]:
    layer = nn.Linear(2, 2)
    adam = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    adam.step()
    return adam.state_dict()


def placed(folder: Path, content: object, **settings: Any) -> CheckpointPlace:
    path, config = folder / "a.ckpt", folder / "model.json"
    torch.save(content, path)
    config.write_text(json.dumps(config_to_dict(tiny_config())))
    return CheckpointPlace(path, config=config, **settings)


def same(checkpoint: Checkpoint, state: dict[str, Tensor]) -> None:
    validate(checkpoint, values=False)
    assert all(torch.equal(checkpoint.read(n), t) for n, t in state.items())


Around = Callable[[dict[str, Tensor]], object]
AROUND: dict[str, tuple[Around, str]] = {
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3, "global_step": 5}, "state_dict."),
    "model": (lambda s: {"model": s, "optimizer": optimizer(), "step": 7, "lr": 0.1}, "model."),
    "module": (lambda s: {"model": under("module.", s)}, "model.module."),
    "compiled": (lambda s: {"state_dict": under("_orig_mod.", s)}, "state_dict."),
    "lightning": (lambda s: {"state_dict": under("model.", s), "loops": {"a": 1}}, "state_dict.model."),
}


@pytest.mark.parametrize("kind", AROUND)
def test_what_stands_around_weights(kind: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    around, prefix = AROUND[kind]
    checkpoint = placed(tmp_path, around(state)).open()
    same(checkpoint, state)
    assert checkpoint.notes[0].startswith(f"weights: {len(state)} tensors under the prefix '{prefix}'")


def test_averaged_weights_are_asked_for(tmp_path: Path, state: dict[str, Tensor]) -> None:
    mean = {n: t + 1 for n, t in state.items()}
    content = {"model": state, "ema": under("module.", mean), "optimizer": optimizer(), "step": 4}
    place = placed(tmp_path, content)
    line = refused(place.open, "tensors fit under several prefixes", "choose one with --prefix NAME or --ema")
    assert f"'ema.module.' ({len(state)}), 'model.' ({len(state)})" in line
    same(placed(tmp_path, content, selection=Selection(ema=True)).open(), mean)
    checkpoint = placed(tmp_path, content, selection=Selection("model")).open()
    same(checkpoint, state)
    assert "not used: 'ema', 'optimizer', 'step'" in checkpoint.notes[0]
    refused(
        placed(tmp_path, content, selection=Selection("net")).open,
        "no name begins with 'net.'; got 'model.', 'ema.', 'optimizer.'",
    )
    refused(placed(tmp_path, {"model": state}, selection=Selection(ema=True)).open, "has no averaged weights")


def test_compiled_parts_inside_names(tmp_path: Path, state: dict[str, Tensor]) -> None:
    names = {n.replace("student.", "student._orig_mod."): t for n, t in state.items()}
    checkpoint = placed(tmp_path, names).open()
    same(checkpoint, state)
    assert checkpoint.notes == ()


def test_prefixes_of_safetensors_and_key_maps(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path, keys = tmp_path / "a.safetensors", tmp_path / "map.toml"
    foreign = {n.replace("student.", "net."): t for n, t in state.items()}
    save_checkpoint(under("model.", foreign), tiny_config(), path)
    keys.write_text('"net.{rest:*}" = "student.{rest}"')
    same(open_checkpoint(path, keys), state)
    keys.write_text('"model.net.{rest:*}" = "student.{rest}"\n[prefix]\n"model." = ""')  # a map that names it takes care of it
    same(open_checkpoint(path, keys), state)


def test_an_unknown_prefix_is_one_line(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(under("diffusion.", state), tiny_config(), path)
    count = len(state)
    refused(
        lambda: validate(open_checkpoint(path)), f"{count} tensors carry the prefix 'diffusion.'", "add --prefix diffusion."
    )
    same(CheckpointPlace(path, selection=Selection("diffusion.")).open(), state)


def test_doubles(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint({n: t.double() for n, t in state.items()}, tiny_config(), path)
    checkpoint = open_checkpoint(path)
    validate(checkpoint)
    assert all(torch.equal(t, state[f"decoder.{n}"]) for n, t in load_decoder(checkpoint).state_dict().items())
    name = next(iter(state))
    huge = {n: torch.full_like(t.double(), 1e300) if n == name else t for n, t in state.items()}
    save_checkpoint(huge, tiny_config(), path)
    refused(lambda: validate(open_checkpoint(path)), "infinite")  # too large for fp32


def eights(tensor: Tensor, scale: Tensor) -> Tensor:
    return (tensor / scale).to(torch.float8_e4m3fn)


def blocks(tensor: Tensor, scale: Tensor) -> Tensor:
    return scale.repeat_interleave(128, 0)[: tensor.shape[0]].repeat_interleave(128, 1)[:, : tensor.shape[1]]


WIDE = "student.middle.0.ffn.up.weight"  # 192 x 64
SCALED: dict[str, tuple[str, tuple[int, ...]]] = {
    "tensor": ("weight_scale", ()),
    "tensor of one": ("scale_weight", (1,)),
    "row": ("weight_scale", (192, 1)),
    "rows": ("weight_scale", (192,)),
    "blocks": ("weight_scale_inv", (2, 1)),
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("torch_file", [False, True], ids=["safetensors", "pt"])
def test_eight_bits_with_scales(kind: str, torch_file: bool, tmp_path: Path, state: dict[str, Tensor]) -> None:
    leaf, shape = SCALED[kind]
    scale = 0.001 + torch.rand(shape)
    spread = blocks(state[WIDE], scale) if kind == "blocks" else scale.reshape(-1, 1) if len(shape) and shape[0] > 1 else scale
    stored = eights(state[WIDE], spread)
    content = state | {WIDE: stored, WIDE.replace("weight", leaf): scale, WIDE.replace("weight", "input_scale"): torch.ones(1)}
    if torch_file:
        checkpoint = placed(tmp_path, content).open()
    else:
        save_file(content, tmp_path / "a.safetensors")
        checkpoint = CheckpointPlace(tmp_path / "a.safetensors", config=placed(tmp_path, {"a": scale}).config).open()
    validate(checkpoint)
    assert "fp8 with scales, read as fp32: 1 tensor" in checkpoint.notes
    whole = stored.float() * spread
    assert torch.equal(checkpoint.read(WIDE), whole)
    assert torch.equal(checkpoint.read(WIDE, (130, 40)), whole[:130, :40])


def test_eight_bits_without_scales_or_with_others(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    config = placed(tmp_path, {"a": torch.ones(1)}).config
    save_file({n: t.to(torch.float8_e5m2) for n, t in state.items()}, path)
    checkpoint = CheckpointPlace(path, config=config).open()
    refused(lambda: validate(checkpoint, values=False), f"{len(state)} tensors are in fp8 without scales, such as")
    save_file(state | {WIDE: state[WIDE].to(torch.float8_e4m3fn), f"{WIDE}_scale": torch.ones(5)}, path)
    refused(CheckpointPlace(path, config=config).open, "has shape [5] for [192, 64], expected one scale")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.json", "map.toml", "config.json"])
def test_a_pointer_is_said_to_be_one(name: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / name
    save_checkpoint(state, tiny_config(), tmp_path / "model.safetensors", TOKENIZER)
    path.write_text(POINTER)
    readers: dict[str, Callable[[], object]] = {
        "map.toml": lambda: load_key_map(path),
        "config.json": lambda: open_checkpoint(tmp_path),
    }
    refused(readers.get(name, lambda: open_checkpoint(path)), str(path), "got a Git LFS pointer", "git lfs pull")
    if path.suffix == ".safetensors":
        refused(lambda: read_header(path), "Git LFS pointer")
        refused(lambda: open_adapter(path, 1.0), "Git LFS pointer")


def test_a_configuration_of_its_own(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path, config = tmp_path / "a.safetensors", tmp_path / "model.toml"
    save_file(state, path)
    refused(lambda: open_checkpoint(path), "has no configuration", "or name its file with --config")
    config.write_text('student = "no"')
    refused(CheckpointPlace(path, config=config).open, "model.toml: snapgen_config")
    config.write_text("a = 1")
    refused(CheckpointPlace(path, config=config).open, "got the keys a, expected a configuration with student")
    both = tmp_path / "both.json"
    both.write_text(json.dumps({"snapgen_config": config_to_dict(tiny_config()), "license": "MIT"}))
    opened = CheckpointPlace(path, config=both).open()
    assert opened.license == "MIT"
    assert both in opened.files
    assert set(opened.licences.values()) == {"MIT"}
    assert set(CheckpointPlace(path, config=both, license="Apache-2.0").open().licences.values()) == {"Apache-2.0"}
    save_checkpoint(state, tiny_config(), path, license="other")
    refused(CheckpointPlace(path, config=both).open, "its license is not that of the tensors' header; leave out --config")
