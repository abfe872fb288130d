"""The apps that can be written for a bundle."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.noise import PHILOX
from snapgen_deploy.system.documents import several

APP_MARK = "app.json"  # a file that says that a folder is an app of a bundle


@dataclass(frozen=True)
class App:
    """A kind of app. `packages`, for both functions, is a folder with the archives of foreign packages; None: the network.

    `prepare` gets what the app needs besides a bundle, before any work; `write` writes it, with the files of a bundle for a
    target, into an empty folder.
    """

    name: str
    targets: tuple[str, ...]  # keys of the targets whose files it can draw with
    mark: str  # a file that only apps of this kind have
    prepare: Callable[[Path | None], object]
    write: Callable[[Bundle, str, Path, Path | None], None]


APPS: Mapping[str, str] = {  # name -> module and name of the record
    "web": "snapgen_deploy.apps.site:WEB_APP",
    "triton": "snapgen_deploy.apps.triton:TRITON_APP",
    "android": "snapgen_deploy.apps.android_app:ANDROID_APP",
    "ios": "snapgen_deploy.apps.ios_app:IOS_APP",
}
APP_NOISE = PHILOX  # the only noise that every app makes


def app_of(name: str) -> App:
    """The app with this name.

    Raises:
        BadInput: if there is none.
    """
    if name not in APPS:
        raise BadInput(f"unknown app '{name}': expected {several(list(APPS))}")
    module, _, attribute = APPS[name].partition(":")
    found: App = getattr(import_module(module), attribute)
    return found


def app_folder(bundle: Path, name: str) -> Path:
    """Where a bundle's app goes by default: beside the bundle.

    >>> app_folder(Path("bundles/shapes-web"), "web").as_posix()
    'bundles/shapes-web-app-web'
    """
    whole = bundle.resolve()
    return (bundle.parent if bundle.name == whole.name else whole.parent) / f"{whole.name}-app-{name}"


def refuse_existing(app: App, folder: Path, *, overwrite: bool) -> None:
    """Check that an app may be written to a folder.

    Raises:
        BadInput: if something is there that may not be replaced: anything without `overwrite`, and what is no app.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise BadInput(f"{folder} exists; give another place with --output, or --overwrite")
    if not (folder / app.mark).is_file():
        raise BadInput(f"{folder} is no app of a bundle, so it is not replaced; give another place with --output")


def drawn_target(app: App, bundle: Bundle, asked: str | None = None) -> str:
    """The target whose files an app of a bundle has: the one that is asked for, else the bundle's first that it can draw with.

    Raises:
        BadInput: if there is none.
    """
    if asked is not None and asked not in app.targets:
        raise BadInput(f"--target {asked}: the app draws with {several(list(app.targets))}")
    wanted = app.targets if asked is None else (asked,)
    found: str | None = next((key for key in bundle.manifest["target_order"] if key in wanted), None)
    if found is None:
        said = f"{bundle.name} holds no {several(list(wanted), ' or ')}, which the app draws with"
        raise BadInput(f"{said}: export with --target {wanted[0]}")
    return found


def write_app(
    app: App,
    bundle: Bundle,
    folder: Path,
    packages: Path | None = None,
    *,
    target: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an app for a bundle; the folder appears whole or not at all.

    Raises:
        BadInput: if the bundle has nothing to draw with, a package cannot be had, or the folder is taken or cannot be written.
    """
    drawn = drawn_target(app, bundle, target)
    refuse_existing(app, folder, overwrite=overwrite)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
            made = Path(place, "app")
            made.mkdir()
            app.write(bundle, drawn, made, packages)
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
    except OSError as error:
        raise BadInput(f"{folder} cannot be written ({error.strerror}); give another place with --output") from None
    return folder
