"""What `snapgen-deploy setup arm64` left in the cache, and whether it can be used."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.machines.arm64.packages import OLDEST_QEMU, PROGRAM_WHEELS
from snapgen_deploy.system.documents import parse_json
from snapgen_deploy.system.files import cache_root, sha256_of

FORMAT = 1
QEMU_FILE, ROOT_FOLDER, SITE_FOLDER, SETUP_RECORD = "qemu-aarch64", "root", "site", "setup.json"  # in the folder of a setup
_FIX = "run `snapgen-deploy setup arm64`"
_VERSION_SECONDS = 30


@dataclass(frozen=True)
class Installed:
    """A folder with an emulator, an arm64 Python and its packages."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def versions(self) -> dict[str, str]:
        """Of the emulator, Python, and the packages that compute."""
        r = self.record
        wheels = {name: str(wheel["version"]) for name, wheel in r["wheels"].items()}
        return {"qemu": str(r["qemu"]["version"]), "python": str(r["python"]), **wheels}

    @property
    def runs_programs(self) -> bool:
        """Whether it has what runs `.pte` files."""
        return set(PROGRAM_WHEELS) <= set(self.record["wheels"])

    def command(self, cpu: str, script: Path) -> list[str]:
        """Command line that runs a script of ours in the emulated Python, on a processor of qemu's."""
        root, path = self.folder / ROOT_FOLDER, self.folder / SITE_FOLDER
        python = root / "usr/bin" / f"python{self.record['python']}"
        begin = f"import sys, runpy; sys.path.insert(0, {str(path)!r}); runpy.run_path({str(script)!r}, run_name='__main__')"
        return [str(self.folder / QEMU_FILE), "-cpu", cpu, "-L", str(root), str(python), "-I", "-S", "-c", begin]


def setup_folder() -> Path:
    """Where the setup lies: `arm64` in the cache."""
    return cache_root() / "arm64"


def installed(folder: Path | None = None) -> Installed | str:
    """The setup in a folder, by default that of the cache; or why there is none that can be used."""
    folder = folder or setup_folder()
    try:
        record = parse_json((folder / SETUP_RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it is not set up; {_FIX}"
    except (OSError, ValueError):
        return f"its setup in {folder} cannot be read; {_FIX}"
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return f"its setup in {folder} is that of another release; {_FIX}"
    emulator = folder / QEMU_FILE
    try:
        if sha256_of(emulator) != record["qemu"]["sha256"]:
            return f"{emulator} is not the one that was set up; {_FIX}"
        refuse_old(emulator)
    except OSError as error:
        return f"{emulator} cannot be read ({error.strerror}); {_FIX}"
    except BadInput as error:
        return str(error)
    return Installed(folder, record)


def refuse_old(emulator: Path) -> str:
    """The version of a qemu-aarch64.

    Raises:
        BadInput: if it cannot be run, or is older than `OLDEST_QEMU`.
    """
    try:
        said = subprocess.run([emulator, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BadInput(f"{emulator} does not run ({error})") from None
    found = re.search(r"version ((\d+)[\w.]*)", said.stdout)
    if found is None:
        raise BadInput(f"{emulator} does not say its version")
    if int(found[2]) < OLDEST_QEMU:
        raise BadInput(
            f"qemu {found[1]} is refused: releases before {OLDEST_QEMU} were seen to compute wrong numbers with Arm's vector "
            "extensions (8-bit errors of 1.1, NaN in fp16), and to show the host's processor to libraries that ask"
        )
    return found[1]
