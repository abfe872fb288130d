"""Files of the tool's own: where its cache lies, and text that is written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from snapgen_deploy.errors import BadInput


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/snapgen-deploy`, else `~/.cache/snapgen-deploy`."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "snapgen-deploy"  # the specification: relative is invalid


def files_under(root: Path) -> list[Path]:
    """All files below `root`, sorted by their path."""
    return sorted(p for p in root.rglob("*") if p.is_file())


def write_text(path: Path, text: str, mend: str, *, parents: bool = False) -> None:
    """Write the whole file or nothing, with its folders where `parents`; BadInput that ends in `mend` where it cannot be."""
    part: Path | None = None
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        part = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        part.chmod(0o644)  # mkstemp makes it private
        part.replace(path)
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise BadInput(f"cannot write {path} ({error.strerror}); {mend}") from None
