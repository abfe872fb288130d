"""`python -m benchmarks.bits`: how good are pictures at 8, 6, 5, 4.3, 4 and 3 bits per weight, before and after tuning?

Uses the embedded checkpoint's student in mixed precision, as `export --precision mixed` makes it. 6, 5 and 4.3 bits mix layers
of 4 and 8 bits; 4 and 3 bits are uniform (16 and 8 values per weight). Held-out prompts are drawn in four steps by the PyTorch
network with the recipe applied, which the exported file equals to fp16 rounding (a gate of every export), and by the fp32
student from the same noise. Text encoder and decoder are fp32; mixed precision leaves them at fp16. Writes bits.json, bits.md
and bits.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from examples.shapes.detector import Verdict, judge
from examples.shapes.latents import embed
from examples.shapes.prompts import parse
from examples.shapes.sampling import draw, guided
from examples.shapes.score import RESAMPLES, summarise
from examples.shapes.stages import scenes
from examples.shapes.stages import to_bytes as bytes_of
from snapgen_deploy.check.gates import psnr
from snapgen_deploy.checkpoint import Checkpoint, open_checkpoint
from snapgen_deploy.checkpoint.networks import load_decoder, load_student, load_text_encoder
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.models import Student, initial_noise, sigmas
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.quantise.executors import executor_of
from snapgen_deploy.quantise.recipe import load_recipe, make_recipe, recipes_root
from snapgen_deploy.quantise.settings import PICTURES, with_mixed
from snapgen_deploy.system.quantiles import bootstrap_interval, quantile

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
BITS = (8.0, 6.0, 5.0, 4.3, 4.0, 3.0)
BATCH = 25
GOAL = 0.03  # largest loss of the share of right objects, compared with the fp32 student


Point = tuple[dict[str, Any], list[Verdict], list[float]]  # a row, verdicts and PSNR of every picture


class Judge:
    """Draws every prompt with a student, and compares pictures and the detector's verdicts with those of the fp32 student."""

    def __init__(self, checkpoint: Checkpoint, count: int) -> None:
        config = checkpoint.config
        self.prompts = [spec.text() for spec, _ in scenes(2026, count, held_out=True)]
        self.text, self.mask = embed(load_text_encoder(checkpoint), self.prompts)
        self.decoder, self.levels = load_decoder(checkpoint), sigmas(config.steps, config.shift)
        side = config.resolution[0] // config.student.latent_factor
        shape = (1, config.student.latent_channels, side, side)
        self.noise = torch.cat([initial_noise(seed, shape) for seed in range(count)])
        self.features = config.student.time_features
        self.reference, self.verdicts = self.drawn(load_student(checkpoint, "full"))

    @torch.no_grad()
    def drawn(self, student: Student) -> tuple[np.ndarray, list[Verdict]]:
        """Pictures (N, 3, H, W) in -1 ... 1 and the detector's verdicts."""
        found = []
        for start in range(0, len(self.prompts), BATCH):
            part = slice(start, start + BATCH)
            velocity = guided(
                lambda x, f, t, m: student(x, f, {"text": t}, {"text": m}), self.features, self.text[part], self.mask[part]
            )
            found.append(self.decoder(draw(velocity, self.noise[part], self.levels)))
        pictures = torch.cat(found)
        return pictures.numpy(), [judge(p, parse(t)) for p, t in zip(bytes_of(pictures), self.prompts, strict=True)]

    def row(self, student: Student) -> Point:
        """Fidelity and score of one student, and the difference of its score from the fp32 student's."""
        pictures, verdicts = self.drawn(student)
        values = [psnr(a, b) for a, b in zip(pictures, self.reference, strict=True)]
        fidelity = {name: round(quantile(values, q), 2) for name, q in (("low", 0.1), ("median", 0.5), ("high", 0.9))}
        return {"psnr": fidelity, **summarise(verdicts), "to_fp32": difference(verdicts, self.verdicts)}, verdicts, values


def difference(ours: Sequence[Verdict], theirs: Sequence[Verdict]) -> dict[str, Any]:
    """Difference of the shares of entirely right objects, with a 95 % interval by a bootstrap over prompts."""
    right, counted = (np.array([[f(v) for v in side] for side in (ours, theirs)], float) for f in (_right, _counted))
    draws = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    shares = right[:, draws].sum(2) / counted[:, draws].sum(2)
    value = right.sum(1) / counted.sum(1)
    interval = [round(q, 4) for q in bootstrap_interval(shares[0] - shares[1])]
    return {"value": round(float(value[0] - value[1]), 4), "interval": interval}


def gain(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Mean difference of PSNR in dB over pictures, with a 95 % interval by a bootstrap over prompts."""
    each = np.array(ours) - np.array(theirs)
    means = each[np.random.default_rng(0).integers(len(each), size=(RESAMPLES, len(each)))].mean(1)
    interval = [round(q, 3) for q in bootstrap_interval(means)]
    return {"value": round(float(each.mean()), 3), "interval": interval, "better": round(float((each > 0).mean()), 3)}


def _right(verdict: Verdict) -> float:
    return float(sum(verdict.objects))


def _counted(verdict: Verdict) -> float:
    return float(max(len(verdict.objects), verdict.found))


def main() -> None:
    """Measure every average before and after tuning; results are written after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bits", type=float, nargs="+", default=BITS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = open_checkpoint(None)
    judged = Judge(checkpoint, options.prompts)
    rows: list[dict[str, Any]] = [
        {"bits": 32.0, "tuned": False, "average": 32.0, **judged.row(load_student(checkpoint, "full"))[0]}
    ]
    seen: dict[tuple[float, bool], tuple[list[Verdict], list[float]]] = {}
    # all untuned ones first, since they are quick; then the one that the goal is about
    order = [(bits, tuned) for tuned in (False, True) for bits in sorted(options.bits, key=lambda b: (b != 4.3, b != 4.0, b))]
    for bits, tuned in order:
        row, verdicts, fidelity = point(checkpoint, bits, options.iterations if tuned else 0, judged)
        seen[bits, tuned] = (verdicts, fidelity)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        write(rows, seen, options)


def point(checkpoint: Checkpoint, bits: float, iterations: int, judged: Judge) -> Point:
    """Measure one average, tuned for `iterations` (0: not tuned)."""
    start = time.monotonic()
    plan = plan_for(checkpoint, bits, iterations)
    assert plan.mixed is not None
    folder = make_recipe(checkpoint, plan.width, plan.latent, plan.mixed, executor_of("here"), recipes_root(), report=_Shown())
    recipe = load_recipe(folder)
    assert recipe is not None
    row, verdicts, fidelity = judged.row(recipe.apply(load_student(checkpoint, plan.width)))
    about = {"bits": bits, "average": recipe.about["average_bits"], "tuned": iterations > 0}
    error = recipe.about["held_out_error"]["tuned"]
    return {**about, "velocity_error": error, "seconds": round(time.monotonic() - start), **row}, verdicts, fidelity


def plan_for(checkpoint: Checkpoint, bits: float, iterations: int) -> ExportPlan:
    """The plan, as the command line makes it."""
    profile = load_profile("iphone16pm")
    plan = make_plan(checkpoint.config, profile, width="full", targets=["coreml"], precision="mixed")
    return with_mixed(plan, checkpoint, bits=bits, iterations=iterations, calibration=None, pictures=PICTURES, executor=None)


class _Shown:
    """Prints the progress of a recipe on standard error, about ten times."""

    def __call__(self, what: str, done: int, total: int) -> None:
        if done and done % max(1, total // 10) == 0:
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)


def write(
    rows: list[dict[str, Any]], seen: dict[tuple[float, bool], tuple[list[Verdict], list[float]]], options: argparse.Namespace
) -> None:
    """Write table, figures and plot of the results so far."""
    RESULTS.mkdir(exist_ok=True)
    ordered = sorted(rows, key=lambda r: (-r["bits"], r["tuned"]))
    against = {}
    for tuned in (False, True):
        if (4.3, True) in seen and (4.0, tuned) in seen:
            (ours, near), (theirs, far) = seen[4.3, True], seen[4.0, tuned]
            name = "uniform 4 bits, tuned" if tuned else "uniform 4 bits, untuned"
            against[name] = {"objects": difference(ours, theirs), "psnr": gain(near, far)}
    record = {
        "options": vars(options),
        "goal": GOAL,
        "environment": environment(),
        "rows": ordered,
        "mixed_4.3_tuned_minus": against,
    }
    (RESULTS / "bits.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    (RESULTS / "bits.md").write_text(table(record))
    plot(ordered, RESULTS / "bits.png")


def table(record: dict[str, Any]) -> str:
    """Markdown: one line per point, then the goals."""
    o = record["options"]
    lines = [
        f"Embedded checkpoint, full width, {o['prompts']} held-out prompts, four steps, tuned {o['iterations']} iterations. "
        "PSNR of the final picture against fp32's: median (10 % to 90 % of pictures). Intervals of 95 %, differences paired by "
        "prompt. Velocity error: on held-out steps of fp32 trajectories, squared and relative.",
        "",
        "| bits | average | | PSNR, dB | objects entirely right | minus fp32 | velocity error |",
        "|---|---|---|---|---|---|---|",
    ]
    untuned = {r["bits"]: r.get("velocity_error") for r in record["rows"] if not r["tuned"]}
    for r in record["rows"]:
        p, d = r["psnr"], r["to_fp32"]
        state = "fp32" if r["bits"] == 32 else "tuned" if r["tuned"] else "untuned"
        if r["tuned"] and r["velocity_error"] == untuned.get(r["bits"]):  # the recipe kept the untuned weights
            state = "tuned: no better, not used"
        fidelity = "" if r["bits"] == 32 else f"{p['median']:.1f} ({p['low']:.1f} to {p['high']:.1f})"
        lines.append(
            f"| {r['bits']:g} | {r['average']:.4g} | {state} | {fidelity} | {_share(r['objects'], r['objects_interval'])} | "
            f"{'' if r['bits'] == 32 else _points(d)} | {r.get('velocity_error', 0):.2g} |"
        )
    lines += ["", f"Goal: 4.3 bits, tuned, at most {100 * record['goal']:g} points below fp32."]
    for name, d in record["mixed_4.3_tuned_minus"].items():
        g = d["psnr"]
        interval = f"{g['interval'][0]:+.2f} to {g['interval'][1]:+.2f}"
        change = f"{g['value']:+.2f} dB ({interval}), better in {100 * g['better']:.0f} % of pictures"
        lines.append(f"4.3 bits, tuned, against {name}: {change}; {_points(d['objects'])} points of objects.")
    return "\n".join(lines) + "\n"


def _share(value: float, interval: list[float]) -> str:
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _points(d: dict[str, Any]) -> str:
    return f"{100 * d['value']:+.1f} ({100 * d['interval'][0]:+.1f} to {100 * d['interval'][1]:+.1f})"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """PSNR and score over average bits."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for tuned, colour in ((False, "tab:orange"), (True, "tab:blue")):
        own = sorted((r for r in rows if r["tuned"] == tuned and r["bits"] < 32), key=lambda r: r["average"])
        x, name = [r["average"] for r in own], "tuned" if tuned else "untuned"
        left.plot(x, [r["psnr"]["median"] for r in own], "o-", color=colour, label=name)
        left.fill_between(x, [r["psnr"]["low"] for r in own], [r["psnr"]["high"] for r in own], color=colour, alpha=0.15)
        low = [100 * (r["objects"] - r["objects_interval"][0]) for r in own]
        high = [100 * (r["objects_interval"][1] - r["objects"]) for r in own]
        right.errorbar(x, [100 * r["objects"] for r in own], [low, high], fmt="o-", color=colour, capsize=3, label=name)
    whole = 100 * next(r["objects"] for r in rows if r["bits"] == 32)
    right.axhline(whole, color="black", linewidth=1, label="fp32")
    right.axhline(whole - 100 * GOAL, color="black", linewidth=1, linestyle=":", label=f"fp32 - {100 * GOAL:g} points")
    left.set(xlabel="bits a weight, average", ylabel="PSNR against fp32, dB (median; 10 to 90 %)")
    right.set(xlabel="bits a weight, average", ylabel="objects entirely right, % (95 % interval)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
