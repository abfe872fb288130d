"""The Android app: a Gradle project in Kotlin that draws with a bundle's files. `docs/android.md` describes it."""

from __future__ import annotations

import json
import re
import xml.sax.saxutils
from pathlib import Path

from snapgen_deploy import __version__
from snapgen_deploy.apps.parts import AppFiles, app_mark, filled, refuse_undrawable, runners_of, used_files, write_files
from snapgen_deploy.apps.registry import APP_MARK, App
from snapgen_deploy.bundle.reader import MANIFEST, Bundle
from snapgen_deploy.system.files import sha256_of

_ASSETS = "model/src/main/assets/bundle"
_SOURCES = "app/src/main/kotlin/snapgen/app"
_NAME = "android"
# target -> the class that runs its files
_ENGINES = runners_of(_NAME)


def android_project(bundle: Bundle, target: str) -> AppFiles:
    """All files of the project for a bundle's files of one target.

    Raises:
        BadInput: if no app can draw with the bundle.
    """
    refuse_undrawable(bundle, "an app")
    manifest = sha256_of(bundle.path / MANIFEST)
    files: dict[str, Path | bytes] = dict(filled("android", _words(bundle, target, manifest)))
    for other in set(_ENGINES.values()) - {_ENGINES[target]}:
        del files[f"{_SOURCES}/{other}.kt"]
    files |= {f"{_ASSETS}/{name}": bundle.path / name for name in (MANIFEST, *sorted(used_files(bundle, target)))}
    return files | app_mark(_NAME, bundle, target)


def _words(bundle: Bundle, target: str, manifest: str) -> dict[str, str]:
    title, prompts = str(bundle.manifest["name"]), bundle.manifest["prompts"]
    return {
        "NAME": re.sub(r"[^\w.-]+", "-", title, flags=re.ASCII),
        "TITLE": xml.sax.saxutils.escape(title).replace("\\", "\\\\").replace("'", "\\'").replace('"', '\\"'),
        "PROMPT": _kotlin(prompts[0] if prompts else ""),
        "TARGET": target,
        "PRECISION": bundle.precision(target),
        "SHA256": manifest,
        "RUNTIME": _ENGINES[target].removesuffix("Engine").lower(),  # of gradle/libs.versions.toml
        "ENGINE": _ENGINES[target],
        "VERSION": __version__,
    }


def _kotlin(text: str) -> str:
    """Between the quotes of a text in Kotlin."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("$", "\\$")


def _write(bundle: Bundle, target: str, folder: Path, archives: Path | None) -> None:
    write_files(android_project(bundle, target), folder)


ANDROID_APP = App(_NAME, tuple(_ENGINES), APP_MARK, lambda archives: None, _write)
