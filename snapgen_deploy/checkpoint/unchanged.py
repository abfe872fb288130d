"""Whether a checkpoint is still the file that work began with."""

from __future__ import annotations

from collections.abc import Sequence

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.files import stamps


def refuse_changed(checkpoint: Checkpoint, before: Sequence[tuple[int, int, int]]) -> None:
    """Check that the checkpoint's files still have the `stamps` from `before`; otherwise its hash would name other bytes.

    Raises:
        BadInput: if a file was changed or removed.
    """
    try:
        same = stamps(checkpoint.files) == list(before)
    except OSError:  # removed, or its disk is gone
        same = False
    if not same:
        raise BadInput(f"checkpoint {checkpoint.path} was changed while it was exported; export again")
