"""What the records of an app's pictures say about a rollout: go on, or stop. docs/bundle.md describes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.device_profiles.rollout import HOT
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import parse_json

_OWN_DOING = ("cancelled", "unknown", "long", "empty")  # a picture that is not there for one of these has not failed
_Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Watched:
    """One thing that is watched: its value, the most that it may be, and `passed`, `failed` or `not_run`."""

    name: str
    value: float | None
    most: float | None
    verdict: str
    detail: str


def picture_lines(path: Path, bundle: Bundle) -> list[dict[str, Any]]:
    """The lines of a record that are of a bundle's model.

    Raises:
        BadInput: if it cannot be read, a line is no JSON object, or none is of this bundle.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({getattr(error, 'strerror', None) or 'it is not UTF-8'})") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            found.append(_line(f"{path}:{number}", line))
    ours = [one for one in found if one["bundle"] == bundle.manifest["name"] and one["target"] in bundle.targets]
    if not ours:
        raise BadInput(f"{path} has no line of {bundle.manifest['name']} for {', '.join(bundle.targets)}")
    return ours


def _line(place: str, text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise BadInput(f"{place} is not readable JSON ({error})") from None
    if not isinstance(found, dict) or not {"bundle", "target", "ok"} <= found.keys():
        raise BadInput(f"{place} is no line of a record: it has no bundle, target and ok (docs/formats.md)")
    return found


def watched(bundle: Bundle, lines: _Lines, before: _Lines = ()) -> list[Watched]:
    """Hold the lines of a record against what the bundle's rollout watches.

    Args:
        bundle: That was shipped.
        lines: Of its pictures, of any devices.
        before: Lines of the release before; without them its latency is held to the estimate alone.

    Raises:
        BadInput: if the bundle is of a release that says nothing about a rollout.
    """
    about = bundle.manifest.get("rollout")
    if about is None:
        raise BadInput(f"{bundle.name} says nothing about a rollout; export it again with this release")
    watch, least = about["watch"], about["least_pictures"]
    counted = [one for one in lines if one["ok"] or one.get("why") not in _OWN_DOING]
    drawn = [one for one in counted if one["ok"]]
    found = [_share("failures", [not one["ok"] for one in counted], watch["failures"]["most"], least)]
    found += _latency(watch["latency"], drawn, before, least)
    if "memory" in watch:
        sizes = [size for one in drawn if (size := _memory(one)) is not None]
        most = watch["memory"]["most"]
        found.append(_judged("memory", max(sizes, default=None), most, len(sizes), least, "bytes, the largest"))
    hot = [one["thermal"] in HOT for one in drawn if "thermal" in one]
    found.append(_share("thermal", hot, watch["thermal"]["most"], least))
    return found


def _latency(watch: Mapping[str, Any], drawn: _Lines, before: _Lines, least: int) -> Iterator[Watched]:
    """For each target, its median beside the estimate, and beside the release before."""
    for target in sorted({one["target"] for one in drawn}):
        times, earlier = _times(drawn, target), _times([one for one in before if one["ok"]], target)
        if target in watch["most"]:
            value = median(times) if times else None
            yield _judged(f"latency {target}", value, watch["most"][target], len(times), least, "ms a picture, the median")
        if before:
            ratio = median(times) / median(earlier) if times and earlier else None
            detail = "of the median of the release before"
            yield _judged(f"latency {target}, ratio", ratio, watch["most_ratio"], min(len(times), len(earlier)), least, detail)


def _times(lines: _Lines, target: str) -> list[float]:
    return [one["ms"]["all"] for one in lines if one["target"] == target and "all" in one.get("ms", {})]


def _memory(line: Mapping[str, Any]) -> float | None:
    """Bytes of the process; of a page, those of its own JavaScript, which is all that a browser tells."""
    told = line.get("memory", {})
    found: float | None = told.get("process", told.get("heap"))
    return found


def _share(name: str, flags: Sequence[bool], most: float, least: int) -> Watched:
    value = sum(flags) / len(flags) if flags else None
    return _judged(name, value, most, len(flags), least, "of the pictures")


def _judged(name: str, value: float | None, most: float, pictures: int, least: int, unit: str) -> Watched:
    if value is None or pictures < least:
        return Watched(name, value, most, "not_run", f"{pictures} pictures tell of it, at least {least} are needed")
    return Watched(name, value, most, "passed" if value <= most else "failed", f"{unit}; {pictures} pictures")
