"""What every reader of a manifest relies on, checked once where it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from snapgen_deploy.errors import BadInput

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _list_of(check: Check, length: int | None = None, least: int = 0) -> Check:
    return lambda value: (
        isinstance(value, list) and len(value) >= least and len(value) == (length or len(value)) and all(map(check, value))
    )


def _table(value: Any) -> bool:
    return isinstance(value, dict)


# What a manifest has, by the path of its keys; `?` marks what older bundles lack.
SHAPE: Mapping[str, tuple[Check, str]] = {
    "name": (_text, "a text"),
    "width": (_text, "a text"),
    "device.id": (_text, "a text"),
    "device.name": (_text, "a text"),
    "device.guards?": (_list_of(_text), "a list of texts"),
    "config": (_table, "a table"),
    "resolution": (_list_of(_count, 2), "[height, width]"),
    "latent.shape": (_list_of(_count, 3), "[channels, height, width]"),
    "schedule.sampler": (_text, "a text"),
    "schedule.shift": (_number, "a number"),
    "schedule.sigmas": (_list_of(_number, least=2), "a list of numbers"),
    "schedule.time_features.count": (lambda n: _count(n) and n <= 1 << 20, "a number of features"),
    "prompts": (_list_of(lambda p: isinstance(p, str)), "a list of texts"),
    "seeds": (_list_of(lambda n: type(n) is int), "a list of whole numbers"),
    "gates": (_list_of(_table), "a list of tables"),
    "sizes?": (_list_of(_table, least=1), "a list of tables"),
    "files": (_table, "a table"),
    "targets": (_table, "a table"),
    "target_order": (_list_of(_text, least=1), "a list of texts"),
}
OF_SIZE: Mapping[str, tuple[Check, str]] = {
    "name": (_text, "a text"),
    "resolution": SHAPE["resolution"],
    "latent": SHAPE["latent.shape"],
}
OF_TARGET: Mapping[str, tuple[Check, str]] = {"precision": (_text, "a text"), "components": (_table, "a table")}
OF_COMPONENT: Mapping[str, tuple[Check, str]] = {
    "path": (_text, "a text"),
    "files": (_table, "a table"),
    "bytes": (_number, "a number"),
    "sizes?": (_table, "a table"),
}


def refuse_misshapen(path: Path, manifest: Mapping[str, Any]) -> None:
    """BadInput that names the first thing that a manifest lacks or has in another shape, or a file outside of its bundle."""
    problem = next(_problems(manifest), None)
    if problem is not None:
        raise BadInput(f"{path}: {problem}; export the bundle again")


def _problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield from _misfits(manifest, SHAPE, "")
    for i, size in enumerate(manifest.get("sizes") or ()):
        yield from _misfits(size, OF_SIZE, f"sizes[{i}].")
    if set(manifest["target_order"]) != set(manifest["targets"]):
        yield f"target_order: got {_shown(manifest['target_order'])}, expected the names of its targets"
    yield from _strangers(manifest["files"], "files")
    for key, target in manifest["targets"].items():
        yield from _misfits(target, OF_TARGET, f"targets.{key}.")
        for role, component in target["components"].items():
            at = f"targets.{key}.components.{role}."
            yield from _misfits(component, OF_COMPONENT, at)
            yield from _strangers((component["path"], *component["files"]), f"{at}path and files")
            for size, own in (component.get("sizes") or {}).items():
                if not isinstance(own, dict) or not set(own.get("files", ())) <= set(component["files"]):
                    yield f"{at}sizes.{size}: got {_shown(own)}, expected files of the component"
                yield from _strangers([own.get("path", component["path"])], f"{at}sizes.{size}.path")


def _misfits(table: Any, shape: Mapping[str, tuple[Check, str]], at: str) -> Iterator[str]:
    for name, (check, expected) in shape.items():
        keys, value = name.removesuffix("?").split("."), table
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and name.endswith("?"):
            continue
        if not check(value):
            yield f"{at}{'.'.join(keys)}: got {_shown(value)}, expected {expected}"


def _strangers(names: Any, at: str) -> Iterator[str]:
    """Names that lead out of the bundle: its hashes would not cover them."""
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield f"{at}: got {_shown(name)}, expected files of this bundle"


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]
