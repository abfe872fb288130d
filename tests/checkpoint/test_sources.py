"""Tensors are read as safetensors itself reads them, wherever they begin in the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from snapgen_deploy.checkpoint.sources import TYPES, SafetensorsSource
from snapgen_deploy.errors import BadInput


def written(path: Path, padding: int) -> dict[str, torch.Tensor]:
    """Tensors of all dtypes in a file whose data begins `padding` bytes later than the library would have it."""
    draw = torch.Generator().manual_seed(padding)
    state = {
        f"{code}-{n}": torch.randint(0, 120, (n, 3, 5), generator=draw).to(dtype)
        for code, dtype in TYPES.items()
        for n in (0, 1, 7)
    }
    state["scalar"] = torch.tensor(0.25)
    state["large"] = torch.randn(300, 1000, generator=draw)
    save_file(state, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes((length + padding).to_bytes(8, "little") + data[8 : 8 + length] + b" " * padding + data[8 + length :])
    return load_file(path)


@pytest.mark.parametrize("padding", [0, 1, 3, 4096])
def test_every_dtype_at_any_offset(padding: int, tmp_path: Path) -> None:
    expected = written(tmp_path / "model.safetensors", padding)
    source = SafetensorsSource.of((tmp_path / "model.safetensors",))
    assert set(source.tensors) == set(expected)
    for name, tensor in expected.items():
        found = source.read(name, tuple(tensor.shape))
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert torch.equal(found.contiguous().flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))
    assert torch.equal(source.read("large", (17, 999)), expected["large"][:17, :999])
    assert source.read("F32-0", (0, 2, 5)).shape == (0, 2, 5)


def test_what_was_read_stays_when_its_source_is_gone(tmp_path: Path) -> None:
    expected = written(tmp_path / "model.safetensors", 0)["large"]
    found = SafetensorsSource.of((tmp_path / "model.safetensors",)).read("large", (300, 1000))
    (tmp_path / "model.safetensors").unlink()
    found[0, 0] += 1  # a copy of its own: nothing is ever written to the file
    assert torch.equal(found[1:], expected[1:])


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_changes_is_not_read_with_the_old_header(replaced: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    written(path, 0)
    source = SafetensorsSource.of((path,))
    status = path.stat()
    if replaced:  # by another file of the same size and time
        written(tmp_path / "new.safetensors", 0)
        os.utime(tmp_path / "new.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "new.safetensors").replace(path)
    else:
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadInput, match="was changed while it was read"):
        source.read("large", (300, 1000))
