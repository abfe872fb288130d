"""The bundle on disk: built beside its final place, hashed, fsynced, renamed once; opened only when its hashes hold."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from snapgen_deploy.bundle_sizes import at_size, vectors_name
from snapgen_deploy.device_profiles import PRECISIONS, Limits
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.export.base import ROLES, Artifact, Role
from snapgen_deploy.files import files_under
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.models.serialise import config_from_dict
from snapgen_deploy.pipeline import Schedule
from snapgen_deploy.sizes import size_name

SCHEMA_VERSION = 1
ABANDONED = 24 * 3600  # seconds after which what an interrupted run of another plan left is removed
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
RUN = "export_run.json"  # how this export went; not hashed, since it changes from run to run


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it is, and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def config(self) -> ModelConfig:
        """The configuration of the checkpoint that the bundle was made from."""
        return config_from_dict(self.manifest["config"])

    @property
    def schedule(self) -> Schedule:
        """The sampler's schedule."""
        s = self.manifest["schedule"]
        return Schedule(tuple(s["sigmas"]), s["shift"], s["time_features"]["count"], s["sampler"])

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels, height, width of the latent."""
        channels, height, width = self.manifest["latent"]["shape"]
        return channels, height, width

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the picture sizes, `<height>x<width>`, the default one first."""
        return tuple(s["name"] for s in self.manifest.get("sizes", ())) or (size_name(self.manifest["resolution"]),)

    def at(self, size: str | None) -> Bundle:
        """The bundle as if it held one of its sizes alone (None: the default one); BadInput that lists them for another."""
        if size is not None and size not in self.sizes:
            raise BadInput(f"{self.path.name} does not draw {size}: its sizes are {', '.join(self.sizes)}")
        if "sizes" not in self.manifest:
            return self
        return Bundle(self.path, at_size(self.manifest, size or self.sizes[0]))

    @property
    def test_vectors(self) -> Path:
        """The file of fixed inputs and expected outputs."""
        return self.path / vectors_name(self.manifest.get("vectors_of"))

    @property
    def targets(self) -> tuple[str, ...]:
        """Target keys in the device profile's order."""
        return tuple(self.manifest["target_order"])

    def precision(self, key: str) -> str:
        """Precision of one target."""
        return str(self.manifest["targets"][key]["precision"])

    def limits(self, key: str) -> Limits:
        """What the files of one target are held to; of a bundle that does not say, what its precision is."""
        target = self.manifest["targets"][key]
        return replace(PRECISIONS[target["precision"]].limits, **target.get("limits", {}))

    def artifacts(self, key: str) -> dict[Role, Artifact]:
        """The exported components of one target."""
        if key not in self.targets:
            raise BadInput(f"{self.path.name} holds no target '{key}': it holds {', '.join(self.targets)}")
        components = self.manifest["targets"][key]["components"]
        return {
            role: Artifact(key, role, self.path / c["path"], tuple(self.path / f for f in c["files"]), c.get("entry", ""))
            for role in ROLES
            if (c := components.get(role)) is not None
        }

    def run(self) -> dict[str, Any] | None:
        """What the export took (see `run_record`); None where a bundle has no such record."""
        path = self.path / RUN
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def tokenizer(self) -> str | None:
        """Text of the bundle's tokenizer.json."""
        path = self.path / "tokenizer.json"
        return path.read_text(encoding="utf-8") if path.exists() else None


def bundle_name(checkpoint: str, device: str) -> str:
    """What a bundle is called, by the checkpoint's name and the device's id: its folder's name, and in measurements."""
    return f"{checkpoint}-{device}"


def open_bundle(path: Path) -> Bundle:
    """Read a bundle's manifest; BadInput in one line when it is none. Hashes are not checked here."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise BadInput(f"{path} is no bundle: it has no {MANIFEST}; make one with `snapgen-deploy export`")
    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{manifest} is not readable JSON ({error}); export the bundle again") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{manifest}: got schema_version {version}, expected {SCHEMA_VERSION}; use the tool that wrote the bundle"
        )
    refuse_misshapen(manifest, data)
    return Bundle(path, data)


def refuse_misshapen(path: Path, manifest: Mapping[str, Any]) -> None:
    """BadInput where a manifest lacks what every reader of it asks for, or has it in another shape."""
    targets = manifest.get("targets")
    sound = isinstance(targets, dict) and all(
        isinstance(t, dict)
        and isinstance(t.get("components"), dict)
        and all(isinstance(c, dict) for c in t["components"].values())
        for t in targets.values()
    )
    if not sound or set(manifest.get("target_order", ())) != set(targets or ()):
        raise BadInput(f"{path} does not name its targets and their components; export the bundle again")


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hashes(bundle: Bundle) -> None:
    """Every file is listed, there, and unchanged; GateFailed with all that is not."""
    listed: dict[str, str] = {}
    sums = bundle.path / SUMS
    if not sums.is_file():
        raise GateFailed(f"{bundle.path} has no {SUMS}; export the bundle again")
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    unlisted = (bundle.path / SUMS, bundle.path / RUN)
    there = {p.relative_to(bundle.path).as_posix(): p for p in files_under(bundle.path) if p not in unlisted}
    wrong = [f"missing {n}" for n in sorted(set(listed) - set(there))]
    wrong += [f"not listed {n}" for n in sorted(set(there) - set(listed))]
    wrong += [f"changed {n}" for n in sorted(set(there) & set(listed)) if sha256_of(there[n]) != listed[n]]
    if wrong:
        shown = "; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise GateFailed(f"{bundle.path.name} is not what was exported: {shown}")


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json and then SHA256SUMS over all files of the bundle but the record of the run."""
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    (root / MANIFEST).write_text(text + "\n", encoding="utf-8")
    lines = [f"{sha256_of(p)}  {p.relative_to(root).as_posix()}\n" for p in files_under(root) if p != root / RUN]
    (root / SUMS).write_text("".join(lines), encoding="utf-8")


class Staging:
    """A directory beside the bundle's final place; `publish` gives it its name, anything else removes it."""

    def __init__(self, root: Path, final: Path, keep: bool) -> None:
        self.root, self.final, self.keep = root, final, keep
        self.published = False
        self.scratch = root.with_name(f".scratch{root.name}")  # for files that are no part of the bundle

    def publish(self, overwrite: bool) -> None:
        """Flush every file to the disk and rename once; an older bundle is replaced only now."""
        for path in files_under(self.root):
            _fsync(path)
        _fsync(self.root)
        for path in (self.root, *self.root.rglob("*")):  # what temporary folders and some writers make is private
            path.chmod(0o755 if path.is_dir() else 0o644)
        if self.final.exists():
            if not overwrite:
                raise already_there(self.final)
            old = self.root.with_name(self.root.name + ".old")
            self.final.rename(old)
            self.root.rename(self.final)
            shutil.rmtree(old)
        else:
            self.root.rename(self.final)
        _fsync(self.final.parent)
        self.published = True


def already_there(path: Path) -> BadInput:
    """The error for a bundle that would be overwritten."""
    return BadInput(f"{path} is already there; pass --overwrite to replace it, or --output-dir for another place")


@contextmanager
def staging(final: Path, key: str, *, overwrite: bool, resume: bool) -> Iterator[Staging]:
    """A place to build the bundle `final` in. With `resume`, one that an interrupted run with the same `key` left is
    taken up again, and kept if this run fails too."""
    if final.exists() and not overwrite:
        raise already_there(final)
    prefix = f".{final.name}.partial-"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        found = _left_over(final.parent, prefix, key, resume)
        if found is None:
            root = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
            _key_file(root).write_text(key)
            lock = _locked(root)
        else:
            root, lock = found
    except OSError as error:
        raise BadInput(f"cannot write to {final.parent} ({error.strerror}); choose another place with --output-dir") from None
    stage = Staging(root, final, keep=resume)
    shutil.rmtree(stage.scratch, ignore_errors=True)  # of a run that was killed
    try:
        stage.scratch.mkdir()
        yield stage
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"the disk of {final.parent} is full; free space or choose another place with --output-dir"
            ) from None
        raise
    finally:
        shutil.rmtree(stage.scratch, ignore_errors=True)
        if not stage.published and not stage.keep:
            shutil.rmtree(root, ignore_errors=True)
        if stage.published or not stage.keep:
            _key_file(root).unlink(missing_ok=True)
        if lock is not None:
            lock.close()


def _key_file(root: Path) -> Path:
    """Beside the staging directory, not in it: it is no part of the bundle."""
    return root.with_name(root.name + ".key")


def _locked(root: Path) -> IO[str] | None:
    """The key file of a staging directory, locked until it is closed or its process ends; None where another has it."""
    file = _key_file(root).open("r", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _left_over(parent: Path, prefix: str, key: str, resume: bool) -> tuple[Path, IO[str] | None] | None:
    """The directory of an interrupted run with this key, where it is to be taken up; others that nobody will are removed."""
    for root in sorted(parent.glob(f"{prefix}*")):
        if not root.is_dir() or not _key_file(root).is_file() or (lock := _locked(root)) is None:
            continue  # another run works there
        same, old = lock.read() == key, time.time() - _key_file(root).stat().st_mtime > ABANDONED
        if same and resume:
            return root, lock
        if old and not same:
            shutil.rmtree(root, ignore_errors=True)
            _key_file(root).unlink(missing_ok=True)
        lock.close()
    return None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
