"""Runs every rule over one saved package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from snapgen_deploy.export.lint import attention, engine, layout, memory, missing, numbers
from snapgen_deploy.export.lint.findings import SEVERITIES, Finding
from snapgen_deploy.export.lint.graph import graph_of
from snapgen_deploy.export.lint.rule import Rule, Subject
from snapgen_deploy.export.mil.saved.kinds import MODELS
from snapgen_deploy.export.mil.saved.reader import model_file, read_package

RULES: Mapping[str, Rule] = MappingProxyType(
    {rule.id: rule for rule in (*numbers.RULES, *layout.RULES, *engine.RULES, *attention.RULES, *memory.RULES, missing.RULE)}
)
"""By id. Another rule is one more entry in one of these modules."""


def is_package(path: Path) -> bool:
    """Whether a path looks like a Core ML model rather than a bundle (on macOS `Manifest.json` and `manifest.json` are one).

    Of those only a .mlpackage can be read; the others are refused with a message of their own.
    """
    return path.suffix in MODELS or (path / "Data").is_dir()


def lint_package(path: Path, *, memory_limit: int | None = None, function: str | None = None) -> tuple[Finding, ...]:
    """Findings of a saved .mlpackage, errors first, then in the order of `RULES`; () if it keeps every rule.

    function: the one to check; None for all. memory_limit: bytes that the app may use on the device, from its profile; None
    skips the rule `weights-over-limit`.

    Raises:
        PackageError: if `path` is not a readable ML Program (a BadInput).
    """
    package = read_package(path)
    if function is not None:
        ours = {function: package.functions[function]}
        package = replace(package, functions=ours, interfaces={function: package.interfaces[function]})
    weights = sum(f.stat().st_size for f in (model_file(path).parent / "weights").rglob("*") if f.is_file())
    subject = Subject(package, tuple(graph_of(f) for f in package.functions.values()), weights, memory_limit)
    findings = [finding for rule in RULES.values() if (finding := rule.apply(subject)) is not None]
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))
