"""What apps of every kind have in common: a bundle's files, and files of a project with words put into their places."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from snapgen_deploy.apps.registry import APP_MARK
from snapgen_deploy.bundle.reader import CONFORMANCE, MANIFEST, Bundle
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.registry import specs
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.noise import PHILOX
from snapgen_deploy.system.files import is_file, sha256_of

AppFiles = Mapping[str, Path | bytes]  # path in the app -> a file elsewhere, or the content


def write_files(files: AppFiles, folder: Path) -> None:
    """Copy everything into a folder."""
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        else:
            shutil.copyfile(content, place)


def used_files(bundle: Bundle, target: str) -> set[str]:
    """Files of a bundle that an app has of it, besides the manifest."""
    components = bundle.manifest["targets"][target]["components"].values()
    tokenizers = {spec.reads.file for spec in components_of(bundle.config).encoders}
    return {name for c in components for name in c["files"]} | tokenizers | {CONFORMANCE, bundle.test_vectors.name}


def runners_of(app: str) -> dict[str, str]:
    """What runs a target's files in an app of this name, by the target's key."""
    return {spec.key: spec.apps[app] for spec in specs().values() if app in spec.apps}


def app_mark(app: str, bundle: Bundle, target: str) -> dict[str, bytes]:
    """The file that says of which bundle and target an app is."""
    manifest = sha256_of(bundle.path / MANIFEST)
    about = {"app": app, "bundle": bundle.manifest["name"], "target": target, "manifest": manifest}
    return {APP_MARK: (json.dumps(about, indent=1) + "\n").encode()}


def refuse_undrawable(bundle: Bundle, kind: str) -> None:
    """BadInput for a bundle that no app draws with; `kind` is what would draw, such as "a page"."""
    if not is_file(bundle.path / CONFORMANCE):
        raise BadInput(f"{bundle.name} has no {CONFORMANCE}; export it again with this release")
    if bundle.noise_generator != PHILOX:
        raise BadInput(
            f"{bundle.name} begins pictures with noise of {bundle.noise_generator}, which {kind} cannot make: export with "
            f"--noise {PHILOX}"
        )
    components, config = components_of(bundle.config), bundle.config
    if components.decoder is None:
        raise BadInput(f"{bundle.name} has no decoder: it cannot draw a picture")
    read = {spec.reads.stream for spec in components.encoders} | set(config.absent_streams)
    if left := [stream.name for stream in config.student.text_streams if stream.name not in read]:
        raise BadInput(f"{bundle.name}: no text encoder of it makes the text stream {left[0]}, so that {kind} cannot draw")
    if missing := [spec.reads.file for spec in components.encoders if not is_file(bundle.path / spec.reads.file)]:
        raise BadInput(f"{bundle.name} has no {missing[0]}: a prompt cannot be drawn from it")


def filled(project: str, words: Mapping[str, str]) -> dict[str, bytes]:
    """The files of a project in this package, by their path in it; `words` replace @NAME@ in all of them."""
    found = {}
    for name, file in _files(resources.files("snapgen_deploy.apps") / project, ""):
        text = file.read_text(encoding="utf-8")
        for place, word in words.items():
            text = text.replace(f"@{place}@", word)
        found[name] = text.encode()
    return found


def _files(folder: Traversable, path: str) -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, f"{path}{entry.name}/")
        else:
            yield f"{path}{entry.name}", entry
