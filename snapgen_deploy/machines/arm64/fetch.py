"""`snapgen-deploy setup arm64`: an emulator, an arm64 Python and its packages, fetched into a folder of the cache.

Debian's packages come through apt-get, from the mirrors that this machine uses, but with lists and settings of its own: the
host's architectures, lists and packages stay as they are, and no rights are needed. Wheels come through pip.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.machines.arm64.installed import (
    FORMAT,
    QEMU_FILE,
    ROOT_FOLDER,
    SETUP_RECORD,
    SITE_FOLDER,
    Installed,
    installed,
    refuse_old,
    setup_folder,
)
from snapgen_deploy.machines.arm64.machine import EmulatedProcess
from snapgen_deploy.machines.arm64.packages import (
    BINUTILS,
    PLATFORMS,
    PROGRAM_WHEELS,
    PYTHONS,
    QEMU,
    ROOT_PACKAGES,
    WHEEL_SHA256,
    WHEELS,
)
from snapgen_deploy.machines.arm64.stand_ins import TORCH_LIBRARIES, write_stand_ins
from snapgen_deploy.system.documents import LONGEST_NAME, cut
from snapgen_deploy.system.files import sha256_of
from snapgen_deploy.system.progress import Progress

_SECONDS = 1800  # for one command
_LEFT_OUT = ("torch/include/", "torch/share/", "executorch/include/", "executorch/examples/")  # of wheels
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_OS_RELEASE = Path("/etc/os-release")


def fetch(progress: Progress, *, qemu: Path | None = None, overwrite: bool = False, programs: bool = False) -> Installed:
    """The setup in the cache, fetched if there is none; the folder appears whole or not at all.

    Args:
        progress: Shows what is being done.
        qemu: A qemu-aarch64 of the user's own, in place of Debian's.
        overwrite: Fetch all again.
        programs: Fetch what runs `.pte` files, too.

    Raises:
        BadInput: if a package cannot be had or is not the expected one, the emulator is too old, or the folder cannot be
            written.
    """
    folder, found = setup_folder(), installed()
    if isinstance(found, Installed) and not overwrite and qemu is None and (found.runs_programs or not programs):
        return found
    release = _release()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".arm64-") as place:
            made = Path(place, "made")
            made.mkdir()
            _make(made, release, qemu, {**WHEELS, **(PROGRAM_WHEELS if programs else {})}, progress)
            with progress("arm64: starting it once") as _:
                _try(made)
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
    except OSError as error:
        raise BadInput(f"{folder} cannot be written ({error.strerror}); make room, or set XDG_CACHE_HOME") from None
    done = installed()
    if isinstance(done, str):
        raise BadInput(f"arm64: {done}")
    return done


def _make(made: Path, release: str, qemu: Path | None, wheels: Mapping[str, str], progress: Progress) -> None:
    """Fill a folder with the emulator, the root, the packages and the record of them."""
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        apt = _Apt(Path(scratch), release)
        with progress("arm64: reading Debian's lists") as _:
            apt.update()
        with progress("arm64: the emulator") as _:
            packages = {} if qemu is not None else _emulator(apt, made / QEMU_FILE)
            if qemu is not None:
                shutil.copy2(qemu, made / QEMU_FILE)
            version = refuse_old(made / QEMU_FILE)
        with progress("arm64: Python and its libraries") as _:
            for package in apt.with_dependencies(ROOT_PACKAGES):
                _run(["dpkg-deb", "--extract", str(package), str(made / ROOT_FOLDER)])
                packages[package.name] = sha256_of(package)
        with progress(f"arm64: {' and '.join(sorted(wheels))}") as _:
            fetched = _wheels(Path(scratch), PYTHONS[release], wheels, made / SITE_FOLDER)
        stand_ins: list[str] = []
        if (libraries := made / SITE_FOLDER / TORCH_LIBRARIES).is_dir():
            with progress("arm64: stand-ins for libraries of graphics processors") as _:
                stand_ins = _stand_ins(apt, Path(scratch), made, libraries)
    record = {
        "format": FORMAT,
        "release": release,
        "qemu": {"version": version, "sha256": sha256_of(made / QEMU_FILE)},
        "python": PYTHONS[release],
        "packages": dict(sorted(packages.items())),
        "wheels": fetched,
        "stand_ins": stand_ins,
    }
    (made / SETUP_RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _emulator(apt: _Apt, to: Path) -> dict[str, str]:
    """Take the one emulator out of the package of all; returns the package's file name and hash."""
    package = apt.newest(QEMU)
    listed = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    with listed, tarfile.open(fileobj=listed.stdout, mode="r|") as files:
        for member in files:
            if member.name.removeprefix("./") == "usr/bin/qemu-aarch64" and (data := files.extractfile(member)) is not None:
                with to.open("wb") as file:
                    shutil.copyfileobj(data, file)
                to.chmod(0o755)
    if not to.is_file():
        raise BadInput(f"{package.name} holds no qemu-aarch64")
    return {package.name: sha256_of(package)}


def _stand_ins(apt: _Apt, scratch: Path, made: Path, libraries: Path) -> list[str]:
    """Make the libraries that torch's wheel asks for and does not have; returns their names."""
    root = scratch / "tools"
    for package in apt.with_dependencies(BINUTILS):
        _run(["dpkg-deb", "--extract", str(package), str(root)])
    emulated = [str(made / QEMU_FILE), "-cpu", "max", "-L", str(root)]

    def tool(name: str, *words: str) -> str:
        return _run([*emulated, str(root / "usr/bin" / f"aarch64-linux-gnu-{name}"), *words])

    return write_stand_ins(libraries, tool)


def _wheels(scratch: Path, python: str, wanted_wheels: Mapping[str, str], site: Path) -> dict[str, dict[str, str]]:
    """Fetch the wheels and unpack them; returns version and hash of each."""
    hashes = WHEEL_SHA256[python]
    wanted = scratch / "wheels.txt"
    wanted.write_text("".join(f"{n}=={v} --hash=sha256:{hashes[n]}\n" for n, v in wanted_wheels.items()), encoding="utf-8")
    words = ["--only-binary=:all:", "--no-deps", "--implementation=cp", f"--python-version={python}", "--require-hashes"]
    words += [f"--platform={platform}" for platform in PLATFORMS]
    _run([sys.executable, "-m", "pip", "download", "-q", "-d", str(scratch / "wheels"), *words, "-r", str(wanted)])
    for wheel in sorted((scratch / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as files:
            files.extractall(site, [name for name in files.namelist() if not name.startswith(_LEFT_OUT)])
    return {name: {"version": version, "sha256": hashes[name]} for name, version in wanted_wheels.items()}


def _try(made: Path) -> None:
    """Start the emulated Python once: it imports the packages, and keeps what it compiles of them for later starts."""
    record: Mapping[str, Any] = json.loads((made / SETUP_RECORD).read_text(encoding="utf-8"))
    wanted = {name: str(wheel["version"]) for name, wheel in record["wheels"].items()}
    setup = Installed(made, record)
    process = EmulatedProcess("arm64", setup, "max")
    started = process.versions
    if setup.runs_programs:
        try:
            started |= process.ask({"programs": True})[0]
        except RuntimeError as error:
            raise BadInput(f"arm64: its Python cannot import executorch: {error}") from None
    if wrong := {name: version for name, version in started.items() if version != wanted[name]}:
        raise BadInput(f"arm64: its Python imports {wrong}, expected {wanted}")


class _Apt:
    """apt-get with lists, settings and an empty list of installed packages of its own."""

    def __init__(self, scratch: Path, release: str) -> None:
        self._folder = scratch / "apt"
        for name in ("lists/partial", "cache/archives/partial"):
            (self._folder / name).mkdir(parents=True)
        self._release = release
        signed = f"[signed-by={_KEYRING}] " if _KEYRING.is_file() else ""
        places = _places(release)
        places.append((f"{release}-backports", places[0][1]))
        lines = [f"deb {signed}{uri} {name} main\n" for name, uri in places]
        (self._folder / "sources.list").write_text("".join(lines), encoding="utf-8")
        (self._folder / "status").touch()
        settings = {
            "Dir::State": "",
            "Dir::State::status": "status",
            "Dir::State::lists": "lists",
            "Dir::Cache": "cache",
            "Dir::Etc::sourcelist": "sources.list",
        }
        text = "".join(f'{name} "{self._folder / value}";\n' for name, value in settings.items())
        text += (
            'Dir::Etc::sourceparts "-";\nAPT::Sandbox::User "";\nAcquire::Languages "none";\nAPT::Architectures { "arm64"; };\n'
        )
        (self._folder / "apt.conf").write_text(text, encoding="utf-8")

    def update(self) -> None:
        """Fetch the lists of this machine's and of Arm's packages."""
        self._get("update")

    def newest(self, name: str) -> Path:
        """Fetch a package of this machine's architecture alone, of the release's backports where these have it."""
        folder = self._folder / "one"
        folder.mkdir()
        self._get("--target-release", f"{self._release}-backports", "download", name, cwd=folder)
        (package,) = folder.glob("*.deb")
        return package

    def with_dependencies(self, names: Sequence[str]) -> list[Path]:
        """Fetch arm64 packages and all that they depend on."""
        words = ["--option", "APT::Architecture=arm64", "--no-install-recommends", "--download-only", "--yes", "install"]
        self._get(*words, *names)
        return sorted((self._folder / "cache/archives").glob("*.deb"))

    def _get(self, *words: str, cwd: Path | None = None) -> None:
        _run(["apt-get", "-qq", "--config-file", str(self._folder / "apt.conf"), *words], cwd)


def _release() -> str:
    """This machine's release of Debian.

    Raises:
        BadInput: if it is another system, or a release that was not tried.
    """
    known = f"Debian {' or '.join(PYTHONS)}"
    if missing := [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]:
        raise BadInput(f"setup arm64 fetches Debian's packages, and {missing[0]} is not installed; run it on {known}")
    lines = _OS_RELEASE.read_text(encoding="utf-8").splitlines() if _OS_RELEASE.is_file() else []
    about = {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}
    if about.get("ID") != "debian" or about.get("VERSION_CODENAME") not in PYTHONS:
        raise BadInput(f"setup arm64 was tried on {known}; this machine is {about.get('PRETTY_NAME', 'another system')}")
    return about["VERSION_CODENAME"]


def _places(release: str) -> list[tuple[str, str]]:
    """Name and address of the release, and of its updates, as this machine's apt has them; the release itself first.

    Raises:
        BadInput: if apt has no lists of it.
    """
    form = "$(RELEASE) $(REPO_URI)"
    lines = _run(["apt-get", "indextargets", "--format", form, "Created-By: Packages", "Component: main"]).splitlines()
    found = dict(line.split(" ", 1) for line in lines if line.startswith(release))
    found.pop(f"{release}-backports", None)
    if release not in found:
        raise BadInput(f"apt has no list of {release}'s packages on this machine; run `apt-get update` once")
    return sorted(found.items(), key=lambda place: place[0] != release)


def _run(words: Sequence[str], cwd: Path | None = None) -> str:
    """The output of a command.

    Raises:
        BadInput: if it fails; the message has its last line.
    """
    try:
        done = subprocess.run(
            list(words), cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        said = [line for line in (error.stderr or "").splitlines() if line.strip()]
        why = cut(said[-1], LONGEST_NAME) if said else f"it ended with status {error.returncode}"
        raise BadInput(f"{words[0]} failed: {why}") from None
    except subprocess.TimeoutExpired:
        raise BadInput(f"{words[0]} was ended after {_SECONDS} s") from None
    return done.stdout
