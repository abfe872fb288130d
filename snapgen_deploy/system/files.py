"""Files: the cache folder, named arrays from users, and atomic writes."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import math
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import cut, parse_json, shown

if TYPE_CHECKING:
    import numpy as np


FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/snapgen-deploy`, else `~/.cache/snapgen-deploy`.

    Raises:
        BadInput: if neither variable is set and this user has no home directory.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the specification: relative is invalid
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            raise BadInput("this user has no home directory to keep a cache in; set HOME or XDG_CACHE_HOME") from None
    return base / "snapgen-deploy"


def is_file(path: Path) -> bool:
    """As `Path.is_file`.

    Raises:
        BadInput: if the path cannot be looked up: no permission for a folder, or a name that is too long.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror})") from None


def read_json(path: Path, fix: str) -> Any:
    """The document in a JSON file.

    Raises:
        BadInput: if the file cannot be read or is not valid JSON; the message ends in `fix`.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); {fix}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not readable JSON ({error}); {fix}") from None


def files_under(root: Path) -> list[Path]:
    """All files below `root`, sorted by their path."""
    return sorted(p for p in root.rglob("*") if p.is_file())


@contextmanager
def folder_for_results(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; those made here go again where the block leaves them empty. OSError where it cannot be."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # the first that holds something, and all above it
            for place in made:
                place.rmdir()


def stays_inside(path: Path, root: Path) -> bool:
    """Whether what `path` stands for, through all links, lies below `root`."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk caused an error; libraries and child processes often keep only the text of the system's error."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in FULL or any(os.strerror(number) in str(seen) for number in FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Have libraries put their temporary files into `folder`, here and in processes that are started meanwhile.

    coremltools writes all weights to such a file first, gigabytes for a large model. The system's temporary folder is often in
    memory, and files of a killed process would stay there.
    """
    variable, before = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable


MOST_UNPACKED = 64  # bytes of all arrays of an .npz together, for each byte of the file
_ARCHIVE, _ARRAY = b"PK\x03\x04", b"\x93NUMPY"


def read_arrays(path: Path, what: str) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file; sizes are checked before anything is unpacked.

    Raises:
        BadInput: if the file is missing, damaged or not an .npz; the message begins with `what`.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_ARRAY))
            if magic == _ARRAY:
                raise BadInput(f"{what}: holds one array; expected named arrays (numpy.savez)")
            if not magic.startswith(_ARCHIVE):
                raise ValueError("it is no archive")
            with zipfile.ZipFile(file) as archive:
                return _arrays_of(archive, path.stat().st_size)
    except BadInput:
        raise
    except MemoryError:
        raise BadInput(f"{what}: its arrays do not fit into memory; give fewer rows") from None
    except Exception as error:  # zipfile and numpy raise a dozen kinds for what is damaged
        said = cut(str(error) or type(error).__name__, 120)
        raise BadInput(f"{what} cannot be read ({said}); give an .npz that numpy.savez wrote") from None


def _arrays_of(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    import numpy as np

    members = archive.infolist()
    if sum(m.file_size for m in members) > MOST_UNPACKED * size:
        raise ValueError(f"its arrays unpack to more than {MOST_UNPACKED} times its size; write it with numpy.savez")
    found: dict[str, np.ndarray] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in found:
            raise ValueError(f"its member {shown(member.filename)} is no array of its own")
        with archive.open(member) as file:
            _check_array(file, member.file_size, name)
            file.seek(0)
            found[name] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def _check_array(file: IO[bytes], size: int, name: str) -> None:
    """ValueError unless the header is that of numbers that take just the member's bytes."""
    import numpy as np

    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"array {shown(name)} is of the unknown format {version}")
    shape, _, dtype = readers[version](file)
    if dtype.kind not in "biufc" or min(shape, default=0) < 0:
        raise ValueError(f"array {shown(name)} is of {cut(str(dtype), 40)} {cut(str(shape), 40)}, expected numbers")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"array {shown(name)} of shape {cut(str(shape), 60)} does not fit its {size} bytes")


def write_text(path: Path, text: str, fix: str, *, parents: bool = False) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode(), fix, parents=parents)


def write_bytes(path: Path, data: bytes, fix: str, *, parents: bool = False) -> None:
    """Write a file atomically, and with `parents` its folders.

    A link's target is replaced, not the link; a device or a pipe, such as /dev/null, is written to.

    Raises:
        BadInput: if the file cannot be written; the message ends in `fix`.
    """
    part: Path | None = None
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        path = path.resolve()
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        part = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        part.chmod(0o644)  # mkstemp makes it private
        part.replace(path)
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise BadInput(f"cannot write {path} ({error.strerror}); {fix}") from None


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def exchange_names(one: Path, other: Path) -> bool:
    """Give each of two paths the other's name in one step; False, and nothing is changed, where the system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "renameat2" if sys.platform == "linux" else "renameatx_np", None)
    if call is None:
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    here = -100 if sys.platform == "linux" else -2  # AT_FDCWD; the flag is RENAME_EXCHANGE and RENAME_SWAP
    return bool(call(here, os.fsencode(one.absolute()), here, os.fsencode(other.absolute()), 2) == 0)


def discard_oldest(entries: Sequence[tuple[float, int, Path]], limit: int) -> None:
    """Remove files and folders (time of last use, bytes, path), least recently used first, until `limit` bytes are left."""
    total = sum(count for _, count, _ in entries)
    for _, count, path in sorted(entries):
        if total <= limit:
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        total -= count


def stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Length in bytes, modification time and inode of a file: they change when somebody writes to it, or replaces it."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def stamps(files: Sequence[Path]) -> list[tuple[int, int, int]]:
    """The `stamp` of each file."""
    return [stamp(path.stat()) for path in files]


ABANDONED = 24 * 3600  # seconds after which the leftovers of a killed run are removed, unless a run has resumed from them


def is_old(path: Path) -> bool:
    """Whether a file or folder is unchanged for so long that the run that made it must have been killed."""
    try:
        return time.time() - path.stat().st_mtime > ABANDONED
    except FileNotFoundError:
        return False
