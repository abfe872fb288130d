from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from snapgen_deploy.checkpoint import open_checkpoint, save_checkpoint, save_sharded, validate
from snapgen_deploy.checkpoint.keymap import load_key_map
from snapgen_deploy.checkpoint.networks import load_student
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.registry import student_types
from snapgen_deploy.models.serialise import config_from_dict, config_from_json, config_to_dict
from snapgen_deploy.models.tokenizer import WordTokenizer
from tests.checkpoint.cases import refused, tiny_config, tiny_model


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_no_such_file(tmp_path: Path) -> None:
    refused(lambda: open_checkpoint(tmp_path / "none.safetensors"), "none.safetensors", "no such file")


@pytest.mark.parametrize("content", [b"", b"abc", b"hello, this is no checkpoint at all", b"\x02" + bytes(7) + b"[]"])
def test_not_safetensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(lambda: open_checkpoint(tmp_path / "a.safetensors"), "a.safetensors")


@pytest.mark.parametrize("keep", [4, 100, -1, -1000])
def test_truncated(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    refused(lambda: open_checkpoint(saved), "truncated")


Lie = Callable[[dict[str, Any], str, str], None]


def overlap(h: dict[str, Any], a: str, b: str) -> None:
    width = h[b]["data_offsets"][1] - h[b]["data_offsets"][0]
    h[b]["data_offsets"] = [h[a]["data_offsets"][0], h[a]["data_offsets"][0] + width]


LIES: dict[str, tuple[Lie, str]] = {
    "shape": (lambda h, a, b: h[a].update(shape=[7, 7]), "takes 196"),
    "dtype": (lambda h, a, b: h[a].update(dtype="F128"), "F128"),
    "half the size": (lambda h, a, b: h[a].update(dtype="F16"), "F16 of shape"),
    "negative": (lambda h, a, b: h[a].update(shape=[-1, 4]), "expected at most 8 counts"),
    "backwards": (lambda h, a, b: h[a].update(data_offsets=[8, 0]), "spans -8"),
    "huge": (lambda h, a, b: h[a].update(shape=[10**30], data_offsets=[0, 4 * 10**30]), "truncated"),
    "overlap": (overlap, "overlaps"),
    "hole": (lambda h, a, b: h.pop(a), "bytes of no tensor"),
    "not an object": (lambda h, a, b: h.update({a: 3}), "exactly dtype, shape and data_offsets"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_header(saved: Path, lie: str) -> None:
    header, data = split(saved)
    order = sorted((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    change, expected = LIES[lie]
    change(header, order[0], order[3])
    join(saved, json.dumps(header).encode(), data)
    refused(lambda: open_checkpoint(saved), "header is wrong", expected)


def test_trailing_bytes_and_double_names(saved: Path) -> None:
    header, data = split(saved)
    join(saved, json.dumps(header).encode(), data + b"1234")
    refused(lambda: open_checkpoint(saved), "4 bytes after the last tensor")
    name = next(n for n in header if n != "__metadata__")
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    join(saved, text.encode(), data)
    refused(lambda: open_checkpoint(saved), name, "twice")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 0.999), value=st.integers(0, 255), cut=st.booleans())
def test_damage_never_escapes_as_another_error(saved: Path, tmp_path: Path, position: float, value: int, cut: bool) -> None:
    """One byte of the header changed, or the file cut: it opens, or it is refused as bad input."""
    data = bytearray(saved.read_bytes())
    at = int(position * (len(data) if cut else int.from_bytes(data[:8], "little") + 8))
    data[at] = value
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(bytes(data[:at]) if cut else bytes(data))
    with contextlib.suppress(BadInput):
        validate(open_checkpoint(damaged))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickles_with_code_are_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (tmp_path / "config.json").write_text(json.dumps({"snapgen_config": config_to_dict(tiny_config())}))
    torch.save({"x": torch.ones(2), "y": Bomb(mark)}, tmp_path / "zip.pt")
    torch.save({"y": Bomb(mark)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"y": Bomb(mark)}))
    (tmp_path / "bare.safetensors").write_bytes(pickle.dumps({"y": Bomb(mark)}))
    message = refused(lambda: open_checkpoint(tmp_path / "zip.pt"), "holds code", "not executed")
    assert "mkdir" in message
    refused(lambda: open_checkpoint(tmp_path / "old.pt"), "never opened")
    refused(lambda: open_checkpoint(tmp_path / "bare.pth"), "never opened")
    refused(lambda: open_checkpoint(tmp_path / "bare.safetensors"), "pickle")
    assert not mark.exists()
    torch.load(tmp_path / "zip.pt", weights_only=False)  # the bomb is live: what we refused would have run
    assert mark.exists()


def test_all_problems_of_the_tensors_in_one_line(tmp_path: Path, state: dict[str, Tensor]) -> None:
    names = [n for n in state if n.startswith("student.") and "@" not in n and state[n].dim() == 2][:4]
    state.pop(names[0])
    state[names[1]] = state[names[1]][:-1].clone()
    state[names[2]] = state[names[2]].clone().index_fill_(0, torch.tensor([0]), float("nan"))
    state[names[3]] = state[names[3]].clone().index_fill_(0, torch.tensor([0]), float("inf"))
    state["student.surplus"] = torch.ones(3)
    state["decoder.last.bias"] = state["decoder.last.bias"].long()
    save_checkpoint(state, tiny_config(), tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    count = state[names[2]].shape[1]
    refused(
        lambda: validate(checkpoint), "6 problems", f"missing {names[0]!r}", f"{names[1]!r} got shape", "expected [",
        f"{names[2]!r} has {count} NaN", f"{names[3]!r} has 0 NaN and", "extra 'student.surplus'", "dtype I64",
    )  # fmt: skip
    refused(lambda: load_student(checkpoint, "full"), names[0], names[2])


def test_long_lists_are_cut(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_checkpoint(state | {f"student.x{i}": torch.ones(1) for i in range(50)}, tiny_config(), tmp_path / "x.safetensors")
    line = refused(lambda: validate(open_checkpoint(tmp_path / "x.safetensors")), "50 problems", "extra 'student.x49'")
    assert line.endswith("more; `inspect --check` lists all, `inspect --names` shows both sides")


def shard_problem(tmp_path: Path, state: dict[str, Tensor], change: Callable[[dict[str, Any], list[Path]], None]) -> Path:
    shards = save_sharded(state, tiny_config(), tmp_path, 100_000)
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    change(data["weight_map"], shards)
    index.write_text(json.dumps(data))
    return tmp_path


def test_shards_that_disagree(tmp_path: Path, state: dict[str, Tensor]) -> None:
    first = sorted(state)[0]
    path = shard_problem(tmp_path / "wrong", state, lambda m, s: m.update({first: s[-1].name}))
    refused(lambda: open_checkpoint(path), first, "the index says")
    path = shard_problem(tmp_path / "gone", state, lambda m, s: s[1].unlink())
    refused(lambda: open_checkpoint(path), "not there", "model-00002")
    path = shard_problem(tmp_path / "outside", state, lambda m, s: m.update({first: "../x.safetensors"}))
    refused(lambda: open_checkpoint(path), "plain file names")
    path = shard_problem(tmp_path / "long", state, lambda m, s: m.update({first: "x" * 256}))
    refused(lambda: open_checkpoint(path), "plain file names")
    path = shard_problem(tmp_path / "unlisted", state, lambda m, s: m.pop(first))
    refused(lambda: open_checkpoint(path), first, "does not name it")

    def twice(m: dict[str, Any], s: list[Path]) -> None:
        last = {n: state[n] for n, f in m.items() if f == s[-1].name}
        save_checkpoint(last | {first: state[first]}, tiny_config(), s[-1])

    refused(lambda: open_checkpoint(shard_problem(tmp_path / "twice", state, twice)), "duplicated across shards", first)


def test_configuration_problems_in_one_line() -> None:
    data = config_to_dict(tiny_config())
    data["student"]["hiden"] = 3
    del data["student"]["patch"]
    data["steps"] = True
    data["student"]["attention"] = ["assa", "sparse", "assa"]
    refused(lambda: config_from_dict(data, student_types()), "student.hiden: got an unknown key, expected 'hidden'?",
            "student.patch: got nothing, expected an integer", "steps: got true",
            "student.attention[1]: got 'sparse', expected one of assa, full")  # fmt: skip


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("student", "kv_group", 0, "kv_group: got 0"),
        ("student", "depths", [1, 10**9, 1], "depths[1]"),
        ("student", "widths", {"full": float("nan")}, "widths.full: got nan, expected a finite number"),
        ("student", "widths", {"a.b": 1.0}, "letters"),
        ("student", "text_streams", [{"name": "latent", "dim": 16, "length": 6}], "is reserved"),
        ("student", "text_streams", [{"name": "tokens", "dim": 16, "length": 6}], "is reserved"),
        ("student", "text_streams", [{"name": "latents", "dim": 16, "length": 6}], "is reserved"),
        ("student", "text_streams", [{"name": "training", "dim": 16, "length": 6}], "is reserved"),
        (
            "student",
            "text_streams",
            [{"name": n, "dim": 16, "length": 6} for n in ("text", "text_mask")],
            "'text_mask' is the name of another stream's mask",
        ),
        ("student", "widths", {"a": 0.3}, "hidden 64 x 0.3 = 19.2 must be a multiple"),
        ("decoder", "latent_channels", 8, "the student has 4"),
        ("decoder", "latent_std", [1.0, 0.0, 1.0, 1.0], "latent_std[1]"),
        ("decoder", "groups", 7, "does not divide"),
        ("decoder", "blocks", [0] * 4, "expected 1 or more"),
        ("text_encoder", "stream", "other", "streams are text"),
        ("text_encoder", "width", 32, "takes 6 x 16"),
    ],
)
def test_inadmissible_configurations(section: str, key: str, value: object, expected: str) -> None:
    data = config_to_dict(tiny_config())
    data[section][key] = value
    refused(lambda: config_from_dict(data, student_types()), expected)


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", "a\nb", ".hidden", "-o", "a" * 65])
def test_a_name_that_is_no_folder_s(name: str) -> None:
    refused(
        lambda: config_from_dict(config_to_dict(tiny_config()) | {"name": name}, student_types()),
        "name: got",
        "letters, digits",
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("steps", 1_000_000, "expected an integer, 1 to 1000"),
        ("prompts", ["a", " "], "prompts[1]: got ' ', expected a non-empty string"),
    ],
)
def test_values_that_cannot_be_meant(key: str, value: object, expected: str) -> None:
    refused(lambda: config_from_dict(config_to_dict(tiny_config()) | {key: value}, student_types()), expected)


def test_a_key_that_stands_there_twice() -> None:
    text = json.dumps(config_to_dict(tiny_config()))
    refused(lambda: config_from_json(text[:-1] + ', "steps": 9}', student_types()), "'steps' occurs twice")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ('"steps": ' + "9" * 5000, "not JSON (it holds a number of thousands of digits)"),
        ('"steps": 1' + "0" * 400, "steps: got 1000"),
        ('"shift": 1' + "0" * 400, "shift: got 1000"),
        ('"shift": 1e999', "shift: got inf"),
        ('"shift": NaN', "not JSON (NaN is not valid JSON)"),
        ('"prompts": ' + "[" * 3000 + "]" * 3000, "not JSON (it is nested too deeply)"),
        ('"prompts": ' + "[" * 300 + "]" * 300, "prompts[0]: got [[[["),
        ('"student": []', "student: got [], expected a table"),
        (f'"{"k" * 5000}": 1', "got an unknown key"),
        (", ".join(f'"{i}": 1' for i in range(1000)), "; and 9"),
        ('"name": "' + "n" * 20_000 + '"', "name: got 'nnn"),
    ],
)
def test_hostile_values_are_told_in_a_short_line(changed: str, expected: str) -> None:
    data = config_to_dict(tiny_config())
    data.pop(changed.split('"')[1], None)
    message = refused(lambda: config_from_json(f"{json.dumps(data)[:-1]}, {changed}}}", student_types()), expected)
    assert len(message) <= 300


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("student", "widths", {"full": 1e308}, "widths.full: got 1e+308, expected a finite number above 0, at most 1048576"),
        ("decoder", "channels", [8] * 20_000, "expected a list of 1 to 21"),
        ("student", "text_streams", [], "text_streams: got [], expected a list of 1 or more"),
        ("student", "widths", {}, "widths: got {}, expected a table that is not empty"),
    ],
)
def test_sizes_that_arithmetic_would_not_survive(section: str, key: str, value: object, expected: str) -> None:
    test_inadmissible_configurations(section, key, value, expected)


def test_a_ratio_that_a_float_cannot_hold_is_admitted() -> None:
    data = config_to_dict(tiny_config())
    data["student"] |= {"hidden": 1600, "head_dim": 64, "cross_dim": 64, "widths": {"a": 0.28, "b": 1.0}}
    assert config_from_dict(data, student_types()).student.hidden_at("a") == 448


def test_no_configuration(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "a.pt")
    refused(lambda: open_checkpoint(tmp_path / "a.pt"), "config.json")
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    refused(lambda: open_checkpoint(tmp_path / "a.pt"), "hidden_size", "expected snapgen_config")


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (
            WordTokenizer.from_words([f"word{i}" for i in range(7)]).to_json(),
            "token ids up to 10, the text encoder has 10",
        ),
        ("{}", "not a tokenizer.json"),
    ],
)
def test_a_tokenizer_that_does_not_fit(tmp_path: Path, tokenizer: str, message: str) -> None:
    _, state = tiny_model()
    path = tmp_path / "a.safetensors"
    save_checkpoint(state, tiny_config(), path, tokenizer=tokenizer)
    refused(lambda: open_checkpoint(path), "a.safetensors", message)


def one_entry(name: str = "a", dtype: str = "F32", shape: str = "1", end: str = "4") -> str:
    return f'{{"{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[0,{end}]}}}}'


@pytest.mark.parametrize(
    "header",
    [
        one_entry(shape="1" + "0" * 400),
        one_entry(shape=", ".join(["9" * 4000] * 8)),
        one_entry(end="1" + "0" * 400),
        one_entry(dtype="F" * 20_000),
        one_entry(name="a" * 20_000, shape="2"),
        one_entry(shape="[" * 3000 + "]" * 3000),
        one_entry(shape="9" * 5000),
        json.dumps({f"a{i}": 3 for i in range(500)}),
    ],
    ids=range(8),
)
def test_headers_of_any_size_are_told_in_a_short_line(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    assert len(refused(lambda: open_checkpoint(path), "a.safetensors").replace(str(tmp_path), "")) <= 300


@pytest.mark.parametrize(
    ("suffix", "text", "said"),
    [
        ("toml", "a = " + "[" * 3000 + "]" * 3000, "it is nested too deeply"),
        ("toml", "a = " + "9" * 5000, "it holds a number of thousands of digits"),
        ("toml", "a = 0x" + "f" * 5000, "'a' must be our name"),
        ("json", "[" * 3000 + "]" * 3000, "it is nested too deeply"),
        ("json", json.dumps({"k" * 20_000: 1}), "must be our name"),
        ("json", json.dumps({"drop": ["(" * 20_000]}), "regular expression '((("),
        ("json", json.dumps({f"k{i}": 1 for i in range(1000)}), "; and 99"),
    ],
    ids=range(7),
)
def test_key_maps_of_any_size_are_told_in_a_short_line(tmp_path: Path, suffix: str, text: str, said: str) -> None:
    path = tmp_path / f"map.{suffix}"
    path.write_text(text)
    assert len(refused(lambda: load_key_map(path), said).replace(str(tmp_path), "")) <= 300
