"""Bytes of graphs for several picture sizes, in separate files and joined into files that share the weights.

    python -m benchmarks.resolutions                              the embedded checkpoint, sizes that it admits
    python -m benchmarks.resolutions --preset snapgenpp --width tiny --depths 1,2,1 \
        --resolutions 1024 512 768 832x1216                       untrained, full scale except for its depth
    python -m benchmarks.resolutions --preset snapgenpp ...       the whole network, without --depths (hours, 16 GB)

Every size is converted in its own process, like in `export`, and all are joined in another. Then every joined graph and the
file that it was made from run once on random input; the table has the largest difference of their outputs (0: equal bits).
Writes benchmarks/results/resolutions[-<preset>].json and .md after every component. Rows of an earlier run of the same network
and sizes are kept if this run does not measure them again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.checkpoint import CheckpointPlace, open_checkpoint
from snapgen_deploy.checkpoint.initial import write_initial
from snapgen_deploy.cli.console import megabytes
from snapgen_deploy.cli.parsing import parse_resolution
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.ports import ports_of
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.job.convert import ComponentTask, export_in_child
from snapgen_deploy.job.records import Exported
from snapgen_deploy.job.sizes import join_sizes
from snapgen_deploy.models import PRESETS, ModelConfig
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.plan.plan import ExportPlan, target_at
from snapgen_deploy.system.child import run_in_child

RESULTS = Path(__file__).parent / "results"
TARGETS = ("coreml", "executorch:xnnpack", "onnx:cpu")
EMBEDDED = ("128", "96x128", "128x160", "160x192")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), help="an untrained network; the embedded checkpoint when left out")
    parser.add_argument("--width", default="small")
    parser.add_argument("--depths", help="blocks of the three stages, such as 1,2,1; the preset's when left out")
    parser.add_argument("--resolutions", nargs="+", default=list(EMBEDDED), metavar="N|HxW", help="the default size first")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    options = parser.parse_args()
    sizes = [parse_resolution(text) for text in options.resolutions]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None if options.preset is None else untrained(options.preset, options.depths, Path(folder))
        config = open_checkpoint(checkpoint).config
        plan = make_plan(
            config, load_profile("server"), width=options.width, targets=options.targets,
            resolution=sizes[0], other_resolutions=sizes[1:],
        )  # fmt: skip
        place = CheckpointPlace(checkpoint)
        about = {
            "network": options.preset or "embedded", "width": options.width, "depths": list(dit_of(config).depths),
            "sizes": list(plan.sizes),
        }  # fmt: skip
        for target in plan.targets:
            for spec in components_of(config):
                if spec.sized:
                    row = measure(place, plan, config, target.key, spec.name, Path(folder))
                    print(json.dumps(row), flush=True)
                    keep(about, row, f"resolutions-{options.preset}" if options.preset else "resolutions")


def keep(about: Mapping[str, Any], row: dict[str, Any], name: str) -> None:
    """Write a row to the results. It replaces that of the same component; rows of another network are dropped."""
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = {k: v for k, v in before.items() if k != "rows"} == about
    found = {(r["target"], r["component"]): r for r in (*(before["rows"] if same else ()), row)}
    rows = [found[key] for key in sorted(found)]
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(about, rows), encoding="utf-8")


def untrained(preset: str, depths: str | None, folder: Path) -> Path:
    """Write an untrained checkpoint with seeded weights."""
    config = PRESETS[preset]()
    if depths is not None:
        down, middle, up = (int(n) for n in depths.split(","))
        config = replace(config, student=replace(dit_of(config), depths=(down, middle, up)))
    write_initial(config, folder / preset)
    return folder / preset


def measure(
    checkpoint: CheckpointPlace, plan: ExportPlan, config: ModelConfig, key: str, role: Any, folder: Path
) -> dict[str, Any]:
    """Convert one component of one target for every size, join them, and compare the result with the separate files."""
    parts: dict[str, Exported] = {}
    for size in plan.sizes:
        one = plan.at(size)
        target = target_at(one, key)
        place = folder / "parts" / size / key.replace(":", "-")
        task = ComponentTask(checkpoint, one, target, role, place, drawn=place, threads=1)
        parts[size], peak = run_in_child(f"{key} {role} {size}", export_in_child, task)
        parts[size] = replace(parts[size], peak_bytes=peak)
    joined, peak = run_in_child(f"{key} {role}", join_sizes, key, parts, folder / "joined" / key.replace(":", "-"))
    assert joined.joined is not None
    differences, _ = run_in_child(f"{key} {role} check", differ, key, role, plan, config, parts, joined)
    return {
        "target": key,
        "component": role,
        "separate_bytes": joined.joined.separate_bytes,
        "bytes": joined.joined.bytes,
        "bytes_saved": joined.joined.separate_bytes - joined.joined.bytes,
        "shared_bytes": joined.joined.shared_bytes,
        "largest_difference": max(differences.values()),
        "export_peak_bytes": max(p.peak_bytes for p in parts.values()),
        "join_peak_bytes": peak,
    }


def differ(
    key: str, role: Any, plan: ExportPlan, config: ModelConfig, parts: Mapping[str, Exported], joined: Exported
) -> dict[str, float]:
    """Largest difference between the outputs of a joined graph and of the separate file, by size."""
    target, found = target_of(key)[0], {}
    for size in plan.sizes:
        rng = np.random.default_rng(0)
        inputs = {p.name: rng.standard_normal(p.shape, dtype=np.float32) for p in ports_of(config, plan.at(size), role)[0]}
        inputs |= {name: np.ones_like(value) for name, value in inputs.items() if name.endswith("_mask")}
        before = target.open(parts[size].artifact.path, threads=1)(inputs)
        artifact = joined.at(size).artifact
        after = target.open(artifact.path, threads=1, entry=artifact.entry)(inputs)
        found[size] = max(float(np.abs(after[name] - before[name]).max()) for name in before)
    return found


def markdown(about: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        f"# {about['network']}, width {about['width']}, depths {about['depths']}: {', '.join(about['sizes'])}",
        "",
        "`python -m benchmarks.resolutions`; every size was converted by itself, then the files were joined. Peak memory is "
        "that of the largest process that converts one size, and of the one that joins.",
        "",
        "| target | component | in files of their own | joined | saved | weights used by several sizes | largest difference of "
        "outputs | peak, converting | peak, joining |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        share = f"{megabytes(r['bytes_saved'])} ({100 * r['bytes_saved'] / r['separate_bytes']:.0f} %)"
        columns = (
            r["target"], r["component"], megabytes(r["separate_bytes"]), megabytes(r["bytes"]), share,
            megabytes(r["shared_bytes"]), f"{r['largest_difference']:g}", megabytes(r["export_peak_bytes"]),
            megabytes(r["join_peak_bytes"]),
        )  # fmt: skip
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
