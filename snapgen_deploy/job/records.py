"""Records of finished components, so that `export --resume` can continue an interrupted run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from snapgen_deploy.export.base import Artifact, Description, Joined, Role
from snapgen_deploy.system.files import files_under, sha256_of


@dataclass(frozen=True)
class Exported:
    """One converted component of one target."""

    artifact: Artifact
    description: Description
    versions: dict[str, str]
    peak_bytes: int  # peak memory of the largest process that took part in its conversion
    seconds: float = 0.0  # duration of the conversion
    cached: bool = False  # whether it came from the cache
    # For a component that depends on the picture size, in a plan of several: the other sizes, and the result of joining them.
    others: Mapping[str, Exported] = field(default_factory=dict)
    joined: Joined | None = None

    def at(self, size: str) -> Exported:
        """The component at one picture size; itself if it serves all sizes, or the size is the default."""
        return self.others.get(size, self)


def record_path(root: Path, target_key: str, role: Role) -> Path:
    """File of a component's record while a bundle is built."""
    return root / f".{target_key.replace(':', '-')}-{role}.done"


def write_record(root: Path, exported: Exported, recipe: str = "") -> None:
    """Record a finished component with the hashes of its files and of its recipe, if any."""
    artifact = exported.artifact
    data = {
        "path": artifact.path.relative_to(root).as_posix(),
        "files": {p.relative_to(root).as_posix(): sha256_of(p) for p in artifact.files},
        "description": asdict(exported.description),
        "versions": exported.versions,
        "peak_bytes": exported.peak_bytes,
        "seconds": exported.seconds,
        "compile_seconds": artifact.compile_seconds,
        "recipe": recipe,
    }
    record_path(root, artifact.target, artifact.role).write_text(json.dumps(data), encoding="utf-8")


def read_record(root: Path, target_key: str, role: Role, recipe: str = "") -> Exported | None:
    """Read a finished component; None if there is none, its files changed, or it was made with another recipe."""
    path = record_path(root, target_key, role)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        files = {root / name: digest for name, digest in data["files"].items()}
        if data["recipe"] != recipe or any(not p.is_file() or sha256_of(p) != digest for p, digest in files.items()):
            return None
        artifact = Artifact(target_key, role, root / data["path"], tuple(files), compile_seconds=data["compile_seconds"])
        description = Description(**data["description"] | {"notes": tuple(data["description"]["notes"])})
        return Exported(artifact, description, data["versions"], data["peak_bytes"], data["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def finished_components(root: Path) -> int:
    """How many components have a record below `root`, each picture size counted by itself."""
    return sum(1 for _ in root.rglob(".*.done"))


def remove_unowned(root: Path) -> None:
    """Remove files without a record: half-written files of killed processes would become part of the bundle."""
    owned: set[Path] = set()
    for record in root.rglob(".*.done"):
        try:
            owned |= {record.parent / name for name in json.loads(record.read_text(encoding="utf-8"))["files"]} | {record}
        except (ValueError, KeyError, TypeError):
            continue
    for path in files_under(root):
        if path not in owned:
            path.unlink()
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def forget(root: Path) -> None:
    """Remove all records: they are not part of a bundle."""
    for record in root.glob(".*.done"):
        record.unlink()
