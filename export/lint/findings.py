"""The result of a lint: plain, frozen, picklable data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
EXAMPLES = 5
"""How many offenders a finding names; `count` says how many there are."""


@dataclass(frozen=True)
class Example:
    """One offender: operation type, the name and type of its output, and a note."""

    op: str
    output: str
    type: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op} {self.output} {self.type}{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True)
class Finding:
    """What one rule found in one package."""

    rule: str
    severity: Severity
    count: int
    examples: tuple[Example, ...]
    message: str
    reason: str
    sources: tuple[str, ...]
    fix: str

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return {**asdict(self), "examples": [asdict(e) for e in self.examples], "sources": list(self.sources)}


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Rule id -> number of offenders, for a manifest; rules that found nothing are left out."""
    return {f.rule: f.count for f in sorted(findings, key=lambda f: f.rule)}


@runtime_checkable
class Linted(Protocol):
    """A target whose own files the lint looks at, where they hold no Core ML package."""

    def findings(self, path: Path) -> Sequence[Finding]:
        """What the lint says of a saved artifact. BadInput where it cannot be read."""
        ...
