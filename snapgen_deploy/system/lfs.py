"""Git LFS pointers: small text files that stand for a file that was not downloaded."""

from __future__ import annotations

from pathlib import Path

from snapgen_deploy.errors import BadInput

POINTER = b"version https://git-lfs"
"""How a pointer begins."""


def is_pointer(head: bytes) -> bool:
    """Whether bytes begin as a Git LFS pointer."""
    return head.startswith(POINTER)


def pointer_line(path: Path) -> str:
    """The message for a pointer file."""
    return f"{path}: got a Git LFS pointer, expected the file that it stands for; run `git lfs pull` in its repository"


def refuse_pointer(path: Path) -> None:
    """Check that a file is not a pointer; one that cannot be read is left to its reader.

    Raises:
        BadInput: if it is one.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(POINTER))
    except OSError:
        return
    if is_pointer(head):
        raise BadInput(pointer_line(path))
