"""The links by name, as in `bench --link`: `adb`, `adb:SERIAL`, `iphone`, `iphone:UDID`, `mac`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from snapgen_deploy.errors import BadInput
from snapgen_deploy.latency.links import android, coreml_mac, iphone
from snapgen_deploy.latency.links.base import Link
from snapgen_deploy.latency.links.shell import Shell, run_command

_Kind = TypeVar("_Kind")

NEVER_RUN = (
    "The links adb, iphone and mac are complete and tested against fakes of adb, xcodebuild, devicectl and coremltools, but "
    "were never run on hardware: no phone and no Mac was at hand."
)


def _adb(which: str | None, options: Mapping[str, str], shell: Shell) -> Link:
    return android.AndroidLink(which, _options(android.AndroidOptions, "adb", options), shell)


def _iphone(which: str | None, options: Mapping[str, str], shell: Shell) -> Link:
    return iphone.IPhoneLink(which, _options(iphone.IPhoneOptions, "iphone", options), shell)


def _mac(which: str | None, options: Mapping[str, str], shell: Shell) -> Link:
    if which is not None:
        raise BadInput(f"mac is this computer and takes no '{which}'; give --link mac")
    return coreml_mac.CoreMLMacLink(_options(coreml_mac.MacOptions, "mac", options), shell)


LINKS: dict[str, Callable[[str | None, Mapping[str, str], Shell], Link]] = {"adb": _adb, "iphone": _iphone, "mac": _mac}


def open_link(text: str, options: Mapping[str, str], shell: Shell = run_command) -> Link:
    """Open the link that `text` names, for example `adb:SERIAL`.

    Raises:
        BadInput: if the name or an option is not known (with similar ones), or an option's value cannot be used.
        MeasurementFailed: if the device is not ready.
    """
    name, colon, which = text.partition(":")
    if name not in LINKS:
        raise BadInput(f"no link '{name}'{_nearest(name, LINKS)}; give one of {', '.join(LINKS)}")
    if colon and not which:
        raise BadInput(f"'{text}' names no device after the colon; give {name} or {name}:DEVICE")
    return LINKS[name](which or None, options, shell)


def _options(kind: type[_Kind], link: str, given: Mapping[str, str]) -> _Kind:
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise BadInput(f"{link} has no option '{name}'{_nearest(name, known)}; it has {', '.join(known)}")
    return kind(**given)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f", did you mean {' or '.join(near)}" if near else ""
