"""Files are written whole or not at all, wherever they are; named arrays are read, or refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.files import read_arrays, temporary_files_in, write_bytes, write_text


def test_written_whole_with_its_folders_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "æ", "choose another", parents=True)
    assert path.read_text(encoding="utf-8") == "æ"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "x", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_bytes(link, b"new", "choose another")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_bytes(pipe, b"through", "choose another")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert not pipe.is_file()


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "x"):
        with pytest.raises(BadInput, match="cannot write .*; choose another"):
            write_bytes(path, b"x", "choose another")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variable", [None, "/somewhere"])
def test_temporary_files_of_libraries_go_where_they_are_told(tmp_path: Path, monkeypatch, variable: str | None) -> None:
    if variable is None:
        monkeypatch.delenv("TMPDIR", raising=False)
    else:
        monkeypatch.setenv("TMPDIR", variable)
    before = tempfile.tempdir
    with pytest.raises(RuntimeError), temporary_files_in(tmp_path):
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).parent == tmp_path
        child = "import tempfile; print(tempfile.gettempdir())"
        told = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout
        assert Path(told.strip()) == tmp_path
        raise RuntimeError
    assert (tempfile.tempdir, os.environ.get("TMPDIR")) == (before, variable)


def test_arrays_and_what_is_none(tmp_path: Path) -> None:
    values = {"a": np.arange(5000.0), "b": np.zeros((2, 0), np.int32)}
    np.savez_compressed(tmp_path / "x.npz", **values)
    found = read_arrays(tmp_path / "x.npz", "it")
    assert all(np.array_equal(found[name], values[name]) for name in values)
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[len(data) // 3] ^= 0xFF
    (tmp_path / "damaged.npz").write_bytes(data)
    np.save(tmp_path / "one.npz", values["a"])
    for name in ("damaged.npz", "one.npz.npy", "none.npz", "."):
        with pytest.raises(BadInput, match="^it"):
            read_arrays(tmp_path / name, "it")
