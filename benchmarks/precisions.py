"""`python -m benchmarks.precisions [--widths full small tiny]`: size and quality of precisions, on the embedded checkpoint.

Exports each precision like `export`, draws the fidelity gate's prompts with the saved files, and compares with the fp32
reference, also if the limits are not met, when `export` would fail. For mixed precision, see `benchmarks.bits`. For targets
that run on this CPU, each precision's student is timed against the same target's fp32, interleaved in one process. Writes
precisions.json (after every row; --resume continues an interrupted run) and precisions.md to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.check.fidelity import DETECTOR, FIDELITY_PICTURES, Measured, draw_reference, measure_fidelity
from snapgen_deploy.check.gates import SavedTarget
from snapgen_deploy.checkpoint import CheckpointPlace, open_checkpoint
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.ports import ports_of, roles_of
from snapgen_deploy.drawing.prompts import FIDELITY, own_samples
from snapgen_deploy.drawing.reference import schedule_of
from snapgen_deploy.errors import SnapgenError
from snapgen_deploy.export.base import Role
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.job.calibration import CALIBRATION_PICTURES as CALIBRATED
from snapgen_deploy.job.calibration import calibration_of
from snapgen_deploy.job.convert import ComponentTask, export_in_child
from snapgen_deploy.job.drawn import CALIBRATION_FOLDER, record_calibration
from snapgen_deploy.job.records import Exported
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.quantise.trajectories import Recording
from snapgen_deploy.system.child import run_in_child
from snapgen_deploy.system.quantiles import quantile

RESULTS = Path(__file__).parent / "results"
ROUNDS = 30
CPU = ("onnx", "executorch")  # targets to time here; the time of our Core ML executor tells nothing about a phone
ORDER = ("onnx", "coreml", "executorch")


def main() -> None:
    """Run for the widths and targets that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--widths", nargs="+", default=["full"], choices=["full", "small", "tiny"])
    parser.add_argument("--targets", nargs="+", default=list(ORDER))
    parser.add_argument("--precisions", nargs="+", default=None)
    parser.add_argument("--pictures", type=int, default=FIDELITY_PICTURES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="keep the rows that precisions.json has")
    options = parser.parse_args()
    path = RESULTS / "precisions.json"
    about = {"pictures": options.pictures, "threads": options.threads, "machine": platform.machine()}
    rows: list[dict[str, Any]] = []
    if options.resume and path.is_file():
        earlier = json.loads(path.read_text())
        rows = earlier.pop("rows")
        if earlier != about:
            parser.error(
                f"--resume: got {about}, but the rows in {path.name} were measured with {earlier}; use the same options"
            )
    for width in options.widths:
        with tempfile.TemporaryDirectory() as scratch:
            for row in rows_of(width, options, Path(scratch), rows):
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                RESULTS.mkdir(exist_ok=True)
                path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
                path.with_suffix(".md").write_text(table(rows, about))


def rows_of(width: str, options: argparse.Namespace, scratch: Path, done: Sequence[Mapping[str, Any]]) -> Any:
    """Make the missing rows, one after the other. The reference draws once for all."""
    known = {(r["width"], r["target"], r["precision"]) for r in done}
    checkpoint, profile = open_checkpoint(None), load_profile("iphone16pm")
    first = make_plan(checkpoint.config, profile, width=width)
    samples = own_samples(checkpoint, FIDELITY, (), options.pictures, 0)
    calibration = calibration_of(checkpoint, first, None)
    judged = Recording(CheckpointPlace(None), width, first.latent, samples, scratch / "fidelity", options.threads)
    run_in_child("reference", draw_reference, judged, DETECTOR)
    seen = replace(judged, samples=calibration.samples, folder=scratch / CALIBRATION_FOLDER)
    run_in_child("calibration", record_calibration, seen)
    for name in options.targets:
        offered = [p for p in spec_of(name).precisions if p != "mixed"]
        wanted = [p for p in offered if options.precisions is None or p in options.precisions]
        if name in CPU and any((width, name, p) not in known for p in wanted):
            wanted = ["fp32", *(p for p in wanted if p != "fp32")]  # first, since the others are timed against it
        exact: Path | None = None
        for precision in wanted:
            if (width, name, precision) in known and precision != "fp32":
                continue
            start = time.perf_counter()
            plan = make_plan(checkpoint.config, profile, width=width, targets=[name], precision=precision)
            directory = scratch / f"{name}-{precision}"
            try:
                parts = export(plan, scratch, directory, options.threads, calibration)
            except (RuntimeError, SnapgenError) as error:
                print(f"{width} {name} {precision}: {error}", file=sys.stderr, flush=True)
                continue
            student = parts["student"].artifact.path
            exact = student if precision == "fp32" else exact
            if (width, name, precision) in known:
                continue
            artifacts = {role: part.artifact for role, part in parts.items()}
            made, config = plan.targets[0], checkpoint.config
            saved = SavedTarget(
                made.key, precision, made.limits, artifacts, config, schedule=schedule_of(config), threads=options.threads
            )
            try:
                found, _ = run_in_child("fidelity", measure_fidelity, saved, scratch / "fidelity", DETECTOR)
            except (RuntimeError, SnapgenError) as error:  # such as an overflow inside a network
                print(f"{width} {name} {precision}: {error}", file=sys.stderr, flush=True)
                continue
            row = describe(width, name, precision, parts, found)
            if name in CPU and exact is not None and precision != "fp32":
                row["times_fp32"] = speed(plan, name, exact, student, options.threads)
            yield row | {"seconds": round(time.perf_counter() - start)}
            if precision != "fp32":
                shutil.rmtree(directory, ignore_errors=True)


def export(plan: ExportPlan, scratch: Path, directory: Path, threads: int, calibration: Any) -> dict[Role, Exported]:
    """Export every component of the plan's only target, each in its own process, like `export`."""
    directory.mkdir(parents=True, exist_ok=True)
    parts: dict[Role, Exported] = {}
    for role in roles_of(open_checkpoint(None).config):
        task = ComponentTask(
            CheckpointPlace(None), plan, plan.targets[0], role, directory,
            drawn=scratch / CALIBRATION_FOLDER, threads=threads, calibration=calibration,
        )  # fmt: skip
        parts[role], _ = run_in_child(f"{role} {plan.targets[0].precision}", export_in_child, task)
    return parts


def describe(width: str, name: str, precision: str, parts: Mapping[Role, Exported], found: Measured) -> dict[str, Any]:
    """One row of the table."""
    student = parts["student"].description
    return {
        "width": width,
        "target": name,
        "precision": precision,
        "bytes": {role: part.description.bytes for role, part in parts.items()},
        "average_bits": {role: part.description.average_bits for role, part in parts.items()},
        "not_quantised": sum(len(part.description.skipped) for part in parts.values()),
        "placement": student.placement,
        **found.as_dict(),
    }


def speed(plan: ExportPlan, name: str, exact: Path, path: Path, threads: int) -> dict[str, float]:
    """Speed of a student step relative to fp32: median and quartiles over rounds that time both in turn."""
    target, _ = target_of(name)
    runners = [target.open(p, threads=threads) for p in (exact, path)]
    inputs, _, _ = ports_of(open_checkpoint(None).config, plan, "student")
    rng = np.random.default_rng(0)
    x = {p.name: np.ones(p.shape, np.float32) if "mask" in p.name else rng.standard_normal(p.shape, np.float32) for p in inputs}
    times = np.zeros((ROUNDS, 2))
    for round_ in range(-3, ROUNDS):  # the first three warm up
        for i, runner in enumerate(runners):
            start = time.perf_counter()
            runner(x)
            if round_ >= 0:
                times[round_, i] = time.perf_counter() - start
    ratios = times[:, 0] / times[:, 1]
    low, middle, high = (round(quantile(ratios, q), 2) for q in (0.25, 0.5, 0.75))
    best = round(float(times[:, 0].min() / times[:, 1].min()), 2)
    return {"median": middle, "quartiles_from": low, "quartiles_to": high, "of_least_times": best}


def table(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        f"Embedded checkpoint, four steps, {about['pictures']} held-out prompts, against the fp32 reference's pictures from the"
        f" same noise. Calibration: {CALIBRATED} other prompts. Bits: mean of the student's weights, scales and palettes"
        " included. Score: objects entirely right, with a 95 % interval. Step: how many times as fast as the same target's fp32"
        f" (threads: {about['threads']}, {about['machine']}; median and quartiles of interleaved rounds).",
        "",
        "| width | target | precision | size | bits | mean PSNR | least PSNR | SSIM | latent error | score | step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        score = r["score"]
        low, high = (100 * v for v in score["interval"])
        right = f"{100 * score['share']:.1f} % ({low:.1f} to {high:.1f})"
        step = r.get("times_fp32")
        timed = f"{step['median']:.2f} ({step['quartiles_from']:.2f} to {step['quartiles_to']:.2f})" if step else ""
        lines.append(
            f"| {r['width']} | {r['target']} | {r['precision']} | {sum(r['bytes'].values()) / 1e6:.2f} MB "
            f"| {r['average_bits']['student']:.2f} | {shown(r['mean_psnr'], '.1f')} dB | {shown(r['psnr'], '.1f')} dB "
            f"| {shown(r['ssim'], '.3f')} | {shown(worst(r['latent_error']), '.2g')} | {right} | {timed} |"
        )
    if rows:
        bases = {r["width"]: r["score"]["reference"] for r in rows}
        listed = ", ".join(f"{w} {100 * s:.1f} %" for w, s in bases.items())
        lines += ["", f"Score of the fp32 reference on the same prompts and noise: {listed}."]
    return "\n".join(lines) + "\n"


def shown(value: float | None, form: str) -> str:
    """A figure; a dash for NaN, which JSON stores as null."""
    return "—" if value is None else format(value, form)


def worst(errors: Sequence[float | None]) -> float | None:
    """The largest error; None if one is NaN."""
    return None if None in errors else max(e for e in errors if e is not None)


if __name__ == "__main__":
    main()
