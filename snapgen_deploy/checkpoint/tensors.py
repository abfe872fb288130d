"""Finds the files of a checkpoint's tensors and checks that they agree. Reads headers, no tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapgen_deploy.checkpoint.sources import SafetensorsSource, Source, TorchSource
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import in_one_line, parse_json, several, shown
from snapgen_deploy.system.lfs import refuse_pointer

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_NAMES = (SINGLE_FILE, "diffusion_pytorch_model.safetensors")  # transformers' and ours, and diffusers'
_OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")
_TORCH_FILES = (".pt", ".pth", ".ckpt", ".bin")  # beside safetensors of the same name: nobody knows which is meant
LONGEST_FILE_NAME = 255  # bytes, of all usual file systems


def locate(path: Path) -> tuple[Source, Path | None]:
    """The tensors behind `path`, and the shard index where there is one.

    Raises:
        BadInput: if there is no such file, or it is none that holds tensors.
    """
    try:
        directory, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise BadInput(f"checkpoint {path}: cannot be read ({error})") from None
    if not exists:
        raise BadInput(
            f"checkpoint {path}: no such file or directory; give a .safetensors file, a directory with one, or a .pt"
        )
    if directory:
        return _directory(path)
    openers: dict[str, Callable[[Path], tuple[Source, Path | None]]] = {
        ".safetensors": lambda p: (SafetensorsSource.of((p,)), None),
        ".json": sharded,
        ".pt": lambda p: (TorchSource.of(p), None),
        ".pth": lambda p: (TorchSource.of(p), None),
        ".ckpt": lambda p: (TorchSource.of(p), None),
    }
    opener = openers.get(path.suffix.lower())
    if opener is None:
        raise BadInput(
            f"checkpoint {path}: got the suffix '{path.suffix}', expected one of {', '.join(openers)} or a directory"
        )
    return opener(path)


def _directory(path: Path) -> tuple[Source, Path | None]:
    found = weights_in(path, "checkpoint")
    return sharded(found) if found.suffix == ".json" else (SafetensorsSource.of((found,)), None)


def weights_in(path: Path, what: str) -> Path:
    """The file or the shard index with the tensors of a folder; `what` names the component in messages.

    Raises:
        BadInput: if there is none, or more than one.
    """
    found = [file for name in _NAMES for file in (path / name, path / f"{name}.index.json") if file.is_file()]
    if found:
        found += [file for suffix in _TORCH_FILES if (file := path / f"{Path(SINGLE_FILE).stem}{suffix}").is_file()]
    if len(found) > 1:
        raise BadInput(
            f"{what} {path}: has two sets of weights, {found[0].name} and {found[1].name}; keep one, or name its file"
        )
    if not found:
        others = sorted(file.name for pattern in _OTHER_WEIGHTS for file in path.glob(pattern))
        got = f"got {', '.join(others)[:100]}, " if others else ""
        raise BadInput(f"{what} {path}: {got}expected {' or '.join(_NAMES)} (or {INDEX}); rename it, or name the file itself")
    return found[0]


def sharded(index: Path) -> tuple[SafetensorsSource, Path]:
    """Open the shards that an index names, and check that it and they agree.

    Raises:
        BadInput: if the index is damaged, or a shard is missing or holds other tensors.
    """
    data = json_object(index)
    owners = data.get("weight_map")
    if not isinstance(owners, dict) or not owners or not all(isinstance(v, str) for v in owners.values()):
        raise BadInput(f"{index}: not a shard index: expected an object with 'weight_map', names to files")
    files = sorted(set(owners.values()))
    outside = [f for f in files if not _is_plain(f)]
    if outside:
        raise BadInput(f"{index}: shards must be plain file names beside the index, got {several([shown(f) for f in outside])}")
    missing = [f for f in files if not (index.parent / f).is_file()]
    if missing:
        raise BadInput(f"{index}: names shards that are not there: {several([shown(f) for f in missing])}; fetch them again")
    source = SafetensorsSource.of(tuple(index.parent / f for f in files))
    problems = []
    for name in sorted(set(owners) | set(source.owner)):
        said, held = owners.get(name), source.owner.get(name)
        if held is None:
            problems.append(f"{shown(name)} is in no shard, the index says {shown(said)}")
        elif said != held.name:
            other = f"says {shown(said)}" if said else "does not name it"
            problems.append(f"{shown(name)} is in {shown(held.name)}, the index {other}")
    if problems:
        raise BadInput(in_one_line(f"{index}: index and shards disagree", problems))
    return source, index


def _is_plain(name: str) -> bool:
    """Whether it is a file's own name, which no system takes for a path."""
    plain = name not in ("", ".", "..") and Path(name).name == name and not {"\\", "\0"} & set(name)
    return plain and len(name.encode("utf-8", errors="replace")) <= LONGEST_FILE_NAME


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        BadInput: if the file cannot be read, or holds something else.
    """
    refuse_pointer(path)
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}: got a {type(data).__name__}, expected a JSON object")
    return data
