"""Joins one component, exported at several picture sizes, into files that share the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from snapgen_deploy.export.base import Artifact
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.job.records import Exported

SIZES_FOLDER = ".sizes"  # in a bundle that is being built: one folder per size, with the files to join


def join_sizes(key: str, parts: Mapping[str, Exported], directory: Path) -> Exported:
    """Join the parts, given by picture size, in `directory`, and read the result back. Runs in a child process.

    The result is the component at the first size; it holds those of the other sizes. Raises what `Target.join` raises.
    """
    target, _ = target_of(key)
    directory.mkdir(parents=True, exist_ok=True)
    joined = target.join({size: part.artifact for size, part in parts.items()}, directory)
    found = {
        size: replace(parts[size], artifact=artifact, description=target.describe(artifact.path, artifact.entry))
        for size, artifact in joined.artifacts.items()
    }
    first, *others = found
    return replace(
        found[first],
        peak_bytes=max(part.peak_bytes for part in parts.values()),
        seconds=round(sum(part.seconds for part in parts.values()), 1),
        cached=all(part.cached for part in parts.values()),
        others={size: found[size] for size in others},
        joined=joined,
    )


def whole(part: Exported) -> Artifact:
    """The artifact of the default size, with the files of all sizes."""
    files = dict.fromkeys(file for one in (part, *part.others.values()) for file in one.artifact.files)
    return replace(part.artifact, files=tuple(files))


def relocated(part: Exported, moved: Artifact, renamed: Callable[[Artifact, Path], Path]) -> Exported:
    """The component with the new paths after a layout moved `whole(part)` to `moved`.

    `renamed(artifact, file)` is the new name of a file. Files that the layout added belong to every size.
    """
    before = whole(part)
    places = {file: moved.path.parent / renamed(before, file) for file in before.files}
    added = tuple(file for file in moved.files if file not in places.values())

    def of(artifact: Artifact) -> Artifact:
        return replace(artifact, path=places[artifact.path], files=(*(places[f] for f in artifact.files), *added))

    others = {size: replace(one, artifact=of(one.artifact)) for size, one in part.others.items()}
    return replace(part, artifact=of(part.artifact), others=others)
