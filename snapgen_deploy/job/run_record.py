"""Memory and time of one export. They change from run to run, so the file is beside the manifest and not hashed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.reader import RUN
from snapgen_deploy.job.state import Made


def write_run_record(root: Path, made: Made) -> dict[str, Any]:
    """Write `export_run.json` and return it: where components came from, and the peak memory of every stage's process.

    Peaks are in bytes, times in seconds with the process's start. Those of a cached component are from its conversion.
    `compile_seconds` is the time of a vendor's compiler, for targets that have one. Without a recipe, its peak is 0.
    """
    parts = made.parts
    targets = {
        key: {
            "cached": {role: part.cached for role, part in of.items()},
            "export_peak_bytes": {role: part.peak_bytes for role, part in of.items()},
            "export_seconds": {role: part.seconds for role, part in of.items()},
            "check_peak_bytes": made.targets[key].check_peak_bytes,
            "compile_seconds": {
                role: seconds for role, part in of.items() if (seconds := part.artifact.compile_seconds) is not None
            },
        }
        for key, of in parts.items()
    }
    data = {
        "cached": all(part.cached for of in parts.values() for part in of.values()),
        "export_peak_bytes": max(part.peak_bytes for of in parts.values() for part in of.values()),
        "recipe_peak_bytes": made.recipe.peak_bytes,
        "reference_peak_bytes": made.drawing_peak_bytes,
        "targets": targets,
    }
    (root / RUN).write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return data
