"""What one export took: it changes from run to run, so it lies beside the manifest and outside the hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.reader import RUN
from snapgen_deploy.export.base import Role
from snapgen_deploy.job.records import Exported


def write_run_record(
    root: Path, reference: int, recipe: int, exported: Mapping[str, Mapping[Role, Exported]], checks: Mapping[str, int]
) -> dict[str, Any]:
    """Write `export_run.json` and return it: where components came from, and the peak memory of every stage's process.

    A cached component's peak (bytes) and time (seconds, the process's start included) are those of its conversion;
    `compile_seconds` are a vendor's compiler's own, of targets that have one.
    `reference`, `recipe` and `checks` (by target) are the peaks of drawing the reference pictures, of making the recipe of
    mixed precision (0 without one), and of running what was saved.
    """
    targets = {
        key: {
            "cached": {role: part.cached for role, part in parts.items()},
            "export_peak_bytes": {role: part.peak_bytes for role, part in parts.items()},
            "export_seconds": {role: part.seconds for role, part in parts.items()},
            "check_peak_bytes": checks[key],
            "compile_seconds": {
                role: seconds for role, part in parts.items() if (seconds := part.artifact.compile_seconds) is not None
            },
        }
        for key, parts in exported.items()
    }
    data = {
        "cached": all(part.cached for parts in exported.values() for part in parts.values()),
        "export_peak_bytes": max(part.peak_bytes for parts in exported.values() for part in parts.values()),
        "recipe_peak_bytes": recipe,
        "reference_peak_bytes": reference,
        "targets": targets,
    }
    (root / RUN).write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return data
