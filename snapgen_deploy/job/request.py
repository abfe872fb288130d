"""What an export needs besides its plan: where to read and write, what to draw, and how to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.check.fidelity import Fidelity
from snapgen_deploy.checkpoint import CheckpointPlace
from snapgen_deploy.drawing.prompts import Sample
from snapgen_deploy.golden.vectors import GoldenVectors
from snapgen_deploy.job.cache import ExportCache
from snapgen_deploy.job.calibration import Calibration


@dataclass(frozen=True)
class Request:
    """The input of an export. Nothing in it is computed by a stage; results of stages are in `job.state`."""

    checkpoint: CheckpointPlace
    stamps: tuple[tuple[int, int, int], ...]  # of the checkpoint's files, when its header was validated and the plan made
    output_dir: Path
    samples: tuple[Sample, ...]  # drawn for gates and preview
    threads: int
    overwrite: bool = False
    resume: bool = False
    cache: ExportCache | None = None
    calibration: Calibration | None = None  # needed if a precision of the plan is calibrated
    fidelity: Fidelity | None = None
    golden: GoldenVectors | None = None  # the team's own, of the default picture size
    hold_to_libraries: bool = True  # components of libraries, on vectors that these make
    sign: Path | None = None  # private key to sign the bundle with
    check_on: tuple[str, ...] = ()  # machines besides this one that run the saved files, by their keys
    executor: str = "here"  # where mixed precision measures layers
