"""Builds a bundle beside its final place: written, hashed, fsynced, and renamed once. Another run can resume it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from snapgen_deploy.bundle.reader import MANIFEST
from snapgen_deploy.errors import BadInput
from snapgen_deploy.job.records import finished_components
from snapgen_deploy.system.files import ABANDONED, exchange_names, folder_for_results, is_disk_full, is_old

PLACE = "another place with --output-dir"


class Staging:
    """A directory beside the bundle's final place. `publish` renames it; if that is not reached, it is removed or kept."""

    def __init__(self, root: Path, final: Path, keep: bool) -> None:
        self.root, self.final, self.keep = root, final, keep
        self.published = False
        self.scratch = _scratch(root)  # for files that are not part of the bundle

    def publish(self, overwrite: bool) -> None:
        """Flush everything to disk and rename the directory once. An older bundle is replaced only now.

        The two exchange their names in one step if the system can, so that there is a bundle at every moment.

        Raises:
            BadInput: if something that must not be replaced is at the final place.
        """
        for path in (*self.root.rglob("*"), self.root):
            path.chmod(0o755 if path.is_dir() else 0o644)  # temporary folders, and files of some writers, are private
            _fsync(path)
        check_place(self.final, overwrite)
        old = _old(self.root)
        if self.final.exists() and exchange_names(self.root, self.final):
            old = self.root  # `_left_over` removes it if the run ends before this
        else:
            if self.final.exists():
                self.final.rename(old)
            self.root.rename(self.final)  # `_finish` does this if the run ends before
        _fsync(self.final.parent)
        self.published = True
        shutil.rmtree(old, ignore_errors=True)


def check_place(final: Path, overwrite: bool) -> None:
    """Check that a bundle can be written to `final`.

    Raises:
        BadInput: if a bundle is there and must not be overwritten, something else is there, or the folder cannot be used.
    """
    try:
        if not final.exists():
            return
        if not overwrite:
            raise BadInput(f"{final} is already there; pass --overwrite to replace it, or {PLACE}")
        if final.is_dir() and not any(final.iterdir()):
            return
    except OSError as error:
        raise _unusable(final.parent, error) from None
    try:
        manifest = json.loads((final / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or "schema_version" not in manifest:
        raise BadInput(
            f"{final} is not a bundle (no {MANIFEST} of ours), and --overwrite replaces only bundles; choose {PLACE}"
        )


@contextmanager
def usable_folder(folder: Path) -> Iterator[None]:
    """Check that bundles can be written to a folder, which exists in the block; it goes again if it was made for this.

    Raises:
        BadInput: if it cannot be made or written.
    """
    with ExitStack() as places:
        try:
            places.enter_context(folder_for_results(folder))
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise _unusable(folder, error) from None
        yield


def left_by_others(final: Path) -> list[Path]:
    """Directories in which the bundle `final` is being built, or was when its run ended."""
    return [path for path in final.parent.glob(f"{_prefix(final)}*") if path.is_dir()]


def _unusable(folder: Path, error: OSError) -> BadInput:
    return BadInput(f"cannot write to {folder} ({error.strerror}); choose {PLACE}")


def _prefix(final: Path) -> str:
    return f".{final.name}.partial-"


@contextmanager
def staging(final: Path, key: str, *, overwrite: bool, resume: bool) -> Iterator[Staging]:
    """A directory to build the bundle `final` in.

    With `resume`, the directory of an interrupted run with the same `key` is used again, and kept if this run fails too. Ctrl-C
    keeps what is finished in any case.

    Raises:
        BadInput: if the place cannot be used (see `check_place`) or written, or the disk gets full.
    """
    prefix = _prefix(final)
    with ExitStack() as places:
        try:
            places.enter_context(folder_for_results(final.parent))
            _finish(final, prefix)
            check_place(final, overwrite)
            root, lock = _left_over(final, prefix, key, resume) or _new(final.parent, prefix, key)
        except OSError as error:
            raise _unusable(final.parent, error) from None
        with lock, _built(Staging(root, final, keep=resume)) as stage:
            yield stage


@contextmanager
def _built(stage: Staging) -> Iterator[Staging]:
    """`stage` with its scratch folder. At the end all of it is removed, except a published bundle and what is to be kept."""
    shutil.rmtree(stage.scratch, ignore_errors=True)  # left by a run that was killed
    try:
        stage.scratch.mkdir()
        yield stage
    except KeyboardInterrupt as stopped:
        finished = finished_components(stage.root)
        stage.keep = finished > 0
        if stage.keep:
            stopped.add_note(
                f"{finished} finished component{'s' * (finished > 1)} kept in {stage.root} for {ABANDONED // 3600} hours: "
                "the same command with --resume continues"
            )
        else:
            stopped.add_note("no component was finished, nothing is left")
        raise
    except Exception as error:
        if is_disk_full(error):
            raise BadInput(f"the disk of {stage.final.parent} is full; free space or choose {PLACE}") from None
        raise
    finally:
        shutil.rmtree(stage.scratch, ignore_errors=True)
        if not stage.published and not stage.keep:
            shutil.rmtree(stage.root, ignore_errors=True)
        if stage.published or not stage.keep:
            _key_file(stage.root).unlink(missing_ok=True)


def _key_file(root: Path) -> Path:
    """The key file, beside the staging directory since it is not part of the bundle. Locked by the run that works there."""
    return root.with_name(root.name + ".key")


def _scratch(root: Path) -> Path:
    return root.with_name(f".scratch{root.name}")


def _old(root: Path) -> Path:
    """Temporary path of the bundle that `root` is about to replace."""
    return root.with_name(root.name + ".old")


def _new(parent: Path, prefix: str, key: str) -> tuple[Path, IO[str]]:
    """A new directory, locked before another process can see it."""
    with tempfile.NamedTemporaryFile("w", prefix=prefix, suffix=".key", dir=parent, delete=False, encoding="utf-8") as file:
        file.write(key)
    root = Path(file.name.removesuffix(".key"))
    lock = _locked(root)
    root.mkdir(mode=0o700)
    if lock is None:
        raise OSError(errno.EBUSY, "another process locked a new file")
    return root, lock


def _locked(root: Path) -> IO[str] | None:
    """The key file of a staging directory, locked until it is closed or the process ends; None if another process has it."""
    try:
        file = _key_file(root).open("r", encoding="utf-8", errors="replace")
    except FileNotFoundError:  # just published
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _finish(final: Path, prefix: str) -> None:
    """Complete a publish that was interrupted after the older bundle was moved away: all gates of the new one had passed."""
    for old in final.parent.glob(f"{prefix}*.old"):
        root = old.with_name(old.name.removesuffix(".old"))
        if final.exists() or (lock := _locked(root)) is None:
            continue
        (root if root.is_dir() else old).rename(final)
        shutil.rmtree(_scratch(root), ignore_errors=True)
        _key_file(root).unlink(missing_ok=True)
        lock.close()


def _left_over(final: Path, prefix: str, key: str, resume: bool) -> tuple[Path, IO[str]] | None:
    """The directory of an interrupted run with this key, if it is to be resumed. Abandoned old ones are removed."""
    for file in sorted(final.parent.glob(f"{prefix}*.key")):
        root = file.with_name(file.name.removesuffix(".key"))
        if (lock := _locked(root)) is None:
            continue  # another run works there
        if resume and root.is_dir() and lock.read() == key:
            return root, lock
        if is_old(file):
            for path in (root, _scratch(root), _old(root)):
                shutil.rmtree(path, ignore_errors=True)
            file.unlink(missing_ok=True)
        lock.close()
    for scratch in final.parent.glob(f".scratch{prefix}*"):  # made after its key and removed before it
        if not _key_file(scratch.with_name(scratch.name.removeprefix(".scratch"))).exists():
            shutil.rmtree(scratch, ignore_errors=True)
    for old in final.parent.glob(f"{prefix}*.old"):  # left by a run that ended while it removed this folder
        if final.exists() and not _key_file(old.with_name(old.name.removesuffix(".old"))).exists() and is_old(old):
            shutil.rmtree(old, ignore_errors=True)
    return None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
