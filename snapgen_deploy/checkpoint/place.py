"""Where a model is read from: a checkpoint, and components in the folders of their libraries in the place of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.checkpoint.library import open_library_folder, tokenizer_of
from snapgen_deploy.checkpoint.opener import Checkpoint, check_tokenizer, open_checkpoint
from snapgen_deploy.checkpoint.pipeline_folder import PipelineFolder, open_pipeline_folder
from snapgen_deploy.checkpoint.stored import Stored
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.names import DECODER
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.config import AnyTextEncoder, LibraryDecoder, LibraryTextEncoder, ModelConfig, TextStream
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

    def open(self) -> Checkpoint:
        """The checkpoint, with these components in the place of its own. Reads headers and configurations, no tensors.

        Raises:
            BadInput: as `open_checkpoint`; if a folder is not as its library writes it, or does not fit the student; if a text
                stream is not the student's, or is named twice.
        """
        folder = None if self.path is None else open_pipeline_folder(self.path)
        opened = open_checkpoint(folder.student if folder else self.path, self.key_map)
        place = self if folder is None else self._within(folder, opened.config)
        if folder is not None:
            opened = dataclasses.replace(opened, path=folder.path, files=(*opened.files, *folder.files))
        if not (place.text_encoders or place.without or place.decoder):
            return opened
        streams = [stream.name for stream in opened.config.student.text_streams]
        for name in (named := place.named):
            if name not in streams:
                raise BadInput(f"text encoder {name!r}: the student has no such text stream; it has {', '.join(streams)}")
            if (times := named.count(name)) > 1:
                raise BadInput(f"text encoder {name!r}: got {times} times, expected one folder or none for a stream")
        return _assembled(opened, place)

    @property
    def named(self) -> list[str]:
        """The text streams that it says something of."""
        return [stream for stream, _ in self.text_encoders] + list(self.without)

    def _within(self, folder: PipelineFolder, config: ModelConfig) -> CheckpointPlace:
        """The place with the components of a pipeline's folder, where it names no others."""
        folder.check_schedule(config)
        streams, found = [stream.name for stream in config.student.text_streams], folder.text_encoders
        if len(found) > len(streams):
            raise BadInput(f"{folder.path}: has {len(found)} text encoders, the student has {len(streams)} text streams")
        held = zip(streams, found, strict=False)
        texts = tuple((stream, path) for stream, path in held if stream not in self.named)
        return dataclasses.replace(self, text_encoders=(*self.text_encoders, *texts), decoder=self.decoder or folder.decoder)


@dataclass(frozen=True)
class _TextPart:
    """A text encoder before it has its number."""

    config: AnyTextEncoder
    stored: Mapping[str, Stored]  # by names without the component's
    tokenizer: str | None
    files: tuple[Path, ...] = ()


def _text_parts(opened: Checkpoint) -> list[_TextPart]:
    """The checkpoint's own text encoders."""
    specs = components_of(opened.config).encoders
    return [
        _TextPart(config, _inside(opened.stored, spec.name), opened.tokenizers.get(spec.name))
        for config, spec in zip(opened.config.text_encoders, specs, strict=True)
    ]


def _opened_text(stream: TextStream, path: Path) -> _TextPart:
    folder = open_library_folder(path, f"text encoder {stream.name}")
    tokenizer, files = tokenizer_of(path)
    config = LibraryTextEncoder("transformers", dict(folder.config), stream.length, stream.name)
    return _TextPart(config, folder.stored, tokenizer, (*folder.files, *files))


def _assembled(opened: Checkpoint, place: CheckpointPlace) -> Checkpoint:
    """The checkpoint with the text encoders and the decoder of a place, and its own where that names none."""
    streams = {stream.name: stream for stream in opened.config.student.text_streams}
    parts = [part for part in _text_parts(opened) if part.config.stream not in place.named]
    parts += [_opened_text(streams[name], path) for name, path in place.text_encoders]
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
        own = {f"{spec.name}.{name}": tensor for name, tensor in part.stored.items()}
        stored |= _taken(spec, part.stored) if isinstance(part.config, LibraryTextEncoder) else own
        files += part.files
        if part.tokenizer is not None:
            check_tokenizer(part.tokenizer, spec, opened.path)
            tokenizers[spec.name] = part.tokenizer
    if decoder is not None and components.decoder is not None:
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith(f"{DECODER}.")}
        stored |= _taken(components.decoder, decoder.stored)
        files += decoder.files
    return dataclasses.replace(
        opened, config=config, stored=dict(sorted(stored.items())), tokenizers=tokenizers, files=tuple(files)
    )


def _is_of(name: str, specs: Sequence[ComponentSpec]) -> bool:
    return any(name.startswith(f"{spec.name}.") for spec in specs)


def _inside(stored: Mapping[str, Stored], component: str) -> dict[str, Stored]:
    """A component's tensors by their names without the component's."""
    return {n.removeprefix(f"{component}."): tensor for n, tensor in stored.items() if n.startswith(f"{component}.")}


def _taken(spec: ComponentSpec, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Of a library's folder only what the component needs: an autoencoder's has an encoder, too."""
    return {f"{spec.name}.{name}": stored[name] for name in spec.stored_shapes() if name in stored}
