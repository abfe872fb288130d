"""What a target takes from the cache and leaves in it: fresh components are stored once its gates held."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.unchanged import refuse_changed
from snapgen_deploy.job.cache import ExportCache


@dataclass
class Keep:
    """The cache entries of one target: what was prepared, and what was taken, of a checkpoint as it was `before`."""

    cache: ExportCache | None
    checkpoint: Checkpoint
    before: list[tuple[int, int, int]]
    prepared: dict[str, Path] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    sound: bool | None = None  # whether the gates held; None until they ran

    def check_unchanged(self) -> None:
        """BadInput where the checkpoint is another since: what was made of it must not be kept under the old one's key."""
        refuse_changed(self.checkpoint, self.before)


@contextmanager
def kept(cache: ExportCache | None, checkpoint: Checkpoint, before: list[tuple[int, int, int]]) -> Iterator[Keep]:
    """Stores a target's fresh components once its gates held; drops the entries that it took when they did not."""
    keep = Keep(cache, checkpoint, before)
    try:
        yield keep
        keep.check_unchanged()
        if cache is not None and keep.sound:
            for key in list(keep.prepared):
                cache.commit(key, keep.prepared.pop(key))
        elif cache is not None:
            for key in keep.taken:
                cache.discard(key)
    finally:
        for aside in keep.prepared.values():
            shutil.rmtree(aside, ignore_errors=True)
