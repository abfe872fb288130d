"""Inputs for calibrated quantisers: recorded while the reference draws prompts, or arrays that the user gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.drawing.pipeline import in_calls
from snapgen_deploy.drawing.prompts import CALIBRATION, Sample, own_samples, read_samples
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role
from snapgen_deploy.families.component import Port
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.plan.plan import ExportPlan, TargetPlan
from snapgen_deploy.quantise.trajectories import NO_PROMPT, load_trajectories
from snapgen_deploy.system.files import read_arrays, sha256_of

CALIBRATION_PICTURES = 16  # default number of pictures; each gives the student one input per step
FIRST_SEED = 1_000_000  # far from the seeds of the gates
ARRAYS = ".npz"


@dataclass(frozen=True)
class Calibration:
    """Pictures to draw with the reference, or a file of arrays `<role>.<port>`, with the rows of call after call."""

    samples: tuple[Sample, ...]
    arrays: Path | None = None

    def sha256(self) -> str:
        """Hash of everything that decides what quantisers see, for the cache."""
        if self.arrays is not None:
            return sha256_of(self.arrays)
        return hashlib.sha256(json.dumps([asdict(s) for s in self.samples]).encode()).hexdigest()

    def inputs(self, checkpoint: Checkpoint, folder: Path, role: Role, batch: int = 1) -> Iterator[Arrays]:
        """The inputs of a component, by port name, one call that draws `batch` pictures after the other.

        `folder` holds the drawn pictures, if any.
        """
        spec = components_of(checkpoint.config)[role]
        if self.arrays is None:
            yield from _together(list(load_trajectories(folder, checkpoint.config).inputs(role)), spec.pictures_in(batch))
            return
        with np.load(self.arrays) as file:
            found = {n.partition(".")[2]: file[n] for n in file.files if n.startswith(f"{role}.")}
        rows = spec.rows_in(batch)
        for first in range(0, len(next(iter(found.values()))), rows):
            yield {name: values[first : first + rows] for name, values in found.items()}


def _together(calls: Sequence[Arrays], batch: int) -> Iterator[Arrays]:
    """Calls of single pictures as calls of several: the first rows of all, then with guidance the second rows."""
    for picked in in_calls(len(calls), batch):
        several = [calls[i] for i in picked]
        yield {name: np.stack([one[name] for one in several], axis=1).reshape(-1, *v.shape[1:]) for name, v in calls[0].items()}


def is_calibrated(target: TargetPlan) -> bool:
    """Whether the target's quantiser needs calibration inputs at this precision."""
    return target.precision in target.spec.calibrated


def calibration_key(calibration: Calibration | None, plan: ExportPlan) -> str:
    """Hash of the calibration inputs; empty if no precision of the plan is calibrated.

    Raises:
        BadInput: if a precision is calibrated and there is no calibration.
    """
    if not any(is_calibrated(t) for t in plan.targets):
        return ""
    if calibration is None:
        raise BadInput("a precision of this plan is calibrated: give prompts with --calibration")
    return calibration.sha256()


def calibration_of(checkpoint: Checkpoint, plan: ExportPlan, path: Path | None) -> Calibration:
    """The calibration from the user's file, else from the checkpoint's own prompts.

    A file that ends in .npz holds arrays; any other file is text with one prompt per line.

    Raises:
        BadInput: if the file is missing or empty, holds prompts that nothing reads, or its arrays are not those of the
            components' ports.
    """
    if path is None:
        prompts = checkpoint.config.prompts or (NO_PROMPT,)
        return Calibration(own_samples(checkpoint, CALIBRATION, prompts, CALIBRATION_PICTURES, FIRST_SEED))
    if path.suffix != ARRAYS:
        if not checkpoint.reads_prompts:
            raise BadInput(f"--calibration: this checkpoint reads no prompts; give a {ARRAYS} of arrays '<component>.<input>'")
        return Calibration(read_samples(path, FIRST_SEED, "calibration"))
    _check(read_arrays(path, f"calibration file {path}"), checkpoint, plan, path)
    return Calibration((), path)


def _check(arrays: Mapping[str, Any], checkpoint: Checkpoint, plan: ExportPlan, path: Path) -> None:
    """Raise BadInput unless all ports have an array (N, ...) of the port's shape and dtype, with the same N per component.

    N is a multiple of the rows of a call of the plan's files.
    """
    expected: dict[str, Port] = {}
    components = components_of(checkpoint.config)
    for spec in components:
        expected |= {f"{spec.name}.{p.name}": p for p in spec.ports(plan).inputs}
    if set(arrays) != set(expected):
        raise BadInput(f"calibration file {path}: got arrays {sorted(arrays)}, expected {sorted(expected)}")
    rows: dict[str, int] = {}
    for name, port in expected.items():
        array = arrays[name]
        if array.ndim != len(port.shape) or array.shape[1:] != port.shape[1:] or str(array.dtype) != port.dtype:
            got, wanted = f"{array.dtype} {list(array.shape)}", f"{port.dtype} [N, {', '.join(map(str, port.shape[1:]))}]"
            raise BadInput(f"calibration file {path}: array {name!r} is {got}, expected {wanted}")
        part = name.partition(".")[0]
        if len(array) == 0 or rows.setdefault(part, len(array)) != len(array):
            raise BadInput(
                f"calibration file {path}: array {name!r} has {len(array)} rows, expected {rows.get(part, 0) or 'some'}"
            )
        if len(array) % (many := components[part].rows_in(plan.batch)):
            raise BadInput(
                f"calibration file {path}: array {name!r} has {len(array)} rows, expected a multiple of the {many} of a call"
            )
        if port.dtype == "float32" and not np.isfinite(array).all():
            raise BadInput(f"calibration file {path}: array {name!r} has values that are not finite")
