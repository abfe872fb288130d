"""Exports of full-scale networks: time and peak memory of every conversion, and whether every gate passed.

    python -m benchmarks.scale                                  # all of CASES; rows replace those of earlier runs
    python -m benchmarks.scale small:iphone16pm full:server     # some of them
    python -m benchmarks.scale full:server --unchecked          # conversions only, without gates
    python -m benchmarks.scale small:iphone16pm --unchecked --target coreml
    python -m benchmarks.scale small:server --unchecked --precision int8-dynamic

Writes an untrained snapgenpp checkpoint (6.2 GB) to a temporary folder, or takes `--checkpoint DIR`, and runs the command line
like a user, with its own cache. A conversion of an earlier row is not repeated; its figures are those of the earlier one. The
goal for memory is twice the bytes of the network's weights in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from snapgen_deploy.checkpoint import CheckpointPlace, open_checkpoint
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.ports import roles_of
from snapgen_deploy.families.names import in_order
from snapgen_deploy.job.convert import ComponentTask, export_in_child
from snapgen_deploy.job.memory import weight_bytes
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.system.child import run_in_child

RESULTS = Path(__file__).parent / "results"
PROGRAM = str(Path(sys.executable).with_name("snapgen-deploy"))
# Width, device, further arguments. An app needs Apple's increased-memory entitlement to hold 1.6B parameters in fp16.
CASES: dict[str, tuple[str, ...]] = {
    "small:iphone16pm": (),
    "small:android-mid": ("--target", "executorch:xnnpack", "--target", "onnx:cpu"),  # Qualcomm's emulation would take days
    "small:server": (),
    "full:iphone16pm": ("--target", "coreml", "--memory-budget", "5GB"),
    "full:server": (),
}
UNCHECKED = ", conversions only"  # end of the names of rows without gates


def main() -> None:
    """Export, read the records, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="WIDTH:DEVICE", help=f"out of {', '.join(CASES)}")
    parser.add_argument("--checkpoint", type=Path, help="made by `init --preset snapgenpp`; made anew when left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--unchecked", action="store_true", help="convert only: no reference picture, no gates, no bundle")
    parser.add_argument("--target", action="append", help="with --unchecked, repeatable: in place of the case's own targets")
    parser.add_argument("--precision", help="with --unchecked: in place of the profile's; the row says so")
    options = parser.parse_args()
    if (options.target or options.precision) and not options.unchecked:
        parser.error("--target and --precision need --unchecked: rows with gates use the defaults")
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"got {', '.join(sorted(unknown))}, expected cases out of {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or Path(folder) / "checkpoint"
        if options.checkpoint is None:
            subprocess.run([PROGRAM, "init", "--preset", "snapgenpp", "-o", str(checkpoint)], check=True)
        for case in options.cases:
            if options.unchecked:
                name = case + UNCHECKED + (f", {options.precision}" if options.precision else "")
                write(name, converted(case, checkpoint, Path(folder), options))
            else:
                write(case, exported(case, checkpoint, Path(folder), options.threads))
    print((RESULTS / "scale.md").read_text())


def exported(case: str, checkpoint: Path, folder: Path, threads: int) -> dict[str, Any]:
    """Run one export, like a user."""
    width, _, device = case.partition(":")
    arguments = ["--device", device, "--width", width, *CASES[case], "--checkpoint", str(checkpoint), "-o", str(folder)]
    start = time.monotonic()
    command = [PROGRAM, "export", *arguments, "--threads", str(threads), "--cache-limit", "100GB", "--overwrite", "--json"]
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | cache)
    seconds = time.monotonic() - start
    print(f"{case}: exit {done.returncode} after {seconds:.0f} s", flush=True)
    if done.returncode:
        return {"exit": done.returncode, "seconds": seconds, "environment": environment()}
    result = json.loads(done.stdout)
    return {
        "exit": 0,
        "seconds": seconds,
        "threads": threads,
        "environment": environment(),
        "parts": parts(result, open_checkpoint(checkpoint).config, width),
        "reference_peak_bytes": result["run"]["reference_peak_bytes"],
        "check_peak_bytes": {key: t["check_peak_bytes"] for key, t in result["run"]["targets"].items()},
        "gates": dict(Counter(g["verdict"] for g in result["gates"])),
        "worst": worst(result["gates"]),
    }


def converted(case: str, checkpoint: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run only the conversions of an export, each in its own process. Every file is deleted once it was read back."""
    width, _, device = case.partition(":")
    config, start = open_checkpoint(checkpoint).config, time.monotonic()
    own = [value for option, value in zip(CASES[case], CASES[case][1:], strict=False) if option == "--target"]
    profile = load_profile(device).with_memory_budget(2**40)  # ignore what fits on the device
    plan = make_plan(config, profile, width=width, targets=options.target or own, precision=options.precision)
    found: list[dict[str, Any]] = []
    for target in plan.targets:
        for role in roles_of(config):
            place, began = folder / "converted", time.monotonic()
            task = ComponentTask(CheckpointPlace(checkpoint), plan, target, role, place, drawn=place, threads=options.threads)
            done, peak = run_in_child(f"{target.key} {role}", export_in_child, task)
            seconds, about = time.monotonic() - began, done.description
            print(f"{case}, {target.key} {role}: {seconds:.0f} s, peak {peak / 1e9:.2f} GB", flush=True)
            component = {"bytes": about.bytes, "placement": about.placement, "ops": about.ops}
            found.append(part(target.key, role, weight_bytes(config, width, role), seconds, peak, component))
            shutil.rmtree(place)
    seconds = time.monotonic() - start
    return {"exit": "unchecked", "seconds": seconds, "threads": options.threads, "environment": environment(), "parts": found}


def parts(result: dict[str, Any], config: ModelConfig, width: str) -> list[dict[str, Any]]:
    """Every conversion of an export, from its JSON output."""
    found = []
    for key, target in result["targets"].items():
        run = result["run"]["targets"][key]
        for role in in_order(target["components"]):
            seconds, peak = run["export_seconds"][role], run["export_peak_bytes"][role]
            found.append(part(key, role, weight_bytes(config, width, role), seconds, peak, target["components"][role]))
    return found


def part(key: str, role: str, weights: int, seconds: float, peak: int, component: dict[str, Any]) -> dict[str, Any]:
    """One conversion: time, memory, and what is in the file."""
    return {
        "target": key,
        "role": role,
        "seconds": seconds,
        "weight_bytes": weights,
        "peak_bytes": peak,
        "times_weights": peak / weights,
        "bytes": component["bytes"],
        "placement": component["placement"],
        "operators": sum(component["ops"].values()),
    }


def worst(gates: list[dict[str, Any]]) -> dict[str, float | None]:
    """The values of the gates that compare the files with the reference."""
    compared = [g for g in gates if g["name"] in ("relative_error", "psnr")]
    return {f"{g['target']} {g['component']} {g['name']}": g["value"] for g in compared}


def write(case: str, found: dict[str, Any]) -> None:
    """Write one row to the results, as JSON and Markdown."""
    path = RESULTS / "scale.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    record[case] = found
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    (RESULTS / "scale.md").write_text(table(record))


def table(record: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "Untrained snapgenpp at 1024 x 1024; every component is converted in a process of its own, whose peak this is.",
        "Everything includes the reference's picture and running what was saved.",
        "",
        "| export | target | component | seconds | peak GB | times its fp32 weights | file GB | placement |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [name for case in CASES for name in sorted(record) if name == case or name.startswith(case + UNCHECKED)]
    for case in rows:
        found = record[case]
        for p in found.get("parts", []):
            placed = ", ".join(f"{name} {count}" for name, count in p["placement"].items())
            lines.append(
                f"| {case} | {p['target']} | {p['role']} | {p['seconds']:.0f} | {p['peak_bytes'] / 1e9:.2f} "
                f"| {p['times_weights']:.2f} | {p['bytes'] / 1e9:.3f} | {placed} |"
            )
        lines.append(
            f"| {case} | all | exit {found['exit']}, gates: {found.get('gates', 'not run')} | {found['seconds']:.0f} | | | | |"
        )
    lines += ["", "Gates against the fp32 reference:", ""]
    for case in rows:
        lines += [f"- {case}: {name} {value}" for name, value in record[case].get("worst", {}).items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
