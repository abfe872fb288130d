"""Writes checkpoints: the same tensors and configuration always give the same bytes.

Tensors are requested one at a time, when their bytes are written, so that a checkpoint may be larger than memory.
safetensors' own writer orders metadata by a hash that changes from run to run, so the header is written here; the files are
plain safetensors, and the tests read them with the library.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from snapgen_deploy.checkpoint.header import DTYPE_BYTES, TensorInfo
from snapgen_deploy.checkpoint.tensors import INDEX
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import DECODER, STUDENT, TEXT_ENCODER, TOKENIZER, numbered
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.serialise import config_to_json

_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64"}


class Elastic(Protocol):
    """A student that holds all of its widths."""

    def elastic_state(self) -> dict[str, Tensor]:
        """Its tensors under their names in a checkpoint, without the component's own."""


def checkpoint_state(
    student: Elastic,
    decoder: nn.Module | None = None,
    text_encoder: nn.Module | None = None,
    other_text_encoders: Sequence[nn.Module] = (),
) -> dict[str, Tensor]:
    """The tensors of the components under their names in a checkpoint."""
    state = {f"{STUDENT}.{name}": tensor for name, tensor in student.elastic_state().items()}
    parts = {DECODER: decoder, TEXT_ENCODER: text_encoder}
    parts |= {numbered(TEXT_ENCODER, 1 + i): module for i, module in enumerate(other_text_encoders)}
    for prefix, module in parts.items():
        if module is not None:
            state |= {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
    return state


def save_checkpoint(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    path: Path,
    tokenizer: str | None = None,
    license: str | None = None,
    *,
    other_tokenizers: Sequence[str] = (),
) -> None:
    """Write one safetensors file, atomically, with the configuration in its header.

    `tokenizer` is the text of a tokenizer.json for the first text encoder, `other_tokenizers` for the others in order.

    Raises:
        BadInput: if the file cannot be written, or a tensor's dtype has no safetensors code here.
    """
    write_tensors(path, _infos(path, state), state.__getitem__, _metadata(config, tokenizer, license, other_tokenizers))


def save_sharded(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    directory: Path,
    max_shard_bytes: int,
    tokenizer: str | None = None,
    license: str | None = None,
    *,
    other_tokenizers: Sequence[str] = (),
) -> list[Path]:
    """Write `directory` as shards of at most `max_shard_bytes` of data (a larger tensor gets a shard of its own) and an index.

    Every shard carries the metadata. Returns the shards in order.

    Raises:
        BadInput: if a file cannot be written, or a tensor's dtype has no safetensors code here.
    """
    infos = _infos(directory, state)
    return stream_sharded(
        infos,
        state.__getitem__,
        config,
        directory,
        max_shard_bytes,
        tokenizer=tokenizer,
        license=license,
        other_tokenizers=other_tokenizers,
    )


def stream_sharded(
    infos: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    config: ModelConfig,
    directory: Path,
    max_shard_bytes: int,
    *,
    tokenizer: str | None = None,
    license: str | None = None,
    other_tokenizers: Sequence[str] = (),
) -> list[Path]:
    """As `save_sharded`, with tensors that `read` makes on request: one is held at a time.

    What `read` returns must have the shape and dtype that `infos` has for the name.

    Raises:
        BadInput: if a file cannot be written.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(infos):
        if groups[-1] and filled + infos[name].nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += infos[name].nbytes
    paths = [directory / f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    for path, group in zip(paths, groups, strict=True):
        write_tensors(
            path, {name: infos[name] for name in group}, read, _metadata(config, tokenizer, license, other_tokenizers)
        )
    total = sum(info.nbytes for info in infos.values())
    owners = {name: path.name for path, group in zip(paths, groups, strict=True) for name in group}
    index = {"metadata": {"total_size": total}, "weight_map": owners}
    _replace(directory / INDEX, [json.dumps(index, indent=1, sort_keys=True).encode() + b"\n"])
    return paths


def _metadata(config: ModelConfig, tokenizer: str | None, license: str | None, others: Sequence[str]) -> dict[str, str]:
    optional = {TOKENIZER: tokenizer, "license": license}
    optional |= {numbered(TOKENIZER, 1 + i): text for i, text in enumerate(others)}
    return {"format": "pt", "snapgen_config": config_to_json(config)} | {k: v for k, v in optional.items() if v is not None}


def _infos(path: Path, state: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    unknown = [f"{name!r} is {t.dtype}" for name, t in state.items() if t.dtype not in _CODES]
    if unknown:
        raise BadInput(f"{path}: cannot be written: {'; '.join(unknown)}; expected floating-point tensors")
    return {n: TensorInfo(tuple(t.shape), _CODES[t.dtype], t.numel() * t.element_size()) for n, t in state.items()}


def write_tensors(
    path: Path, infos: Mapping[str, TensorInfo], read: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, one tensor at a time; the same content gives the same bytes.

    Raises:
        BadInput: if the file cannot be written.
    """
    # Wide elements first, then by name: every tensor is aligned to its element, which lets readers map it.
    order = sorted(infos, key=lambda name: (-DTYPE_BYTES[infos[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name in order:
        info = infos[name]
        end = position + math.prod(info.shape) * DTYPE_BYTES[info.dtype]
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the specification allows trailing spaces; the data begins aligned
    _replace(path, itertools.chain([len(text).to_bytes(8, "little"), text], (read(name) for name in order)))


def _replace(path: Path, parts: Iterable[bytes | Tensor]) -> None:
    """Write beside `path` and rename, so that nobody ever sees a partial file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); give a folder that can") from None
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part if isinstance(part, bytes) else _bytes(part))
                del part  # before the next is made: one tensor is held at a time
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise BadInput(f"{path}: cannot be written ({error.strerror}); make room or give another folder") from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
