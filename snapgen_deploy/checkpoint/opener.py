"""Opens a checkpoint: finds its files, configuration and tensor names. Reads headers, no tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snapgen_deploy.checkpoint.about import read_about, text_of
from snapgen_deploy.checkpoint.expected import expected_shapes
from snapgen_deploy.checkpoint.float8 import dequantised
from snapgen_deploy.checkpoint.header import TensorInfo
from snapgen_deploy.checkpoint.keymap import KeyMap, load_key_map
from snapgen_deploy.checkpoint.lora import Adapter, Update
from snapgen_deploy.checkpoint.mapped import MappedSource
from snapgen_deploy.checkpoint.merged import merged
from snapgen_deploy.checkpoint.sources import Source
from snapgen_deploy.checkpoint.stored import Stored, stored_as
from snapgen_deploy.checkpoint.tensors import locate
from snapgen_deploy.checkpoint.wrappers import Selection, unwrapped
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.names import TEXT_ENCODER, TOKENIZER
from snapgen_deploy.families.registry import components_of, student_types
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.serialise import config_from_dict, config_from_json

LAYERS_ANYWAY = 64  # that a configuration may ask for, whatever the file holds of them


@dataclass(frozen=True)
class MergedLora:
    """A LoRA that was added to a checkpoint's tensors."""

    name: str  # of its folder or file
    files: tuple[Path, ...]
    scale: float  # what its updates were multiplied by, beside their own scale

    @property
    def sha256(self) -> str:
        """Of its weights; of a folder's, of both files as a checkpoint's."""
        return _joint_sha256(self.files)


@dataclass(frozen=True)
class Reading:
    """How a checkpoint's file is read."""

    key_map: Path | None = None
    config: Path | None = None  # of a file that has no configuration
    selection: Selection = field(default_factory=Selection)  # where the weights are in it


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Its tensors have our names, whatever the file calls them; none is read before `read`."""

    path: Path
    config: ModelConfig
    tokenizers: Mapping[str, str]  # the text of a tokenizer.json for each text encoder that there is one for
    license: str | None  # that it states
    files: tuple[Path, ...]  # all that decides what is in it: tensors, then config.json and the key map where used
    stored: Mapping[str, Stored] = field(repr=False)  # where each tensor lies
    loras: tuple[MergedLora, ...] = ()  # added to the tensors
    adapted: frozenset[str] = frozenset()  # tensors of libraries' folders to which a LoRA was added
    notes: tuple[str, ...] = ()  # what was found and done when it was opened, for people
    folders: Mapping[str, Path] = field(default_factory=dict)  # that libraries wrote, by component
    licences: Mapping[str, str | None] = field(default_factory=dict)  # of components and LoRAs; None: not stated

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
        """Hash of the file; if there are several, of their `sha256  name` lines in order, and of how much LoRA is added."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        lines = "".join(f"{lora.scale!r}  {lora.name}\n" for lora in self.loras)
        return _joint_sha256(self.files, lines)


def _joint_sha256(files: Sequence[Path], lines: str = "") -> str:
    digests = [_file_sha256(path) for path in files]
    if len(digests) == 1 and not lines:
        return digests[0]
    lines += "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


EMBEDDED = ("shapes", "shapes-unet")  # checkpoints that ship inside the package; the first is the default


def embedded_path(name: str = EMBEDDED[0]) -> Path:
    """A checkpoint that ships inside the package."""
    from snapgen_deploy import assets

    return Path(assets.__path__[0]) / f"{name}.safetensors"


def named_checkpoint(path: Path | None) -> Path | None:
    """The embedded checkpoint of this name, where no file or folder has it; else the path itself."""
    name = str(path)
    return embedded_path(name) if name in EMBEDDED and not Path(name).exists() else path


@dataclass(frozen=True)
class Foreign:
    """A checkpoint before its key map: tensors by the file's names, without what stood around them."""

    path: Path
    source: Source = field(repr=False)
    about: Mapping[str, Any] = field(repr=False)
    config: ModelConfig
    expected: Mapping[str, tuple[int, ...]] = field(repr=False)  # shapes of our tensors
    keys: KeyMap | None
    where: Path  # what the configuration and the tokenizers came from, in messages
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def open_foreign(path: Path | None, reading: Reading) -> Foreign:
    """Find the files and the weights in them, and read the configuration; names are not looked at yet.

    Raises:
        BadInput: as `open_checkpoint`.
    """
    path = embedded_path() if path is None else Path(path)
    source, index = locate(path)
    about, config_file = read_about(path, source, reading.config)
    keys = load_key_map(reading.key_map) if reading.key_map is not None else None
    document = about["snapgen_config"]
    where = f"{config_file or path}: snapgen_config"
    read = config_from_json if isinstance(document, str) else config_from_dict
    config = read(document, student_types(), where)
    _refuse_layers_without_tensors(config, len(source.tensors), where)
    expected = expected_shapes(config)
    found = unwrapped(path, source, reading.selection, partial(_fitting, keys, expected))
    plain, eights = dequantised(path, found.source)
    eight = f"fp8 with scales, read as fp32: {eights} tensor{'s' if eights > 1 else ''}" if eights else ""
    extra = [f for f in (index, config_file, reading.key_map) if f is not None]
    files, notes = (*source.files, *extra), tuple(note for note in (found.said, eight) if note)
    return Foreign(path, plain, about, config, expected, keys, config_file or path, files, notes)


def _fitting(keys: KeyMap | None, expected: Mapping[str, object], names: Sequence[str]) -> int:
    """How many names are ours, or have a rule."""
    return sum(name in expected or (keys is not None and keys.names_it(name)) for name in names)


def open_checkpoint(path: Path | None, key_map: Path | None = None) -> Checkpoint:
    """Open a `.safetensors` file, a directory or index of shards, or a `.pt`, `.pth` or `.ckpt`; None opens the embedded one.

    The configuration, tokenizer and licence stand in the header's metadata, or in a `config.json` beside the file under
    the same keys; a key may be in both if its values agree.

    Raises:
        BadInput: if a file is missing or damaged, or the configuration, tokenizer or key map is invalid.
    """
    return open_with_adapters(path, Reading(key_map), ())[0]


def open_with_adapters(
    path: Path | None, reading: Reading, adapters: Sequence[Adapter]
) -> tuple[Checkpoint, list[tuple[Adapter, list[Update]]]]:
    """As `open_checkpoint`, with LoRA added to the weights; also what of each adapter belongs to no tensor of this file.

    Modules are found by the file's names, and then by ours.

    Raises:
        BadInput: as `open_checkpoint`; if an adapter's shapes are not the weights'.
    """
    foreign = open_foreign(path, reading)
    source, left = merged(foreign.source, adapters)
    if foreign.keys is not None:
        source = MappedSource.of(source, foreign.keys, foreign.expected)
        source, left = merged(source, [replace(adapter, updates=tuple(rest)) for adapter, rest in left])
    checkpoint = Checkpoint(
        path=foreign.path,
        config=foreign.config,
        tokenizers=_tokenizers(foreign.about, foreign.config, foreign.where),
        license=text_of(foreign.about.get("license")),
        files=foreign.files,
        stored=stored_as(source),
        notes=foreign.notes,
    )
    return checkpoint, left


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
    first = text_of(about.get(TOKENIZER))
    found = {} if first is None else {TEXT_ENCODER: first}
    for spec in components_of(config).encoders:
        if (text := text_of(about.get(spec.reads.key))) is not None:
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


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
