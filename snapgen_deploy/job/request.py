"""What an export is asked for beside its plan: where to read from and to write to, and what is held against what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapgen_deploy.check.fidelity import Fidelity
from snapgen_deploy.export.base import Role
from snapgen_deploy.job.cache import ExportCache
from snapgen_deploy.job.calibration import Calibration
from snapgen_deploy.job.manifest_sizes import Macs


@dataclass(frozen=True)
class Request:
    """Where to read from and to write to."""

    checkpoint: Path | None
    key_map: Path | None
    output_dir: Path
    prompts: tuple[str, ...]
    threads: int
    overwrite: bool = False
    resume: bool = False
    cache: ExportCache | None = None
    seeds: tuple[int, ...] | None = None  # of the prompts; 0, 1, ... where None
    calibration: Calibration | None = None  # needed where a precision of the plan is calibrated
    fidelity: Fidelity | None = None
    executor: str = "here"  # where mixed precision measures layers
    recipe: Path | None = None  # of mixed precision, once it is made
    # For the manifest; whoever counts and estimates hands them in (`latency.foretell.Foretold`).
    macs: Mapping[str, Mapping[Role, int]] = field(default_factory=dict)
    estimates: tuple[Mapping[str, Any], ...] = ()
    macs_of_sizes: Mapping[str, Macs] = field(default_factory=dict)  # by picture size, where the plan has several
