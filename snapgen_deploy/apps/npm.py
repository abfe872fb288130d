"""Packages of npm that a page uses: one release each, loaded once into the cache, every file with a known hash."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import LONGEST_NAME, cut
from snapgen_deploy.system.files import cache_root, sha256_of, write_bytes

_SECONDS = 600  # for one archive


@dataclass(frozen=True)
class NpmPackage:
    """A release of a package and the files that are used of it."""

    name: str
    version: str
    sha512: str  # of its archive, in base64 as npm's `integrity` has it
    license: str
    files: Mapping[str, str]  # path in the package -> SHA-256

    @property
    def archive(self) -> str:
        """Name of the archive, as `npm pack` calls it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def package_files(package: NpmPackage, archives: Path | None = None) -> dict[str, Path]:
    """The package's files in the cache, by their path in the package; loaded where one is missing or damaged.

    Args:
        package: What is wanted.
        archives: A folder with what `npm pack` writes, for computers without a connection.

    Raises:
        BadInput: if the archive cannot be had, or is not that release.
    """
    folder = cache_root() / "npm" / package.archive.removesuffix(".tgz")
    found = {name: folder / name for name in package.files}
    if any(not path.is_file() or sha256_of(path) != package.files[name] for name, path in found.items()):
        _unpack(package, _archive(package, archives), found)
    return found


def _archive(package: NpmPackage, archives: Path | None) -> bytes:
    release = f"{package.name}@{package.version}"
    fix = f"run `npm pack {release}` where there is a connection, and give its folder with --packages"
    with tempfile.TemporaryDirectory() as place:
        try:
            if archives is None:
                _pack(release, place)
            data = (Path(place if archives is None else archives) / package.archive).read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            raise BadInput(f"{package.archive} cannot be had ({_reason(error)}); {fix}") from None
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != package.sha512:
        raise BadInput(f"{package.archive} is not the release that npm published as {package.version}; {fix}")
    return data


def _pack(release: str, place: str) -> None:
    """Let npm, as the user has configured it, write the archive of a release into a folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(errno.ENOENT, "npm is not installed; it is part of Node.js")
    words = [npm, "pack", "--loglevel=error", "--ignore-scripts", "--pack-destination", place, release]
    subprocess.run(words, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=True)


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """One short line."""
    if isinstance(error, subprocess.CalledProcessError):
        said = [line for line in error.stderr.splitlines() if line.strip() and " code " not in line]
        return cut(said[0], LONGEST_NAME) if said else f"npm ended with status {error.returncode}"
    return getattr(error, "strerror", None) or str(error)


def _unpack(package: NpmPackage, archive: bytes, places: Mapping[str, Path]) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for name, path in places.items():
            member = files.extractfile(f"package/{name}")
            assert member is not None, f"{package.archive} has no {name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, member.read(), "make room, or set XDG_CACHE_HOME")


ONNXRUNTIME_WEB = NpmPackage(
    "onnxruntime-web",
    "1.30.0",
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    "MIT",
    {
        "dist/ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
        "dist/ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
        "dist/ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
        "dist/ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
        "dist/ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
        "dist/ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
    },
)
HF_TOKENIZERS = NpmPackage(
    "@huggingface/tokenizers",
    "0.2.0",
    "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
    "Apache-2.0",
    {"dist/tokenizers.min.mjs": "258e46332101335ce8d95aed7745b19ac3b46d37f3e159a89cf894c2ea9b1d3a"},
)
