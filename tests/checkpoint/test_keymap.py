from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snapgen_deploy.checkpoint import load_key_map, open_checkpoint, save_checkpoint, validate
from tests.checkpoint.cases import refused, tiny_config

TOML = r"""
"net.input" = "student.patch.weight"
drop = ['ema\..*']
[prefix]
"vae." = "decoder."
[regex]
'net\.stage(\d)\.(.*)' = 'student.down.\1.\2'
"""


def foreign_name(name: str) -> str:
    if name == "student.patch.weight":
        return "net.input"
    return name.replace("decoder.", "vae.", 1).replace("student.down.", "net.stage", 1)


def test_renames(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path, rules = tmp_path / "x.safetensors", tmp_path / "map.toml"
    foreign = {foreign_name(n): t for n, t in state.items()} | {"ema.x": torch.ones(1)}
    save_checkpoint(foreign, tiny_config(), path)
    rules.write_text(TOML)
    checkpoint = open_checkpoint(path, rules)
    validate(checkpoint)
    assert all(torch.equal(checkpoint.read(n), t) for n, t in state.items())
    assert checkpoint.sha256() != open_checkpoint(path).sha256()  # the map decides what is in it, so it counts


def test_a_pattern_with_a_comment_and_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text("\ufeff" + json.dumps({"regex": {r"(?x) net\.(\d+)  # a stage": r"block.\1"}}), encoding="utf-8")
    assert {n: r.sources for n, r in load_key_map(path).recipes(["net.3"], {}).items()} == {"block.3": ("net.3",)}
    path.write_text('{"a": "x", "a": "y"}')
    refused(lambda: load_key_map(path), "'a' occurs twice")


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"nothing": "x"}, "name 'nothing' applies to no tensor"),
        ({"prefix": {"no.": "x."}}, "prefix 'no.' applies to no tensor"),
        ({"a": "b"}, "both become 'b'"),
        ({"regex": {"(": "x"}}, "regular expression '('"),
        ({"regex": {"a": "\\1"}}, "regular expression 'a'"),
        ({"regex": {"a{99999999999999}": "x"}}, "regular expression 'a{"),
        ({"net": {"a": "b"}}, "quote names"),
        ({"drop": "a"}, "drop must be a list"),
        ([], "expected an object"),
    ],
)
def test_bad_maps(tmp_path: Path, rules: object, expected: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(rules))
    refused(lambda: load_key_map(path).recipes(["a", "b"], {}), expected)
    path.write_text("no map")
    refused(lambda: load_key_map(path), "neither JSON nor TOML")
    refused(lambda: load_key_map(tmp_path / "none.json"), "cannot be read")
