"""Opens a checkpoint: finds its files, configuration and tensor names. Reads headers, no tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snapgen_deploy.checkpoint.expected import expected_shapes
from snapgen_deploy.checkpoint.header import TensorInfo
from snapgen_deploy.checkpoint.keymap import load_key_map
from snapgen_deploy.checkpoint.mapped import MappedSource
from snapgen_deploy.checkpoint.sources import KEYS, Source
from snapgen_deploy.checkpoint.stored import Stored, stored_as
from snapgen_deploy.checkpoint.tensors import json_object, locate
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.names import TEXT_ENCODER, TOKENIZER
from snapgen_deploy.families.registry import components_of, student_types
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.serialise import config_from_dict, config_from_json
from snapgen_deploy.system.documents import parse_json

LAYERS_ANYWAY = 64  # that a configuration may ask for, whatever the file holds of them


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Its tensors have our names, whatever the file calls them; none is read before `read`."""

    path: Path
    config: ModelConfig
    tokenizers: Mapping[str, str]  # the text of a tokenizer.json for each text encoder that there is one for
    license: str | None
    files: tuple[Path, ...]  # all that decides what is in it: tensors, then config.json and the key map where used
    stored: Mapping[str, Stored] = field(repr=False)  # where each tensor lies

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Shape, dtype and bytes of every tensor."""
        return {name: stored.info for name, stored in self.stored.items()}

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The leading part of this shape (None: all of it), in the stored dtype, contiguous, in memory of its own.

        Only the bytes of that part are read from the disk.

        Raises:
            BadInput: if there is no such tensor, or it is smaller than `shape`.
        """
        info = self.tensors.get(name)
        if info is None:
            raise BadInput(f"{self.path}: has no tensor {name!r}")
        wanted = info.shape if shape is None else shape
        if len(wanted) != len(info.shape) or any(w > n for w, n in zip(wanted, info.shape, strict=True)):
            raise BadInput(f"{self.path}: {name!r} has shape {list(info.shape)}, expected at least {list(wanted)}")
        view = self.stored[name].read(wanted)
        # A copy, since the view keeps the file mapped and would change when somebody writes to the file.
        return torch.empty(view.shape, dtype=view.dtype).copy_(view)

    @property
    def reads_prompts(self) -> bool:
        """Whether it has text encoders, and a tokenizer for each."""
        encoders = components_of(self.config).encoders
        return bool(encoders) and all(spec.name in self.tokenizers for spec in encoders)

    @property
    def tokenizer(self) -> str | None:
        """The tokenizer of the first text encoder."""
        return self.tokenizers.get(TEXT_ENCODER)

    def sha256(self) -> str:
        """Hash of the file; if there are several, of their `sha256  name` lines in order."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        digests = [_file_sha256(path) for path in self.files]
        if len(digests) == 1:
            return digests[0]
        lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, self.files, strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()


def embedded_path() -> Path:
    """The checkpoint that ships inside the package."""
    from snapgen_deploy import assets

    return Path(assets.__path__[0]) / "shapes.safetensors"


def open_checkpoint(path: Path | None, key_map: Path | None = None) -> Checkpoint:
    """Open a `.safetensors` file, a directory or index of shards, or a `.pt`/`.pth`; None opens the embedded checkpoint.

    The configuration, tokenizer and licence stand in the header's metadata, or in a `config.json` beside the file under
    the same keys; a key may be in both if its values agree.

    Raises:
        BadInput: if a file is missing or damaged, or the configuration, tokenizer or key map is invalid.
    """
    path = embedded_path() if path is None else Path(path)
    source, index = locate(path)
    about, config_file = _about(path, source)
    rules = load_key_map(key_map) if key_map is not None else None
    extra = [f for f in (index, config_file, key_map) if f is not None]
    document = about["snapgen_config"]
    where = f"{config_file or path}: snapgen_config"
    read = config_from_json if isinstance(document, str) else config_from_dict
    config = read(document, student_types(), where)
    _refuse_layers_without_tensors(config, len(source.tensors), where)
    if rules is not None:
        source = MappedSource.of(source, rules, expected_shapes(config))
    tokenizers = _tokenizers(about, config, config_file or path)
    return Checkpoint(
        path=path,
        config=config,
        tokenizers=tokenizers,
        license=_text(about.get("license")),
        files=(*source.files, *extra),
        stored=stored_as(source),
    )


def _refuse_layers_without_tensors(config: ModelConfig, tensors: int, where: str) -> None:
    """BadInput for many more layers than tensors: every layer is built, if without storage, to name its own."""
    layers = sum(spec.layers for spec in components_of(config))
    if layers > LAYERS_ANYWAY + tensors:
        raise BadInput(f"{where}: asks for {layers} layers at all widths, each of several tensors; got {tensors} tensors")


def _tokenizers(about: Mapping[str, Any], config: ModelConfig, where: Path) -> dict[str, str]:
    """Tokenizers by text encoder; includes one without an encoder, which a checkpoint may carry.

    Raises:
        BadInput: if one is not a tokenizer, or has token ids without an embedding in its text encoder.
    """
    first = _text(about.get(TOKENIZER))
    found = {} if first is None else {TEXT_ENCODER: first}
    for spec in components_of(config).encoders:
        if (text := _text(about.get(spec.reads.key))) is not None:
            check_tokenizer(text, spec, where)
            found[spec.name] = text
    return found


def check_tokenizer(text: str, spec: ComponentSpec, where: Path) -> None:
    """Check a text encoder's tokenizer, the text of a tokenizer.json.

    Raises:
        BadInput: if it is none, or has token ids without an embedding.
    """
    from snapgen_deploy.models.tokenizer import WordTokenizer

    try:
        rows = WordTokenizer(text).embedding_rows
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    if rows > spec.reads.vocab:
        raise BadInput(
            f"{where}: the tokenizer has token ids up to {rows - 1}, the {spec.title} has {spec.reads.vocab} "
            f"embeddings ({spec.name}.vocab); store the tokenizer that it was trained with"
        )


def _about(path: Path, source: Source) -> tuple[Mapping[str, Any], Path | None]:
    """Configuration, tokenizer and licence, and the config.json that some of them came from (None: all from the header).

    If the header has a configuration, a config.json with other keys than ours is not ours and ignored; so is one with another
    configuration if the path names the tensors' file and not its directory.
    """
    held = {key: source.metadata[key] for key in KEYS if key in source.metadata}
    beside = (path if path.is_dir() else path.parent) / "config.json"
    if not beside.is_file():
        if "snapgen_config" in held:
            return held, None
        raise BadInput(
            f"checkpoint {path}: has no configuration: expected 'snapgen_config' in the header's metadata or in {beside}"
        )
    data = json_object(beside)
    strange = bool(set(data) - set(KEYS))
    if "snapgen_config" in held:
        named_itself = not path.is_dir() and path.suffix != ".json"
        if strange or (named_itself and _differs("snapgen_config", held, data)):
            return held, None
    elif strange or "snapgen_config" not in data:
        got = ", ".join(data) or "nothing"
        raise BadInput(f"{beside}: got the keys {got[:200]}, expected snapgen_config and perhaps {' and '.join(KEYS[1:3])}")
    for key in KEYS:
        if _differs(key, held, data):
            raise BadInput(f"{beside}: its {key} is not that of the tensors' header; keep one of them")
    return data | held, beside if set(data) - set(held) else None


def _differs(key: str, held: Mapping[str, str], data: Mapping[str, Any]) -> bool:
    """Whether both have the key with different values; one may have as JSON text what the other has as an object."""
    return key in held and key in data and _parsed(held[key]) != _parsed(data[key])


def _parsed(value: Any) -> Any:
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _text(value: object) -> str | None:
    """A string as it is; an object (a tokenizer written out in config.json) as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
