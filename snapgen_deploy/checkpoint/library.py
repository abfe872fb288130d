"""Components in the folder that their library's `save_pretrained` writes: config.json and safetensors, one file or shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapgen_deploy.checkpoint.sources import SafetensorsSource, Source
from snapgen_deploy.checkpoint.stored import Stored, stored_as
from snapgen_deploy.checkpoint.tensors import json_object, sharded, weights_in
from snapgen_deploy.errors import BadInput

_CONFIG = "config.json"


@dataclass(frozen=True)
class LibraryFolder:
    """A library's folder of one component; no tensor is read."""

    path: Path
    config: Mapping[str, Any]
    source: Source = field(repr=False)
    files: tuple[Path, ...]  # all that decides what is in it

    @property
    def stored(self) -> dict[str, Stored]:
        """Its tensors, by the library's names."""
        return stored_as(self.source)


def open_library_folder(path: Path, what: str) -> LibraryFolder:
    """Read the configuration and the headers of a folder; `what` names the component in messages.

    Raises:
        BadInput: if the folder, its config.json or its safetensors are missing or damaged, or there are two sets of weights.
    """
    if not path.is_dir():
        raise BadInput(f"{what} {path}: not a folder; give one with {_CONFIG} and safetensors, as save_pretrained writes it")
    if not (path / _CONFIG).is_file():
        raise BadInput(f"{what} {path}: has no {_CONFIG}; give a folder as save_pretrained writes it")
    config = json_object(path / _CONFIG)
    found = weights_in(path, what)
    if found.suffix == ".json":
        source, index = sharded(found)
        return LibraryFolder(path, config, source, (*source.files, index, path / _CONFIG))
    return LibraryFolder(path, config, SafetensorsSource.of((found,)), (found, path / _CONFIG))
