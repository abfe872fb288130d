"""One JSON line for each picture, kept in a file of this computer; nothing is sent. docs/formats.md has its fields."""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput

_KEPT = 500  # lines
_STATM = Path("/proc/self/statm")  # on Linux: pages of the process


class PictureRefused(BadInput):
    """A prompt or a picture that is refused; `why` is its word in a record."""

    def __init__(self, why: str, said: str) -> None:
        super().__init__(said)
        self.why = why


class PictureRecord:
    """The last lines of pictures, in a file. Threads may share one."""

    def __init__(self, path: Path, kept: int = _KEPT) -> None:
        self.path, self.kept = path, kept
        self._lock = threading.Lock()

    def lines(self) -> list[str]:
        """The lines, the oldest first."""
        try:
            return [line for line in self.path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError:
            return []

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line; beyond `kept` the oldest go.

        Raises:
            BadInput: if the file cannot be written.
        """
        with self._lock:
            try:
                now = [*self.lines(), json.dumps(line, ensure_ascii=False)][-self.kept :]
                part = self.path.with_name(f"{self.path.name}.part")
                part.write_text("\n".join(now) + "\n", encoding="utf-8")
                part.replace(self.path)
            except OSError as error:
                raise BadInput(f"the record {self.path} cannot be written ({error.strerror})") from None


def picture_line(manifest: Mapping[str, Any], target: str, runtime: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
    """The line of a picture that begins now; `rest` has what is known of it in the end."""
    memory = process_bytes()
    return {
        "app": "python",
        "bundle": manifest["name"],
        "width": manifest["width"],
        "target": target,
        "precision": manifest["targets"][target]["precision"],
        "runtime": dict(runtime),
        "device": f"{platform.machine()}, {platform.system()} {platform.release()}",
        **rest,
        **({} if memory is None else {"memory": {"process": memory}}),
    }


def now() -> str:
    """The time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def process_bytes() -> int | None:
    """Bytes of memory that this process holds; None where the system does not tell."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
