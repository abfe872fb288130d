"""`python -m benchmarks.arm [--prompts 1]`: what the saved files compute on emulated Arm processors, at every precision.

Exports the embedded checkpoint for onnxruntime and XNNPACK at each precision, and runs the saved files here and on each
processor of `setup arm64 --executorch` with the reference's inputs: the error of each component, how far the student is from
this host's, the picture and its processor seconds. Writes arm.json (after every row; a row that is there is kept) and arm.md
into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.bundle.reader import CONFORMANCE, MANIFEST, Bundle, open_bundle
from snapgen_deploy.bundle.vectors import read_vectors
from snapgen_deploy.check.gates import MEDIAN_PSNR, PSNR, failed, picture_gates, psnr, relative_error
from snapgen_deploy.drawing.pipeline import Pipeline
from snapgen_deploy.drawing.reference import ReferenceVectors
from snapgen_deploy.export.base import Runner
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import PICTURE
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.machines.arm64.cpus import CPUS
from snapgen_deploy.machines.arm64.machine import arm64
from snapgen_deploy.machines.registry import machine_of, obstacle
from snapgen_deploy.system.companion import processor_seconds

RESULTS = Path(__file__).parent / "results"
HOST = "this host"
PRECISIONS = {
    "onnx:cpu": ("fp32", "fp16", "int8-dynamic", "int8-static", "int4"),
    "executorch:xnnpack": ("fp32", "fp16", "int8-dynamic", "int4-dynamic"),
}
PROGRAM = str(Path(sys.executable).with_name("snapgen-deploy"))


def main() -> None:
    """Make the missing rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1, help="how many pictures")
    parser.add_argument("--targets", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bundles", type=Path, help="folder that keeps the exports: a folder for each target and precision")
    options = parser.parse_args()
    machine = machine_of("arm64")
    for key in options.targets:
        if (reason := obstacle(machine, spec_of(key))) is not None:
            raise SystemExit(reason)
    path = RESULTS / "arm.json"
    about = {"versions": machine.versions(), "pictures": options.prompts, "host": platform.machine()}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if any(record.get(name) != value for name, value in about.items()):
        record = about | {"rows": []}
    for key, precision in [(of, precision) for of in options.targets for precision in PRECISIONS[of]]:
        which = {"target": key, "precision": precision}
        done = {row["on"] for row in record["rows"] if which.items() <= row.items()}
        if done >= {HOST, *CPUS}:
            continue
        record["rows"] = [row for row in record["rows"] if not which.items() <= row.items()]
        with tempfile.TemporaryDirectory() as place:
            for row in rows_of(exported(key, precision, options.bundles or Path(place)), key, options):
                row = which | row
                record["rows"].append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                path.with_suffix(".md").write_text(table(record), encoding="utf-8")


def exported(key: str, precision: str, folder: Path) -> Path:
    """The bundle of a target and precision in a folder, exported if it is not there."""
    place = folder / f"{spec_of(key).name}-{precision}"
    if not place.is_dir():
        words = ["export", "--device", "iphone16pm", "--target", key, "--precision", precision, "-o", str(place)]
        subprocess.run(
            [PROGRAM, *words, "--fidelity", "--fidelity-samples", "2", "--json"], check=True, stdout=subprocess.DEVNULL
        )
    (bundle,) = (path for path in place.iterdir() if (path / MANIFEST).is_file())
    return bundle


def rows_of(folder: Path, key: str, options: argparse.Namespace) -> Any:
    """The host's row, then one for each processor."""
    bundle, target = open_bundle(folder), target_of(key)[0]
    vectors, artifacts = read_vectors(bundle), bundle.artifacts(key)
    here: list[np.ndarray] = []
    for on in (HOST, *CPUS):
        machine = arm64(on) if on != HOST else None
        try:
            runners = {
                role: (target if machine is None else machine).open(a.path, threads=options.threads, entry=a.entry)
                for role, a in artifacts.items()
            }
            clock = Clock(os.getpid() if machine is None else machine.pid)
            row, velocities = measured(bundle, key, vectors, runners, clock, options.prompts)
        except Exception as error:  # a refusal is a result
            yield {"on": on, "refused": str(error).splitlines()[0][:200]}
            continue
        here = here or velocities
        off = [relative_error(*pair) for pair in zip(velocities, here, strict=True)]
        yield {"on": on, **row, "from_host": float(np.max(off))}


@dataclass(frozen=True)
class Clock:
    """Processor seconds of a process: on a busy machine, others do not count."""

    pid: int | None

    def __call__(self) -> float:
        """So far, in hundredths."""
        return processor_seconds(self.pid) or math.nan


def measured(
    bundle: Bundle, key: str, vectors: ReferenceVectors, runners: Mapping[str, Runner], clock: Clock, pictures: int
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Largest errors by component, least PSNR and seconds; and the student's outputs for the reference's inputs.

    Begins at the picture that the bundle's conformance case is of: one that rounding does not turn into another.
    """
    config, components = bundle.config, components_of(bundle.config)
    case = json.loads((bundle.path / CONFORMANCE).read_text(encoding="utf-8"))["picture"]
    first = [str(seed) for seed in vectors.seeds].index(case["seed"])
    rows = [(first + i) % len(vectors.prompts) for i in range(pictures)]
    errors: dict[str, float] = {}
    velocities: list[np.ndarray] = []
    for spec in components:
        found = []
        for row in rows:
            for inputs, expected in vectors.cases(spec, config, [row]):
                got = runners[spec.name](inputs)
                found += [relative_error(got[name], value) for name, value in expected.items()]
                velocities += [got[spec.output]] if spec.name == components.denoiser.name else []
        errors[spec.name] = float(np.max(found))
    decibels, seconds, a = [], [], vectors.arrays
    pipeline = Pipeline(components, runners, bundle.schedule, bundle.latent)
    for row in rows:
        begun = clock()
        text = pipeline.condition(*vectors.conditions([row], config, runners))
        drawn = pipeline.decode(pipeline.denoise(a["noise"][[row]], text))
        seconds.append(clock() - begun)
        decibels.append(psnr(drawn, a[PICTURE][[row]]))
    limits = bundle.limits(key)
    drawn_right = not failed(picture_gates(key, (PSNR, MEDIAN_PSNR), np.array(decibels), (limits.psnr, limits.median_psnr)))
    passed = all(e <= limits.error for e in errors.values()) and drawn_right
    return {"errors": errors, "psnr": min(decibels), "seconds": min(seconds), "passed": passed}, velocities


def table(record: Mapping[str, Any]) -> str:
    """Markdown: a row for each precision and processor."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"Embedded checkpoint, full width, {record['pictures']} picture(s); {versions}; host: {record['host']}.",
        "Errors are relative to the fp32 reference, largest over the calls; seconds are processor time of a picture.",
        "",
        "| target | precision | processor | text encoder | student | decoder | student from the host's | picture | s | gates |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(line(row) for row in record["rows"])]) + "\n"


def line(row: Mapping[str, Any]) -> str:
    """One row of the table."""
    first = f"| {row['target']} | {row['precision']} | {row['on']} |"
    if "refused" in row:
        return f"{first} |||||| **refused**: {row['refused']} |"
    errors = " | ".join(number(row["errors"].get(role, math.nan)) for role in ("text_encoder", "student", "decoder"))
    passed = "passed" if row["passed"] else "**failed**"
    return f"{first} {errors} | {number(row['from_host'])} | {row['psnr']:.1f} dB | {row['seconds']:.1f} | {passed} |"


def number(value: float) -> str:
    """Two digits; 0 as 0."""
    return "0" if value == 0 else f"{value:.2g}"


if __name__ == "__main__":
    main()
