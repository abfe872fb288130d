"""What an update from one bundle to another downloads: files whose content the older one does not have under any name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snapgen_deploy.bundle.reader import MANIFEST, Bundle, digests
from snapgen_deploy.errors import BadInput

COMMON = "common files"


@dataclass(frozen=True)
class UpdatePart:
    """A component of one target, or the files that belong to none."""

    name: str  # such as `onnx:cpu student`
    bytes: int  # of the newer bundle
    download: int  # of those, bytes of files whose content is new
    changed: tuple[str, ...]  # these files
    removed: tuple[str, ...]  # files of the older bundle whose name is gone


@dataclass(frozen=True)
class BundleUpdate:
    """The way from one bundle to another."""

    parts: tuple[UpdatePart, ...]

    @property
    def bytes(self) -> int:
        """All of the newer bundle that was asked for."""
        return sum(part.bytes for part in self.parts)

    @property
    def download(self) -> int:
        """What a device that has the older bundle downloads."""
        return sum(part.download for part in self.parts)


def update_of(older: Bundle, newer: Bundle, targets: Sequence[str] = ()) -> BundleUpdate:
    """Compare two bundles by the hashes that their manifests record. A file that was only renamed is not downloaded.

    Args:
        older: What the device has.
        newer: What it shall have.
        targets: Keys of targets to look at, as an app ships few. Default: all of the newer bundle.

    Raises:
        BadInput: if the newer bundle does not hold one of the targets, or lacks a file that it lists.
    """
    for key in targets:
        if key not in newer.targets:
            raise BadInput(f"{newer.name} holds no target '{key}': it holds {', '.join(newer.targets)}")
    chosen = tuple(targets) or newer.targets
    hashes = digests(newer.manifest) | {MANIFEST: None}
    held = {digest for digest in digests(older.manifest).values() if digest}
    before, after = dict(_parts(older, chosen)), dict(_parts(newer, chosen))
    found, counted = [], set[str]()
    for name in [*after, *(name for name in before if name not in after)]:
        files = [file for file in after.get(name, ()) if file not in counted]
        counted.update(files)
        sizes = {file: _size(newer, file) for file in files}
        changed = tuple(file for file in files if hashes.get(file) not in held)
        removed = tuple(file for file in before.get(name, ()) if file not in hashes)
        found.append(UpdatePart(name, sum(sizes.values()), sum(sizes[file] for file in changed), changed, removed))
    return BundleUpdate(tuple(found))


def _parts(bundle: Bundle, targets: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The files of each part that is looked at."""
    for key in targets:
        if key in bundle.targets:
            for role, component in bundle.manifest["targets"][key]["components"].items():
                yield f"{key} {role}", tuple(component["files"])
    yield COMMON, (MANIFEST, *bundle.manifest["files"])


def _size(bundle: Bundle, name: str) -> int:
    try:
        return (bundle.path / name).stat().st_size
    except OSError as error:
        raise BadInput(f"{bundle.name}: {name} cannot be read ({error.strerror}); `verify` says what is missing") from None
