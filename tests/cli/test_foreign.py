"""Checkpoints of others on the command line: names, drafts, LoRA, sizes, licences. Plans only; nothing is exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from snapgen_deploy.checkpoint import CheckpointPlace, open_checkpoint, save_checkpoint, validate
from snapgen_deploy.models.serialise import config_to_dict, config_to_json
from tests.checkpoint.foreign import PIXART_MAP, our_state, pixart_config, pixart_state
from tests.cli.conftest import invoke, tiny_config


@pytest.fixture
def pixart(tmp_path: Path) -> tuple[Path, Path]:
    save_file(pixart_state(our_state(pixart_config())), tmp_path / "pixart.safetensors")
    (tmp_path / "pixart.json").write_text(config_to_json(pixart_config()))
    return tmp_path / "pixart.safetensors", tmp_path / "pixart.json"


def test_from_a_draft_to_a_plan(pixart: tuple[Path, Path], tmp_path: Path) -> None:
    file, config = pixart
    keys = tmp_path / "map.toml"
    drafted = invoke("inspect", file, "--config", config, "--suggest", "-o", keys)
    assert drafted.exit_code == 0, drafted.output
    assert "the draft finds 842 of 842 tensors" in drafted.stderr
    assert invoke("inspect", file, "--config", config, "--suggest").stdout == keys.read_text()
    shown = invoke("inspect", file, "--config", config, "--key-map", keys, "--names")
    assert shown.exit_code == 0, shown.output
    assert "842 of 842 tensors found, 0 not used" in shown.stdout
    assert "student.middle.{0..9}.cross.k.weight  16x16" in shown.stdout
    assert "< transformer_blocks.{8..17}.attn2.to_kv.weight  32x16" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    planned = invoke("export", "--device", "server", "--checkpoint", file, "--config", config, "--key-map", keys, "--dry-run")
    assert planned.exit_code == 2
    assert "student: no licence is stated" in planned.stderr
    assert len(planned.stderr.strip().splitlines()) == 1
    arguments = ("--checkpoint", file, "--config", config, "--key-map", keys, "--license", "MIT", "--dry-run")
    planned = invoke("export", "--device", "server", *arguments)
    assert planned.exit_code == 0, planned.output


def test_names_as_json_and_what_is_missing(pixart: tuple[Path, Path], tmp_path: Path) -> None:
    file, config = pixart
    keys = tmp_path / "map.toml"
    keys.write_text(PIXART_MAP.replace('scale_shift_table" = "student.final', 'table" = "student.final'))
    done = invoke("inspect", file, "--config", config, "--key-map", keys, "--names", "--json")
    assert done.exit_code == 2
    names = json.loads(done.stdout)["names"]
    assert [m["name"] for m in names["missing"]] == ["student.final_table@full"]
    assert names["missing"][0]["near"] == [{"name": "scale_shift_table", "shape": [2, 32], "dtype": "F32"}]
    assert [m["name"] for m in names["unused"]] == ["scale_shift_table"]
    assert names["matched"][0]["theirs"][0]["name"] == "pos_embed.proj.weight"
    text = invoke("inspect", file, "--config", config, "--key-map", keys, "--names")
    assert text.exit_code == 2
    assert "perhaps scale_shift_table  2x32" in text.stdout
    assert "name 'table' applies to no tensor" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--names", "--suggest"), "--names and --suggest: expected one of them"),
        (("-o", "x"), "--output belongs to --suggest"),
        (("--prefix", "a", "--ema"), "--prefix and --ema: expected one of them"),
        (("--lora", "a:nan"), "expected PATH or PATH:SCALE"),
    ],
)
def test_options_that_exclude_each_other(arguments: tuple[str, ...], said: str) -> None:
    done = invoke("inspect", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_lora_is_told_and_recorded(checkpoint: Path, tmp_path: Path) -> None:
    name = "student.down.0.ffn.up"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 64), f"{name}.lora_B.weight": torch.ones(256, 2)}, tmp_path / "l.safetensors"
    )
    arguments = ("export", "--device", "server", "--checkpoint", checkpoint, "--dry-run")
    lora = ("--lora", f"{tmp_path / 'l.safetensors'}:0.8")
    assert "LoRA l.safetensors: no licence is stated" in invoke(*arguments, *lora).stderr
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    planned = invoke(*arguments, *lora)
    assert planned.exit_code == 0, planned.output
    assert "LoRA l.safetensors times 0.8: 1 module" in planned.stdout
    save_file(
        {"unet.conv_in.lora_A.weight": torch.ones(2, 4), "unet.conv_in.lora_B.weight": torch.ones(3, 2)},
        tmp_path / "o.safetensors",
    )
    refused = invoke(*arguments, "--lora", tmp_path / "o.safetensors", "-o", tmp_path / "out")
    assert refused.exit_code == 2
    assert "is of another network" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def with_config(checkpoint: Path, path: Path, **changes: object) -> Path:
    opened = open_checkpoint(checkpoint)
    config = replace(opened.config, **changes)
    save_checkpoint({n: opened.read(n) for n in opened.tensors}, config, path, opened.tokenizer, opened.license)
    return path


def test_a_size_that_was_not_trained_at(checkpoint: Path, tmp_path: Path) -> None:
    path = with_config(checkpoint, tmp_path / "x.safetensors", trained_resolutions=((64, 64), (64, 128)))
    arguments = ("export", "--device", "server", "--checkpoint", path, "--dry-run")
    said = "128x128: the checkpoint was not trained at this picture size, but at 64x64, 64x128"
    assert "warning" not in invoke(*arguments).stdout
    planned = invoke(*arguments, "--resolution", "64", "--resolution", "128")
    assert planned.exit_code == 0, planned.output
    assert f"warning: {said}" in planned.stdout
    assert json.loads(invoke(*arguments, "--resolution", "128", "--json").stdout)["warnings"] == [said]
    failed = invoke(*arguments, "--resolution", "128", "--strict", "-o", tmp_path / "out")
    assert failed.exit_code == 1
    assert said in failed.stderr
    assert not (tmp_path / "out").exists()
    assert invoke(*arguments, "--strict").exit_code == 0
    assert "trained_resolutions" not in config_to_dict(tiny_config())


def test_gated_models_need_a_licence(checkpoint: Path, tmp_path: Path) -> None:
    path = with_config(checkpoint, tmp_path / "x.safetensors")
    (tmp_path / "README.md").write_text("---\nextra_gated_prompt: Accept the terms\n---\n")
    arguments = ("export", "--device", "server", "--checkpoint", path, "--dry-run")
    refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert "a gated model (extra_gated_prompt)" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert invoke(*arguments, "--license", "ACME licence 3, agreed").exit_code == 0
    assert set(CheckpointPlace(path, license="x").open().licences.values()) == {"x"}


def test_two_sets_of_weights(checkpoint: Path, tmp_path: Path) -> None:
    with_config(checkpoint, tmp_path / "model.safetensors")
    (tmp_path / "model.ckpt").write_bytes(b"x")
    done = invoke("export", "--device", "server", "--checkpoint", tmp_path, "--dry-run")
    assert done.exit_code == 2
    assert "has two sets of weights, model.safetensors and model.ckpt; keep one" in done.stderr


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_init_of_a_configuration(suffix: str, tmp_path: Path) -> None:
    config = replace(tiny_config(), text_encoder=None, decoder=None, name="mine")
    path = tmp_path / f"c.{suffix}"
    path.write_text(config_to_json(config) if suffix == "json" else as_toml(config_to_dict(config)))
    done = invoke("init", "--config", path, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    opened = open_checkpoint(tmp_path / "out")
    validate(opened)
    assert opened.config == replace(config, trained=False)
    assert invoke("init", "-o", tmp_path / "x").exit_code == 2
    assert invoke("init", "-o", tmp_path / "x", "--preset", "shapes", "--config", path).exit_code == 2


def as_toml(data: dict[str, object]) -> str:
    tables = {k: v for k, v in data.items() if isinstance(v, dict)}
    lines = [f"{k} = {json.dumps(v)}" for k, v in data.items() if v is not None and k not in tables]
    for name, table in tables.items():
        lines.append(f"[{name}]")
        inner = {k: v for k, v in table.items() if isinstance(v, dict)}
        for key, value in table.items():
            if key in inner:
                lines.append(f"{key} = {{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in value.items())} }}")
            elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
                items = (", ".join(f"{k} = {json.dumps(v)}" for k, v in item.items()) for item in value)
                lines.append(f"{key} = [{', '.join(f'{{ {item} }}' for item in items)}]")
            else:
                lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines)
