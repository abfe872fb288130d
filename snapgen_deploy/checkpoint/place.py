"""Where a model is read from: a checkpoint, and components in the folders of their libraries in the place of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from snapgen_deploy.asked import AskedModel
from snapgen_deploy.checkpoint.about import config_table
from snapgen_deploy.checkpoint.library import open_library_folder
from snapgen_deploy.checkpoint.licences import licences_of
from snapgen_deploy.checkpoint.lora import Adapter, Update, open_adapter, parsed
from snapgen_deploy.checkpoint.merged import MergedSource, merged, refuse_left
from snapgen_deploy.checkpoint.module_file import OF_A_MODULE, ModuleReading, open_module
from snapgen_deploy.checkpoint.opener import (
    Checkpoint,
    MergedLora,
    Reading,
    check_tokenizer,
    named_checkpoint,
    open_with_adapters,
)
from snapgen_deploy.checkpoint.pipeline_folder import PipelineFolder, is_pipeline, open_pipeline_folder
from snapgen_deploy.checkpoint.stored import Stored, StoredSource, stored_as
from snapgen_deploy.checkpoint.student_folder import OF_DIFFUSERS, is_library_student, open_student, usual_reading
from snapgen_deploy.checkpoint.text_folder import open_text_folder
from snapgen_deploy.checkpoint.wrappers import Selection
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.names import DECODER
from snapgen_deploy.families.registry import FAMILIES, components_of
from snapgen_deploy.models.config import AnyTextEncoder, LibraryDecoder, ModelConfig, TextStream
from snapgen_deploy.models.library_decoder import decodes
from snapgen_deploy.models.serialise import semantic_problems
from snapgen_deploy.system.documents import refuse


@dataclass(frozen=True)
class CheckpointPlace:
    """Where a model is read from. It is passed to child processes, which open the files themselves."""

    path: Path | None  # None: the embedded checkpoint
    key_map: Path | None = None
    text_encoders: tuple[tuple[str, Path], ...] = ()  # text stream, and the folder of transformers that feeds it
    without: tuple[str, ...] = ()  # text streams that stay empty
    decoder: Path | None = None  # folder of diffusers
    config: Path | None = None  # of a file that has no configuration
    family: str = ""  # that the student must be of; "": any
    selection: Selection = field(default_factory=Selection)  # where the weights are in the file
    loras: tuple[tuple[Path, float], ...] = ()  # added to the weights in this order, times these scales
    license: str | None = None  # under which the bundle goes out, in the place of what its parts state
    module: str = ""  # package.module:Class of the student in an installed package

    @classmethod
    def of(cls, path: Path | None, asked: AskedModel) -> CheckpointPlace:
        """The place that a command was asked for.

        Raises:
            BadInput: if a text encoder is not given as NAME=PATH, a LoRA not as PATH or PATH:SCALE, or both --prefix and --ema.
        """
        if asked.prefix is not None and asked.ema:
            raise BadInput("--prefix and --ema: expected one of them")
        folders = []
        for text in asked.text_encoder or ():
            stream, given, folder = text.partition("=")
            if not (stream and given and folder):
                raise BadInput(f"--text-encoder: got '{text}', expected STREAM=FOLDER, such as clip=./clip-vit-large-patch14")
            folders.append((stream, Path(folder)))
        return cls(
            named_checkpoint(path),
            key_map=asked.key_map,
            text_encoders=tuple(folders),
            without=tuple(asked.without_text_encoder or ()),
            decoder=asked.decoder,
            config=asked.config,
            family=asked.family or "",
            selection=Selection(asked.prefix, asked.ema),
            loras=tuple(parsed(text) for text in asked.lora or ()),
            license=asked.license,
            module=asked.module or "",
        )

    def open(self) -> Checkpoint:
        """The checkpoint, with these components in the place of its own. Reads headers and configurations, no tensors.

        Raises:
            BadInput: as `open_checkpoint`; if a folder is not as its library writes it, or does not fit the student; if a text
                stream is not the student's, or is named twice.
        """
        folder = self._folder
        adapters = [open_adapter(path, scale) for path, scale in self.loras]
        path = folder.student if folder else self.path
        self._check_module(path)
        if self.family and self.family not in FAMILIES:
            raise BadInput(f"--family: got '{self.family}', expected one of {', '.join(FAMILIES)}")
        if self.module and path is not None:
            reading = ModuleReading(self.module, self.config, self.selection)
            opened, left = open_module(path, reading, adapters)
        elif path is not None and (self.family == OF_DIFFUSERS or is_library_student(path, self.config)):
            opened, left = open_student(path, folder, self.config, adapters)
        else:
            opened, left = open_with_adapters(path, self.reading, adapters)
            if folder is not None:
                folder.check_schedule(opened.config)
        if self.family not in ("", opened.config.family):
            raise BadInput(f"--family: got '{self.family}', {path or 'the checkpoint'} has a student of {opened.config.family}")
        place = self if folder is None else self._within(folder, opened.config)
        if folder is not None:
            opened = dataclasses.replace(opened, path=folder.path, files=(*opened.files, *folder.files))
        opened = _with_loras(place._composed(opened), adapters, left)
        return self._licensed(opened)

    def _licensed(self, opened: Checkpoint) -> Checkpoint:
        """The checkpoint with the licence of each of its parts: that of `license` for all of them, or what each states."""
        parts = [*components_of(opened.config).names, *(f"LoRA {lora.name}" for lora in opened.loras)]
        if self.license is not None:
            return dataclasses.replace(opened, licences=dict.fromkeys(parts, self.license))
        own = [] if self.file is None else _card_folders(self.file)
        folders = {name: _card_folders(path) for name, path in opened.folders.items()}
        loras = {f"LoRA {lora.name}": _card_folders(path) for lora, (path, _) in zip(opened.loras, self.loras, strict=True)}
        return dataclasses.replace(opened, licences=licences_of(parts, opened.license, own, folders | loras))

    def _check_module(self, path: Path | None) -> None:
        """BadInput for options that do not go with `module`, or need it."""
        if not self.module:
            said = None if self.config is None else config_table(self.config).get("family")
            if OF_A_MODULE in (self.family, said):
                raise BadInput(f"family {OF_A_MODULE}: name the class with --module package.module:Class")
            return
        if path is None:
            raise BadInput(f"--module {self.module}: has no weights; give the file with --checkpoint")
        if self.family not in ("", OF_A_MODULE):
            raise BadInput(f"--module {self.module}: is of family {OF_A_MODULE}, got --family {self.family}")
        if self.key_map is not None:
            raise BadInput(f"--key-map: does not go with --module; save the tensors under the names of {self.module}")

    @property
    def reading(self) -> Reading:
        """How the checkpoint's own file is read."""
        return Reading(self.key_map, self.config, self.selection)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where model cards may lie: the folders that its components come from; none for the embedded checkpoint."""
        places = [path for path in (self.path, self.file, self.decoder) if path is not None]
        places += [path for _, path in self.text_encoders] + [path for path, _ in self.loras]
        return tuple(_folder_of(path) for path in places)

    @property
    def file(self) -> Path | None:
        """The file or folder of the student."""
        return self._folder.student if self._folder else self.path

    @cached_property
    def _folder(self) -> PipelineFolder | None:
        """Where the components of a pipeline's folder lie; None where the path is none."""
        return None if self.path is None else open_pipeline_folder(self.path)

    def _composed(self, opened: Checkpoint) -> Checkpoint:
        if not (self.text_encoders or self.without or self.decoder):
            return opened
        streams = [stream.name for stream in opened.config.student.text_streams]
        for name in (named := self.named):
            if name not in streams:
                raise BadInput(f"text encoder {name!r}: the student has no such text stream; it has {', '.join(streams)}")
            if (times := named.count(name)) > 1:
                raise BadInput(f"text encoder {name!r}: got {times} times, expected one folder or none for a stream")
        return _assembled(opened, self)

    @property
    def named(self) -> list[str]:
        """The text streams that it says something of."""
        return [stream for stream, _ in self.text_encoders] + list(self.without)

    def _within(self, folder: PipelineFolder, config: ModelConfig) -> CheckpointPlace:
        """The place with the components of a pipeline's folder, where it names no others."""
        streams, found = [stream.name for stream in config.student.text_streams], folder.text_encoders
        if len(found) > len(streams):
            raise BadInput(f"{folder.path}: has {len(found)} text encoders, the student has {len(streams)} text streams")
        held = zip(streams, found, strict=False)
        texts = tuple((stream, path) for stream, path in held if stream not in self.named)
        return dataclasses.replace(self, text_encoders=(*self.text_encoders, *texts), decoder=self.decoder or folder.decoder)


def _folder_of(path: Path) -> Path:
    """A folder itself, or that of a file."""
    return path if path.is_dir() else path.parent


def _card_folders(path: Path) -> list[Path]:
    """Where the model card of a file or folder may lie: beside the file; in the folder, or in that of its pipeline."""
    folder = _folder_of(path)
    pipeline = folder.resolve().parent
    return [folder, pipeline] if path.is_dir() and is_pipeline(pipeline) else [folder]


def _with_loras(
    opened: Checkpoint, adapters: Sequence[Adapter], left: Sequence[tuple[Adapter, Sequence[Update]]]
) -> Checkpoint:
    """The checkpoint with what is left of adapters added to components that came from elsewhere, and with all recorded."""
    if not adapters:
        return opened
    rest = [dataclasses.replace(adapter, updates=tuple(updates)) for adapter, updates in left]
    source, left = merged(StoredSource(opened.stored, opened.files), rest)
    totals = {adapter.path: adapter for adapter in adapters}
    refuse_left([(totals[adapter.path], updates) for adapter, updates in left], opened.tensors)
    return dataclasses.replace(
        opened,
        stored=stored_as(source),
        adapted=frozenset(source.updates if isinstance(source, MergedSource) else ()),
        files=(*opened.files, *(file for adapter in adapters for file in adapter.files)),
        loras=tuple(MergedLora(a.path.name, a.files, a.strength) for a in adapters),
        notes=(*opened.notes, *map(_told, adapters)),
    )


def _told(adapter: Adapter) -> str:
    count = len(adapter.updates)
    return f"LoRA {adapter.path.name} times {adapter.strength:g}: {count} module{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class _TextPart:
    """A text encoder before it has its number."""

    config: AnyTextEncoder
    stored: Mapping[str, Stored]  # by names without the component's
    tokenizer: str | None
    files: tuple[Path, ...] = ()
    folder: Path | None = None  # that its library wrote


def _text_parts(opened: Checkpoint) -> list[_TextPart]:
    """The checkpoint's own text encoders."""
    specs = components_of(opened.config).encoders
    return [
        _TextPart(config, _inside(opened.stored, spec.name), opened.tokenizers.get(spec.name))
        for config, spec in zip(opened.config.text_encoders, specs, strict=True)
    ]


def _opened_text(config: ModelConfig, stream: TextStream, path: Path) -> _TextPart:
    found = open_text_folder(path, stream, usual_reading(config, stream))
    return _TextPart(found.config, found.stored, found.tokenizer, found.files, found.folder)


def _assembled(opened: Checkpoint, place: CheckpointPlace) -> Checkpoint:
    """The checkpoint with the text encoders and the decoder of a place, and its own where that names none."""
    streams = {stream.name: stream for stream in opened.config.student.text_streams}
    parts = [part for part in _text_parts(opened) if part.config.stream not in place.named]
    parts += [_opened_text(opened.config, streams[name], path) for name, path in place.text_encoders]
    parts.sort(key=lambda part: list(streams).index(part.config.stream))
    decoder = None if place.decoder is None else open_library_folder(place.decoder, DECODER)
    first, others = (parts[0].config, parts[1:]) if parts else (None, [])
    config = dataclasses.replace(
        opened.config,
        text_encoder=first,
        other_text_encoders=tuple(part.config for part in others),
        absent_streams=place.without,
    )
    if decoder is not None:
        config = dataclasses.replace(config, decoder=LibraryDecoder("diffusers", dict(decoder.config)))
    refuse(str(opened.path), semantic_problems(config))
    components = components_of(config)
    stored = {name: tensor for name, tensor in opened.stored.items() if not _is_of(name, components_of(opened.config).encoders)}
    tokenizers, files = {}, list(opened.files)
    for spec, part in zip(components.encoders, parts, strict=True):
        stored |= {f"{spec.name}.{name}": tensor for name, tensor in part.stored.items()}
        files += part.files
        if part.tokenizer is not None:
            check_tokenizer(part.tokenizer, spec, opened.path)
            tokenizers[spec.name] = part.tokenizer
    if decoder is not None and components.decoder is not None:
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith(f"{DECODER}.")}
        stored |= {f"{DECODER}.{name}": tensor for name, tensor in decoder.stored.items() if decodes(name)}
        files += decoder.files
    folders = {spec.name: p.folder for spec, p in zip(components.encoders, parts, strict=True) if p.folder is not None}
    return dataclasses.replace(
        opened,
        config=config,
        stored=dict(sorted(stored.items())),
        tokenizers=tokenizers,
        files=tuple(files),
        folders={**opened.folders, **folders, **({} if decoder is None else {DECODER: decoder.path})},
    )


def _is_of(name: str, specs: Sequence[ComponentSpec]) -> bool:
    return any(name.startswith(f"{spec.name}.") for spec in specs)


def _inside(stored: Mapping[str, Stored], component: str) -> dict[str, Stored]:
    """A component's tensors by their names without the component's."""
    return {n.removeprefix(f"{component}."): tensor for n, tensor in stored.items() if n.startswith(f"{component}.")}
