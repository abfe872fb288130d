"""The cache of converted components: their files, under a key of everything that decides them.

An entry is stored only after its gates passed, and used only if every file still has the recorded hash; gates run again on
cached files. A cache that cannot be read or written never stops an export: it adds a note, and the work is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.export.base import Role
from snapgen_deploy.export.registry import specs
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.job.records import Exported, read_record, record_path, write_record
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.system.files import cache_root, discard_oldest, files_under, is_disk_full, sha256_of
from snapgen_deploy.system.source import source_sha256, version_of

DEFAULT_LIMIT = 10 * 10**9  # bytes
_TOOLS = ("torch", "numpy", "safetensors", "diffusers", "transformers")  # packages that networks come from, besides the targets
SEAL = "record.sha256"  # hash of the record, so that a change of its figures is detected too
_ABANDONED = 24 * 3600  # seconds after which the temporary folder of another process counts as abandoned


def export_cache_root() -> Path:
    """`$XDG_CACHE_HOME/snapgen-deploy/exports`, or the same folder in ~/.cache."""
    return cache_root() / "exports"


def export_key(checkpoint: Checkpoint, plan: ExportPlan, target: TargetPlan, role: Role, calibration: str = "") -> str:
    """Hash of everything that decides the files of one component.

    This is: the bytes of the checkpoint (with configuration and key map), the width if the component depends on it, the picture
    size, the pictures of a call, the target with its variant, precision, layout, form and options, this package's source,
    versions of the tools and of Python, the kind of processor, and `calibration` (the hash of what a quantiser or recipe looks
    at). Device, prompts and
    threads do not change a converted file.
    """
    spec = components_of(checkpoint.config)[role]
    options = [(name, value) for name, value in target.options if name != "folders"]  # the layout comes afterwards
    parts = [
        source_sha256(),
        tool_versions(),
        platform.python_version(),
        platform.system(),
        platform.machine(),
        checkpoint.sha256(),
        role,
        plan.width if spec.elastic or calibration else None,  # calibration pictures come from the student of that width
        plan.resolution,
        plan.latent,
        plan.batch,
        asdict(target) | {"options": options, "form_ms": (), "own_limits": ()},  # times and limits do not change the files
        calibration,
        plan.mixed.as_key() if plan.mixed is not None and target.precision == "mixed" and spec.takes_recipe else None,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def tool_versions() -> tuple[tuple[str, str], ...]:
    """Versions of all packages that may change a converted file, without importing them. Absent packages are listed too."""
    named = dict.fromkeys((*_TOOLS, *(tool for spec in specs().values() for tool in spec.tools)))
    return tuple((name, version_of(name)) for name in named)


@dataclass
class ExportCache:
    """Cache entries in the folder `root`. Beyond `limit` bytes in total, the least recently used are removed."""

    root: Path
    limit: int = DEFAULT_LIMIT
    notes: list[str] = field(default_factory=list)  # what went wrong, one line each, printed at the end

    def has(self, key: str) -> bool:
        """Whether there is an entry. Its hashes are checked only in `take`."""
        return (self.root / key / SEAL).is_file()

    def take(self, key: str, target: str, role: Role, directory: Path) -> Exported | None:
        """Copy an entry's files into `directory` and check the copies.

        A damaged entry is removed; then the result is None.

        Raises:
            OSError: if the disk is full.
        """
        entry, copies = self.root / key, list[Path]()
        try:
            record = record_path(entry, target, role)
            sound = sha256_of(record) == (entry / SEAL).read_text()
            for path in files_under(entry) if sound else ():
                if path.name != SEAL:
                    copies.append(directory / path.relative_to(entry))
                    copies[-1].parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copies[-1])
            found = read_record(directory, target, role) if sound else None
            record_path(directory, target, role).unlink(missing_ok=True)
            if found is not None:
                os.utime(entry / SEAL)
                return replace(found, cached=True)
            reason = "it is not what was stored"
        except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8
            if is_disk_full(error):
                raise  # not the entry's fault
            reason = getattr(error, "strerror", None) or str(error)
        for path in copies:
            path.unlink(missing_ok=True)
        self.notes.append(f"the cached {target} {role} was not used and was removed ({reason})")
        self.discard(key)
        return None

    def discard(self, key: str) -> None:
        """Remove an entry."""
        shutil.rmtree(self.root / key, ignore_errors=True)

    def prepare(self, directory: Path, exported: Exported) -> Path | None:
        """Copy a fresh component's files to a temporary entry, before anything moves them.

        Returns:
            The temporary folder, or None if the files are larger than the cache's limit or cannot be copied.
        """
        if sum(p.stat().st_size for p in exported.artifact.files) > self.limit:
            return None
        aside: Path | None = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
            moved = {path: aside / path.relative_to(directory) for path in exported.artifact.files}
            for path, copy in moved.items():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            place = aside / exported.artifact.path.relative_to(directory)
            artifact = replace(exported.artifact, path=place, files=tuple(moved.values()))
            write_record(aside, replace(exported, artifact=artifact))
            (aside / SEAL).write_text(sha256_of(record_path(aside, artifact.target, artifact.role)))
        except OSError as error:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            self.notes.append(f"not cached: {self.root} cannot be written ({error.strerror})")
            return None
        return aside

    def commit(self, key: str, aside: Path) -> None:
        """Rename a prepared entry to its key in one step, then remove old entries beyond the limit."""
        try:
            self.discard(key)
            aside.rename(self.root / key)
        except OSError as error:  # another process was faster, with the same content
            self.notes.append(f"not cached: {self.root / key} cannot be written ({error.strerror})")
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self.evict()

    def evict(self) -> None:
        """Remove the least recently used entries beyond the limit, and temporary folders of crashed processes."""
        entries: list[tuple[float, int, Path]] = []
        try:
            for path in self.root.iterdir():
                if path.name.startswith("."):
                    if time.time() - path.stat().st_mtime > _ABANDONED:
                        shutil.rmtree(path, ignore_errors=True)
                elif (path / SEAL).is_file():
                    total = sum(p.stat().st_size for p in files_under(path))
                    entries.append(((path / SEAL).stat().st_mtime, total, path))
        except OSError:  # another process is removing entries, and it enforces the limit too
            return
        discard_oldest(entries, self.limit)
