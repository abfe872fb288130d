"""The rule about files that a bundle's loader will ask for in vain, for a whole bundle rather than for one package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from snapgen_deploy.export.lint.findings import Example, Finding
from snapgen_deploy.export.lint.rule import Found, Rule

COMPILED: Mapping[str, str] = MappingProxyType({".mlpackage": ".mlmodelc", ".aimodel": ".aimodelc"})
"""Ending of an asset -> what Apple's compilers make of it."""

_PROGRAM = "model.mil"  # of a .mlmodelc, as text; it names the weight files
_WEIGHT_FILE = re.compile(rb'"@model_path/([^"]+)"')

RULE = Rule(
    "missing-asset",
    "error",
    "Apple's loaders wait for ever for an asset that is not there, without an error: a bundle whose packages were compiled and "
    "removed is such a one, where the app asks for the packages",
    ("https://github.com/apple/coreai-models/issues/230", "https://github.com/apple/coreai-models/pull/252"),
    "ship the file, or name the compiled one to the loader, and look whether it exists before it is loaded",
    lambda subject: None,  # a package that can be read is all there
)


def missing_assets(assets: Iterable[Path], root: Path) -> Finding | None:
    """What of these .mlpackage and .aimodel folders is absent, and which weights their compiled forms lack; else None."""
    examples = tuple(example for asset in assets if asset.suffix in COMPILED for example in _missing(asset, root))
    return RULE.finding(Found(examples, f"assets that a loader will not find: {len(examples)}")) if examples else None


def _missing(asset: Path, root: Path) -> Iterator[Example]:
    compiled = asset.with_suffix(COMPILED[asset.suffix])
    if not asset.exists():
        yield Example("asset", asset.relative_to(root).as_posix(), "", f"{compiled.name} is there" if compiled.exists() else "")
    program = compiled / _PROGRAM
    if program.is_file():
        for name in sorted(set(_WEIGHT_FILE.findall(program.read_bytes()))):
            file = compiled / name.decode(errors="replace")
            if not file.exists():
                yield Example("weights", file.relative_to(root).as_posix(), "", f"{_PROGRAM} reads it")
