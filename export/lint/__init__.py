"""Lint of saved Core ML packages for the Neural Engine.

    findings = lint_package(Path("student.mlpackage"), memory_limit=3_000_000_000)
    manifest["lint"] = counts(findings)

Each rule is a small function in `RULES` with an id, a severity, a reason, its sources and a fix. Rules check the saved file;
where the system really runs an operation is known on a Mac only (`read_placement`).
"""

from snapgen_deploy.export.lint.findings import SEVERITIES, Example, Finding, Linted, Severity, counts
from snapgen_deploy.export.lint.missing import missing_assets
from snapgen_deploy.export.lint.package import RULES, is_package, lint_package
from snapgen_deploy.export.lint.placement import OpPlacement, Placement, read_placement
from snapgen_deploy.export.lint.rule import Rule

__all__ = [
    "RULES",
    "SEVERITIES",
    "Example",
    "Finding",
    "Linted",
    "OpPlacement",
    "Placement",
    "Rule",
    "Severity",
    "counts",
    "is_package",
    "lint_package",
    "missing_assets",
    "read_placement",
]
