"""Patterns, and what they do to tensors: each map must give back the very numbers that were stored in another way."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snapgen_deploy.checkpoint import expected_shapes, load_key_map, open_checkpoint, save_checkpoint, validate
from snapgen_deploy.checkpoint.keymap import TensorChange, TensorRecipe
from snapgen_deploy.checkpoint.keymap.load import key_map_of
from snapgen_deploy.checkpoint.keymap.pattern import folded, read_pattern, read_template
from tests.checkpoint.cases import refused, tiny_config
from tests.checkpoint.foreign import PIXART_MAP, our_state, pixart_config, pixart_state


@pytest.mark.parametrize(
    ("pattern", "template", "name", "becomes"),
    [
        ("a.{i}.w", "b.{i}.w", "a.12.w", "b.12.w"),
        ("a.{i}.w", "b.{i+4}.{i-1}.{2*i+1}.{9-i}", "a.3.w", "b.7.2.7.6"),
        ("a.{i:2..9}.w", "b.{i}", "a.10.w", None),
        ("a.{i:2..9}.w", "b.{i-2}", "a.9.w", "b.7"),
        ("{x:q|qk}.{rest:*}", "{rest}.{x}", "qk.a.b", "a.b.qk"),
        ("{i}.{i}", "{i}", "1.2", None),
        ("{i}.{i}", "{i}", "2.2", "2"),
        ("{{i}}.{i}", "{{{i}}}", "{i}.2", "{2}"),
        ("a.{i}", "b.{i}", "a.x", None),
        ("a.{i}", "b.{i}", "a.12345678", None),
    ],
)
def test_patterns(pattern: str, template: str, name: str, becomes: str | None) -> None:
    theirs = read_pattern(pattern, {})
    values = theirs.match(name)
    ours = read_template(template, {slot.name: slot for slot in theirs.slots})
    assert (None if values is None else ours.fill(values)) == becomes


def test_names_that_differ_in_numbers_are_one_text() -> None:
    assert folded(["a.0.b.3", "a.1.b.3", "a.2.b.3"]) == "a.{0..2}.b.3"
    assert folded(["a.0", "a.2"]) == "a.{0,2}"


def opened(tmp_path: Path, stored: dict[str, Tensor], rules: str) -> Callable[[], object]:
    path, keys = tmp_path / "x.safetensors", tmp_path / "map.toml"
    save_checkpoint(stored, tiny_config(), path)
    keys.write_text(rules)
    return lambda: open_checkpoint(path, keys)


Q, K, V = (f"student.middle.0.attention.{x}.weight" for x in "qkv")
TABLES = [f"student.down.0.table@{w}" for w in ("tiny", "small", "full")]
THREE = "student.middle.0.attention.{x:q|k|v}.weight"
WIDE = "student.down.0.table@{w:tiny|small|full}"


def interleaved(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([state[n].unflatten(0, (8, 8)) for n in (Q, K, V)], 1).flatten(0, 1)


def padded(state: dict[str, Tensor]) -> list[Tensor]:
    return [torch.nn.functional.pad(state[n], (0, 64 - state[n].shape[1])) for n in TABLES]


FIRST, NORM = "student.down.0.ffn.up.weight", "student.down.0.attention.q_norm.weight@full"
PATCH, UNPATCH = "student.patch.weight", "student.unpatch.weight"
WAYS: dict[str, tuple[list[str], Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "split": ([Q, K, V], lambda s: {"m.0.qkv": torch.cat([s[Q], s[K], s[V]])}, f'"m.{{i}}.qkv" = "{THREE}"'),
    "list": ([Q, K], lambda s: {"qk": torch.cat([s[Q], s[K]])}, f'"qk" = ["{Q}", "{K}"]'),
    "columns": ([Q, K], lambda s: {"qk": torch.cat([s[Q], s[K]], 1)}, f'"qk" = {{ to = ["{Q}", "{K}"], axis = 1 }}'),
    "heads": ([Q, K, V], lambda s: {"qkv": interleaved(s)}, f'"qkv" = {{ to = "{THREE}", heads = 8 }}'),
    "join": (
        [FIRST],
        lambda s: {"m.w1": s[FIRST][:100], "m.w3": s[FIRST][100:]},
        f'"m.{{x:w1|w3}}" = {{ to = "{FIRST}", axis = 0 }}',
    ),
    "join heads": (
        [FIRST],
        lambda s: dict(zip(("a", "b"), (t.flatten(0, 1) for t in s[FIRST].unflatten(0, (64, 4)).split(2, 1)), strict=True)),
        f'"{{x:a|b}}" = {{ to = "{FIRST}", axis = 0, heads = 64 }}',
    ),
    "transpose": ([FIRST], lambda s: {"w": s[FIRST].T}, f'"w" = {{ to = "{FIRST}", transpose = [1, 0] }}'),
    "convolution": ([Q], lambda s: {"w": s[Q][:, :, None, None]}, f'"w" = {{ to = "{Q}", reshape = "ours" }}'),
    "patches": (
        [PATCH],
        lambda s: {"w": s[PATCH].permute(0, 2, 3, 1).reshape(64, -1)},
        f'"w" = {{ to = "{PATCH}", reshape = [-1, 2, 2, 4], transpose = [0, 3, 1, 2] }}',
    ),
    "unpatch": (
        [UNPATCH],
        lambda s: {"w": s[UNPATCH].permute(2, 3, 1, 0).reshape(-1, 64)},
        f'"w" = {{ to = "{UNPATCH}", reshape = [2, 2, 4, -1], transpose = [3, 2, 0, 1] }}',
    ),
    "widths": (TABLES, lambda s: {"t": torch.stack(padded(s))}, f'"t" = {{ to = "{WIDE}", stack = 0 }}'),
    "stack": (
        [TABLES[2]],
        lambda s: {f"t.{x}": s[TABLES[2]][i] for i, x in enumerate("abcdef")},
        f'"t.{{x:a|b|c|d|e|f}}" = {{ to = "{TABLES[2]}", stack = 0 }}',
    ),
    "norm": ([NORM], lambda s: {"n": s[NORM] - 1}, f'"n" = {{ to = "{NORM}", add = 1 }}'),
    "scale": ([Q], lambda s: {"q": s[Q] * 8}, f'"q" = {{ to = "{Q}", scale = 0.125 }}'),
    "optional": ([Q], lambda s: {"q": s[Q]}, f'"q" = "{Q}"\n"no" = {{ to = "x", optional = true }}'),
    "left out": ([], lambda s: {"ema.1.x": s[Q], "step": s[K]}, '"ema.{i}.{rest:*}" = []\nstep = []'),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_was_stored_in_another_way_comes_back(way: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.manual_seed(1)
    state = {n: torch.randn(t.shape) for n, t in state.items()}
    ours, stored, rules = WAYS[way]
    foreign = {n: t for n, t in state.items() if n not in ours}
    foreign |= {n: t.contiguous() for n, t in stored(state).items()}
    checkpoint = opened(tmp_path, foreign, rules)()
    validate(checkpoint)
    for name in ours:
        whole = checkpoint.read(name)
        assert torch.allclose(whole, state[name], atol=1e-6)
        half = tuple((n + 1) // 2 for n in whole.shape)
        part = checkpoint.read(name, half)
        assert torch.equal(part, whole[tuple(slice(0, n) for n in half)])
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


def test_one_tensor_for_all_widths(tmp_path: Path, state: dict[str, Tensor]) -> None:
    rest = {n: t for n, t in state.items() if n not in TABLES}
    checkpoint = opened(tmp_path, rest | {"t": state[TABLES[2]]}, f'"t" = {{ to = "{WIDE}", share = true }}')()
    validate(checkpoint)
    assert all(torch.equal(checkpoint.read(n), state[TABLES[2]][:, : state[n].shape[1]]) for n in TABLES)


def test_a_student_of_28_layers_in_20_rules(tmp_path: Path) -> None:
    config, path, keys = pixart_config(), tmp_path / "x.safetensors", tmp_path / "map.toml"
    state = our_state(config)
    save_checkpoint(pixart_state(state), config, path)
    keys.write_text(PIXART_MAP)
    checkpoint = open_checkpoint(path, keys)
    validate(checkpoint, values=False)
    assert PIXART_MAP.count(" = ") <= 20
    assert set(checkpoint.tensors) == set(state)
    assert all(torch.equal(checkpoint.read(n), t) for n, t in state.items())


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ('"a.{i" = "b"', "braces do not match"),
        ('"a.{i}" = "b.{j}"', "their side has no {j}"),
        ('"a.{i:9..2}" = "b"', "an empty range"),
        ('"a.{x:q|q}" = "b"', "different texts"),
        ('"a.{i}{j}" = "b"', "nothing stands between"),
        ('"a.{i}.{i:0..2}" = "b"', "{i} means two things"),
        ('"a.{x:*}.{y:*}.{z:*}" = "b"', "2 of any text"),
        ('"a.{x:p|q}" = "b.{x+1}"', "x is no number"),
        ('"a" = { to = "b", axis = 0 }', "neither side has several names"),
        ('"a" = { to = ["b", "c"], axis = 0, stack = 0 }', "axis and stack: expected one"),
        ('"a" = { to = "b", heads = 2 }', "heads: expected several"),
        ('"a" = { to = "b", scale = "1" }', "scale: got '1', expected a finite number"),
        ('"a" = { to = "b", transpose = [1, 1] }', "expected the order of the axes"),
        ('"a" = { to = "b", size = 1 }', "unknown 'size'; expected to, optional, axis"),
        ('"a" = { to = [], scale = 2 }', "leaves tensors out"),
        ('"a.{i}" = "{w:*}"', "only choices"),
        ('[words.b]\n"{i}" = 3', "words.b: expected their words and ours"),
    ],
)
def test_maps_that_say_nothing_sensible(tmp_path: Path, rules: str, said: str) -> None:
    (tmp_path / "map.toml").write_text(rules)
    assert len(refused(lambda: load_key_map(tmp_path / "map.toml"), said)) < 400


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ('"qkv" = "student.middle.9.attention.{x:q|k|v}.weight"', "becomes 'student.middle.9.attention.q.weight', which the"),
        ('"qkv" = "student.down.0.attention.{x:q|k}.weight"', "axis 0 of [192, 64] is not 64 + 64"),
        (f'"qkv" = {{ to = "{THREE}", heads = 7 }}', "heads = 7 does not divide 64"),
        (f'"{{x:qkv|kv}}" = {{ to = "{Q}", axis = 0 }}', "beside 'qkv' there is none for kv"),
        (f'"qkv" = {{ to = "{Q}", reshape = "ours" }}', "has not as many values as ours"),
        (f'"qkv" = {{ to = "{Q}", transpose = [0, 2, 1] }}', "transpose = [0, 2, 1] does not fit [192, 64]"),
        (f'"qkw" = "{Q}"', "name 'qkw' applies to no tensor; did you mean qkv?"),
        ('"{x:*}kv" = "student.a"\n"{x:q}kv.{i}" = "b"', "name '{x:q}kv.{i}' applies to no tensor"),
        ('"a.{i}" = "student.down.{i-4}"', "has the index -2"),
    ],
)
def test_rules_that_do_not_fit_the_tensors(tmp_path: Path, state: dict[str, Tensor], rules: str, said: str) -> None:
    stored = {"qkv": torch.cat([state[Q], state[K], state[V]]), "a.2": torch.ones(1)}
    refused(opened(tmp_path, stored, rules), "key map", said)


def test_a_tensor_of_numbers_only(tmp_path: Path, state: dict[str, Tensor]) -> None:
    assert TensorRecipe(("a",), "", TensorChange(scale=2.0)).make([torch.ones(2, dtype=torch.bfloat16)]).dtype == torch.float32
    assert set(expected_shapes(tiny_config())) == set(state)


def test_a_word_whose_index_would_be_negative_is_no_such_word(tmp_path: Path) -> None:
    rules = '[words.block]\n"up.{i}" = "down.{i-2}"\n"up.{i:0..0}" = "first"\n'
    keys = key_map_of(tomllib.loads(f'"{{block}}.a" = "{{block}}.b"\n{rules}'), None)
    found = {name: keys.rule_for(f"{name}.a") for name in ("up.3", "up.1", "up.0")}
    named = {name: rule[0].ours(rule[1])[0] for name, rule in found.items() if rule is not None}
    assert named == {"up.3": "down.1.b", "up.0": "first.b"}
