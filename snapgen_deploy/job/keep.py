"""What a target takes from the cache and adds to it: new components are stored once the target's gates passed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.unchanged import refuse_changed
from snapgen_deploy.job.cache import ExportCache


@dataclass
class Keep:
    """The cache entries of one target: those prepared and those taken. `before` are the `stamps` of the checkpoint's files."""

    cache: ExportCache | None
    checkpoint: Checkpoint
    before: Sequence[tuple[int, int, int]]
    prepared: dict[str, Path] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    sound: bool | None = None  # whether the gates passed; None until they ran

    def check_unchanged(self) -> None:
        """Check that the checkpoint is still the same: results of a changed one must not be cached under the old key.

        Raises:
            BadInput: if the checkpoint's files changed.
        """
        refuse_changed(self.checkpoint, self.before)


@contextmanager
def kept(cache: ExportCache | None, checkpoint: Checkpoint, before: Sequence[tuple[int, int, int]]) -> Iterator[Keep]:
    """Store a target's new components at the end if its gates passed; otherwise remove the entries that it took."""
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
