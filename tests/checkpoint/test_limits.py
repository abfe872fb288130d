"""What few bytes of a file can ask for: each is refused in one line, before anything is built, read or unpacked."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from snapgen_deploy.checkpoint import Checkpoint, open_checkpoint, save_checkpoint, validate
from snapgen_deploy.checkpoint.sources import TorchSource
from snapgen_deploy.system.files import MOST_UNPACKED, read_arrays
from tests.checkpoint.cases import refused, tiny_config

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def shared(depth: int) -> dict[str, Any]:
    """2^depth tensors, of which each dictionary holds the next twice."""
    value: Any = torch.ones(1)
    for _ in range(depth):
        value = {"a": value, "b": value}
    return {"net": value}


def itself() -> dict[str, Any]:
    value: dict[str, Any] = {"x": torch.ones(1)}
    value["again"] = value
    return value


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (shared(14), "hold each other over and over"),
        (shared(40), "nested deeper than 16"),
        (itself(), "nested deeper than 16"),
        ({"x": torch.ones(1).expand(10_000_000)}, "they repeat the same values"),
        ({(1, 2): torch.ones(1)}, "a key that is no name"),
        ({"x": bytearray(8)}, "holds code (__builtin__.bytearray)"),
        ({"x": {1, 2}}, "holds code (__builtin__.set)"),
        ({"x" * 20_000: torch.ones(1), "y": {"x" * 20_000: 1}}, "expected snapgen_config"),
    ],
    ids=["shared", "deep", "itself", "expanded", "tuple as key", "buffer", "set", "long names"],
)
def test_state_dicts_that_few_bytes_describe(tmp_path: Path, state: dict[Any, Any], said: str) -> None:
    path = tmp_path / "a.pt"
    torch.save(state, path)
    (tmp_path / "config.json").write_text("{}")
    assert len(refused(lambda: open_checkpoint(path), "a.pt" if "config" not in said else "config.json", said)) < 300 + 2 * len(
        str(tmp_path)
    )


def repacked(source: Path, path: Path, *, kind: int = STORED, pickled: bytes | None = None, twice: bool = False) -> Path:
    """The archive `source` with members packed anew, another pickle, or a member that the directory lists twice."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", kind) as new:
        for member in old.infolist():
            data = old.read(member)
            new.writestr(member.filename, pickled if pickled is not None and member.filename.endswith("data.pkl") else data)
        if twice:
            new.filelist.extend([max(new.filelist, key=lambda m: m.file_size)] * 9)
    return path


def test_archives_that_torch_does_not_write(tmp_path: Path) -> None:
    source = tmp_path / "a.pt"
    torch.save({"x": torch.ones(1000)}, source)
    refused(lambda: TorchSource.of(repacked(source, tmp_path / "b.pt", kind=DEFLATED)), "archive is compressed")
    refused(lambda: TorchSource.of(repacked(source, tmp_path / "c.pt", twice=True)), "overlap")
    longer = tmp_path / "d.pt"
    longer.write_bytes(source.read_bytes() + b"PK")
    refused(lambda: TorchSource.of(longer), "no archive's end")
    nested = b"\x80\x02}K\x01\x85" + b"q\x00h\x00\x86" * 12 + b"K\x01s."  # the hash of this key visits 2^12 tuples
    refused(lambda: TorchSource.of(repacked(source, tmp_path / "e.pt", pickled=nested)), "a key that is no name")
    named = b"\x80\x02c" + b"torch\x1b[2J\r.utils\nload\n)R."  # a terminal would clear itself
    refused(lambda: TorchSource.of(repacked(source, tmp_path / "g.pt", pickled=named)), r"(torch\x1b[2J .utils.load)")
    for number, damaged in enumerate((b"\x80\x02}u.", b"\x80\x02h\x07.", b"\x80\x02(", b"\x80\x04\x95", b"")):
        refused(lambda d=damaged, n=number: TorchSource.of(repacked(source, tmp_path / f"f{n}.pt", pickled=d)))  # type: ignore[misc]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
def test_what_torch_saves_is_read_as_ever(tmp_path: Path) -> None:
    dense = torch.ones(2, 3)
    torch.save(
        OrderedDict(
            module=torch.nn.Linear(2, 2).state_dict(),
            parameter=torch.nn.Parameter(dense),
            tied=[dense],
            view=dense.t(),
            half=dense.half(),
            sparse=dense.to_sparse(),
            quantised=torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
            shape=dense.shape,
            nothing=None,
            bytes=b"abc",
            steps={1: 2.0},
        ),
        tmp_path / "a.pt",
    )
    source = TorchSource.of(tmp_path / "a.pt")
    assert torch.equal(source.read("view", (3, 2)), dense.t())
    kinds = {name: info.dtype for name, info in source.tensors.items()}
    assert kinds["module.weight"] == "F32"
    assert (kinds["parameter"], kinds["half"], kinds["sparse"]) == ("F32", "F16", "not a dense tensor")
    assert (kinds["quantised"], kinds["bytes"], kinds["steps.1"]) == ("not a dense tensor", "python bytes", "python float")


@pytest.mark.parametrize(("depths", "widths"), [((512, 512, 512), 3), ((20, 20, 20), 12)])
def test_layers_without_tensors_are_not_built(tmp_path: Path, depths: tuple[int, int, int], widths: int) -> None:
    config = tiny_config()
    ratios = {f"w{i}": 1.0 for i in range(widths)}
    config = replace(config, student=replace(config.student, depths=depths, widths=ratios))
    path = tmp_path / "a.safetensors"
    save_checkpoint({"student.x": torch.ones(1)}, config, path)
    refused(lambda: open_checkpoint(path), f"asks for {sum(depths) * widths + 2} layers", "got 1 tensors")


def test_more_widths_than_any_network_has(tmp_path: Path) -> None:
    config = tiny_config()
    config = replace(config, student=replace(config.student, widths={f"w{i}": 1.0 for i in range(17)}))
    path = tmp_path / "a.safetensors"
    save_checkpoint({"student.x": torch.ones(1)}, config, path)
    refused(lambda: open_checkpoint(path), "student.widths: got 17 of them, expected at most 16")


def test_tensors_that_are_wrong_anyway_are_not_read(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(n for n in state if state[n].dim() == 2)
    state[name] = torch.full((*state[name].shape, 1), torch.nan)
    save_checkpoint(state | {"student.extra": torch.full((9,), torch.nan)}, tiny_config(), tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    read, seen = Checkpoint.read, []
    monkeypatch.setattr(Checkpoint, "read", lambda self, n: (seen.append(n), read(self, n))[1])
    refused(lambda: validate(checkpoint), "2 problems", "extra 'student.extra'", f"{name!r} got shape")
    assert set(seen) == set(state) - {name}


def npz(path: Path, members: dict[str, bytes], kind: int = STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def array(header: str, data: bytes = bytes(16)) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def header(shape: str = "(4,)", descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.txt": b"x"}, "member 'a.txt' is no array"),
        ({"a": array(header())}, "member 'a' is no array"),
        ({"a.npy": b"no array at all"}, "magic string"),
        ({"a.npy": array(header("(1000000000000,)"))}, "does not fit its"),
        ({"a.npy": array(header("(-2, -2)"))}, "expected numbers"),
        ({"a.npy": array(header(descr="'|O'"))}, "expected numbers"),
        ({"a.npy": array(header(descr="'<U4'"))}, "expected numbers"),
        ({"a.npy": array(header(descr="[('a', '<f4')]"))}, "expected numbers"),
        ({"a.npy": array(header(descr="5"))}, "cannot be read"),
        ({"a.npy": array(header(shape="'4'"))}, "cannot be read"),
        ({"a.npy": array("[" * 90 + "]" * 90)}, "cannot be read"),
        ({"a.npy": array(header())[:30]}, "cannot be read"),
        ({"a" * 20_000 + ".txt": b""}, "no array of its own"),
    ],
    ids=range(13),
)
def test_archives_of_arrays_that_are_none(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    path = npz(tmp_path / "a.npz", members)
    assert len(refused(lambda: read_arrays(path, "--embeddings a.npz"), "--embeddings a.npz", said)) <= 300


def test_zeros_are_not_unpacked_without_end(tmp_path: Path) -> None:
    held = io.BytesIO()
    np.save(held, np.zeros(1_000_000, np.float32))
    path = npz(tmp_path / "a.npz", {"a.npy": held.getvalue()}, DEFLATED)
    refused(lambda: read_arrays(path, "x"), f"unpack to more than {MOST_UNPACKED} times its size")
    np.savez_compressed(tmp_path / "b.npz", a=np.random.default_rng(0).random((20, 30), np.float32), m=np.ones((1, 20)))
    found = read_arrays(tmp_path / "b.npz", "x")
    assert {name: (a.shape, a.dtype.name, a.flags.writeable) for name, a in found.items()} == {
        "a": ((20, 30), "float32", True), "m": ((1, 20), "float64", True)
    }  # fmt: skip
