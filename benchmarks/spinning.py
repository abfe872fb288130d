"""`python -m benchmarks.spinning BUNDLE`: how much time onnxruntime's spinning threads cost in a picture of three sessions.

A session's threads wait for its next run in a busy loop. Text encoder, student and decoder are separate sessions, so the
waiting ones take processor time from the working one. The same bundle is drawn with our setting
(`session.force_spinning_stop`) and with onnxruntime's default, in turn, each in its own process. Writes spinning.json and
spinning.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.export.onnx import target as onnx
from snapgen_deploy.export.shared.replaced import replaced
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.latency.measure.session import open_session
from snapgen_deploy.system.child import run_in_child

RESULTS = Path(__file__).parent / "results"
KEY = "onnx:cpu"
SIDES = {"stopped": dict(onnx.SESSION_CONFIG), "spinning": {}}
WARM_UPS = 3  # untimed pictures


def main() -> None:
    """Draw, time, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle with onnx:cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=20, help="of each side in a round")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    times: dict[str, dict[str, list[float]]] = {side: {} for side in SIDES}
    for _ in range(options.rounds):
        for side, found in times.items():
            made, _ = run_in_child(side, draw, options.bundle, SIDES[side], options.threads, options.pictures)
            for name, values in made.items():
                found.setdefault(name, []).extend(values)
    record = {
        "bundle": bundle.path.name, "width": bundle.manifest["width"], "threads": options.threads,
        "pictures": options.rounds * options.pictures, "environment": environment(),
        "ms": {side: {name: statistics.median(values) for name, values in found.items()} for side, found in times.items()},
    }  # fmt: skip
    (RESULTS / "spinning.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    (RESULTS / "spinning.md").write_text(table(record))
    print(table(record))


def draw(path: Path, config: Mapping[str, str], threads: int, pictures: int) -> dict[str, list[float]]:
    """Milliseconds of every call in `pictures` pictures, by component. Runs in a child process."""
    with replaced(onnx, "SESSION_CONFIG", config):
        session = open_session(open_bundle(path), KEY, threads)
    times: dict[str, list[float]] = {}
    for picture in range(WARM_UPS + pictures):
        for name, values in session.query().items():
            if picture >= WARM_UPS:
                times.setdefault(name, []).extend(values)
    return times


def table(record: dict[str, Any]) -> str:
    """Markdown."""
    stopped, spinning = (record["ms"][side] for side in SIDES)
    lines = [
        f"{record['bundle']}, {record['width']}, threads: {record['threads']}; medians of {record['pictures']} pictures, ms; "
        f"{record['environment']['processor']}.",
        "",
        "| | onnxruntime's own setting | `session.force_spinning_stop` | times as fast |",
        "|---|---|---|---|",
    ]
    for name in stopped:
        label = {"e2e": "picture", "student": "student, a step"}.get(name, name.replace("_", " "))
        lines.append(f"| {label} | {spinning[name]:.2f} | {stopped[name]:.2f} | {spinning[name] / stopped[name]:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
