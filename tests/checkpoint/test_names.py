"""Their names beside ours, and drafted key maps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snapgen_deploy.checkpoint import CheckpointPlace, Reading, open_checkpoint, save_checkpoint, validate
from snapgen_deploy.checkpoint.keymap.layers import block_lists
from snapgen_deploy.checkpoint.keymap.roles import likeness, roles
from snapgen_deploy.checkpoint.keymap.suggest import suggest
from snapgen_deploy.checkpoint.names import compare_names, draft_key_map
from snapgen_deploy.checkpoint.opener import open_with_adapters
from snapgen_deploy.models.serialise import config_to_dict
from tests.checkpoint.cases import tiny_config
from tests.checkpoint.foreign import PIXART_MAP, our_state, pixart_config, pixart_state


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> CheckpointPlace:
    """A file without metadata, and its configuration."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("pixart")
    save_file(pixart_state(our_state(pixart_config())), folder / "pixart.safetensors")
    (folder / "pixart.json").write_text(json.dumps(config_to_dict(pixart_config())))
    return CheckpointPlace(folder / "pixart.safetensors", config=folder / "pixart.json")


def test_a_draft_of_a_student_with_other_names(pixart: CheckpointPlace, tmp_path: Path) -> None:
    text, found, _ = draft_key_map(pixart)
    assert (found.missing, found.unused, found.problems) == ((), {}, ())
    (tmp_path / "map.toml").write_text(text)
    checkpoint, _ = open_with_adapters(pixart.path, Reading(tmp_path / "map.toml", pixart.config), ())
    validate(checkpoint, values=False)
    assert all(torch.equal(checkpoint.read(n), t) for n, t in our_state(pixart_config()).items())
    assert sum(" = " in line for line in text.splitlines() if not line.startswith("#")) == 23
    assert "# check: k, v in this order, not alternating by heads" in text
    assert '"{block}.attn1.to_{x:q|k|v}.{p:*}" = "{block}.attention.{x}.{p}"' in text
    assert '"transformer_blocks.{i:8..17}" = "student.middle.{i-8}"' in text


def test_names_side_by_side(pixart: CheckpointPlace, tmp_path: Path) -> None:
    keys = tmp_path / "map.toml"
    keys.write_text(PIXART_MAP.replace("adaln_single.linear.", "adaln_single.lin."))
    found = compare_names(CheckpointPlace(pixart.path, keys, config=pixart.config)).comparison
    assert len(found.matched) == 840
    assert all(m.fits for m in found.matched)
    assert {m.ours: m.near[0] for m in found.missing} == {
        f"student.time.six.{p}@full": f"adaln_single.linear.{p}" for p in ("weight", "bias")
    }
    assert set(found.unused) == {"adaln_single.linear.weight", "adaln_single.linear.bias"}
    assert found.problems == ("name 'adaln_single.lin.{p:*}' applies to no tensor; did you mean adaln_single.linear.bias?",)
    one = next(m for m in found.matched if m.ours == "student.down.0.cross.v.weight")
    assert one.theirs == ("transformer_blocks.0.attn2.to_kv.weight",)
    assert one.rule == "transformer_blocks.{block}.attn2.to_kv.{p:*}"


def test_a_draft_for_several_widths(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """All widths, stages with lists of their own, q, k and v fused, other words."""
    foreign: dict[str, Tensor] = {}
    words = {"student.down.": "enc.layers.", "student.middle.": "mid.layers.", "student.up.": "dec.layers.", "student.": "net."}
    words |= {"attention.": "self_attn.", ".cross.": ".cross_attn.", ".ffn.up.": ".mlp.fc1.", ".ffn.down.": ".mlp.fc2."}
    for name, tensor in state.items():
        if name.startswith("student."):
            new = name
            for ours, theirs in words.items():
                new = new.replace(ours, theirs)
            if ".self_attn.q.weight" in new or ".self_attn.q.bias" in new:
                tensor = torch.cat([state[name.replace(".q.", f".{x}.")] for x in "qkv"])
            if ".self_attn.k." in new or ".self_attn.v." in new:
                continue
            foreign[new.replace("self_attn.q.", "self_attn.qkv.")] = tensor
    shapes = {n: tuple(t.shape) for n, t in foreign.items()}
    wanted = {n: tuple(t.shape) for n, t in state.items() if n.startswith("student.")}
    (tmp_path / "map.toml").write_text(suggest(shapes, wanted).text)
    rest = {n: t for n, t in state.items() if not n.startswith("student.")}
    save_checkpoint(foreign | rest, tiny_config(), tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors", tmp_path / "map.toml")
    validate(checkpoint)
    assert all(torch.equal(checkpoint.read(n), t) for n, t in state.items())


def test_modules_that_only_their_order_tells_apart_are_marked() -> None:
    theirs = {f"net.{x}.weight": (8, 4) for x in ("foo", "bar")}
    ours = {f"student.{x}.weight": (8, 4) for x in ("one", "two")}
    text = suggest(theirs, ours).text
    assert text.count("# check: ") == 2
    assert "net.bar has this shape, too" in text


def test_the_innermost_lists_are_the_blocks() -> None:
    shapes = {f"stages.{s}.blocks.{b}.l{i}.weight": (2,) for s in range(2) for b in range(3) for i in range(8)}
    assert [(b.name, b.sizes) for b in block_lists(shapes)] == [(f"stages.{s}.blocks", (16, 16, 16)) for s in range(2)]


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("blocks.0.self_attn.q_proj.weight", {"self", "q"}),
        ("layers.0.attn2.to_out.0.bias", {"cross", "out"}),
        ("layers.0.attn.norm_q.weight", {"self", "q_norm"}),
        ("h.0.mlp.c_fc.weight", {"ffn", "up"}),
        ("a.b.c", set()),
    ],
)
def test_usual_names(name: str, means: set[str]) -> None:
    assert roles(name) == means
    assert likeness(name, name) > 0.19
