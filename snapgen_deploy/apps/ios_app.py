"""The iOS app's side: a Swift package that draws with a bundle's files. `docs/ios.md` describes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from snapgen_deploy import __version__
from snapgen_deploy.apps.parts import AppFiles, app_mark, filled, refuse_undrawable, runners_of, used_files, write_files
from snapgen_deploy.apps.registry import APP_MARK, App
from snapgen_deploy.bundle.reader import MANIFEST, Bundle
from snapgen_deploy.export.registry import spec_of
from snapgen_deploy.system.files import sha256_of

_NAME = "ios"
# target -> the class that runs its files
_ENGINES = runners_of(_NAME)
_RESOURCES = "Sources/SnapGenBundle/Resources/bundle"
_SOURCES = "Sources/SnapGenBundle"
_PACKAGE = "Package.swift"
_OLDEST = 17  # of iOS, where a file's export names no system; models are compiled in the background from 16 on
_LEAST = 16
_ONE_NUMBER = 26  # from this release on, iOS and macOS have the same number


def ios_package(bundle: Bundle, target: str) -> AppFiles:
    """All files of the package for a bundle's files of one target.

    Raises:
        BadInput: if no app can draw with the bundle.
    """
    refuse_undrawable(bundle, "an app")
    manifest, engine = sha256_of(bundle.path / MANIFEST), _ENGINES[target]
    files: dict[str, Path | bytes] = dict(filled("ios", _words(bundle, target, manifest)))
    for other in set(_ENGINES.values()) - {engine}:
        del files[f"{_SOURCES}/{other}.swift"]
    for name in [name for name in files if name.startswith("Package.") and name != _PACKAGE]:
        content = files.pop(name)  # a package that depends on the runtime's own
        if name == f"Package.{engine}.swift":
            files[_PACKAGE] = content
    files |= {f"{_RESOURCES}/{name}": bundle.path / name for name in (MANIFEST, *sorted(used_files(bundle, target)))}
    return files | app_mark(_NAME, bundle, target)


def _words(bundle: Bundle, target: str, manifest: str) -> dict[str, str]:
    about, prompts = bundle.manifest["targets"][target], bundle.manifest["prompts"]
    ios, macos = _systems(str(about["options"].get("deployment", "")))
    return {
        "TITLE": str(bundle.manifest["name"]),
        "PROMPT": json.dumps(prompts[0] if prompts else "", ensure_ascii=False)[1:-1],
        "TARGET": target,
        "DELEGATE": target.partition(":")[2],
        "PRECISION": bundle.precision(target),
        "SHA256": manifest,
        "ENGINE": _ENGINES[target],
        "RUNTIME_VERSION": str(about["versions"].get(spec_of(target).runtime.package, "")),
        "IOS": ios,
        "MACOS": macos,
        "VERSION": __version__,
    }


def _systems(deployment: str) -> tuple[str, str]:
    """The oldest iOS and macOS for files of a deployment target such as iOS18.

    >>> _systems("iOS18"), _systems("macOS14"), _systems("iOS27"), _systems("")
    (('18.0', '15.0'), ('17.0', '14.0'), ('27.0', '27.0'), ('17.0', '14.0'))
    """
    found = re.fullmatch(r"(iOS|macOS)(\d+)", deployment)
    number = int(found[2]) if found else _OLDEST
    if found and found[1] == "macOS" and number < _ONE_NUMBER:
        number += 3
    number = max(number, _LEAST)
    return f"{number}.0", f"{number if number >= _ONE_NUMBER else number - 3}.0"


def _write(bundle: Bundle, target: str, folder: Path, archives: Path | None) -> None:
    write_files(ios_package(bundle, target), folder)


IOS_APP = App(_NAME, tuple(_ENGINES), APP_MARK, lambda archives: None, _write)
