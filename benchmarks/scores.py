"""`python -m benchmarks.scores`: how well each width draws, with the reference and with exported files on every runtime.

    python -m benchmarks.scores                            the elastic transformer, three widths
    python -m benchmarks.scores --checkpoint shapes-unet   the U-Net

Exports an embedded checkpoint once per width for the iPhone 16 Pro Max, draws held-out prompts with four steps on every
target, and scores the pictures with the independent detector of `examples.shapes`. Writes scores.json, scores.md and grid.png
(widths x runtimes) to `benchmarks/results/`; those of the U-Net have its name behind the first word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from examples.shapes.score import score_pictures
from examples.shapes.stages import scenes
from snapgen_deploy.bundle.preview import write_preview
from snapgen_deploy.bundle.reader import Bundle, open_bundle
from snapgen_deploy.check.gates import psnr
from snapgen_deploy.checkpoint import EMBEDDED, Checkpoint, embedded_path, open_checkpoint
from snapgen_deploy.checkpoint.networks import widths_of
from snapgen_deploy.drawing.pipeline import Pipeline, tokenize_all
from snapgen_deploy.drawing.reference import reference_runners, schedule_of
from snapgen_deploy.export.base import Role, Runner
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.families.registry import components_of

RESULTS = Path(__file__).parent / "results"
BUNDLES = Path("bundles/benchmark")
SHOWN = 4
REFERENCE = "reference"


def main() -> None:
    """Run for the widths and the number of prompts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", choices=EMBEDDED, default=EMBEDDED[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--widths", nargs="+", help="default: all")
    options = parser.parse_args()
    checkpoint = open_checkpoint(embedded_path(options.checkpoint))
    suffix = "" if options.checkpoint == EMBEDDED[0] else f"-{options.checkpoint}"
    prompts = [spec.text() for spec, _ in scenes(2026, options.prompts, held_out=True)]
    rows: list[dict[str, object]] = []
    shown: dict[str, Sequence[np.ndarray]] = {}
    for width in options.widths or sorted(widths_of(checkpoint), key=["full", "small", "tiny"].index):
        bundle = exported(options.checkpoint, width, options.threads)
        opened = runtimes(checkpoint, bundle, width, options.threads)
        pictures = {name: draw(runners, bundle, prompts) for name, runners in opened.items()}
        for name, drawn in pictures.items():
            worst = min(psnr(signed(a), signed(b)) for a, b in zip(drawn, pictures[REFERENCE], strict=True))
            rows.append({"width": width, "runtime": name, "least_psnr_db": round(worst, 1), **score_pictures(prompts, drawn)})
            shown[f"{width}, {name}"] = drawn[:SHOWN]
            print(json.dumps(rows[-1]), file=sys.stderr)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"scores{suffix}.json").write_text(json.dumps({"prompts": len(prompts), "rows": rows}, indent=1) + "\n")
    (RESULTS / f"scores{suffix}.md").write_text(table(rows, len(prompts)))
    write_preview(RESULTS / f"grid{suffix}.png", prompts[:SHOWN], shown)


def exported(checkpoint: str, width: str, threads: int) -> Bundle:
    """The bundle of one width, exported with the command line."""
    folder = BUNDLES / width
    chosen = ["--checkpoint", checkpoint, "--width", width, "--threads", str(threads), "-o", str(folder), "--overwrite"]
    command = ["export", "--device", "iphone16pm", *chosen]
    subprocess.run([sys.executable, "-c", "from snapgen_deploy.cli import main; main()", *command], check=True)
    return open_bundle(folder / f"{checkpoint}-iphone16pm")


def runtimes(checkpoint: Checkpoint, bundle: Bundle, width: str, threads: int) -> dict[str, Mapping[Role, Runner]]:
    """The reference, and each target's saved files."""
    found: dict[str, Mapping[Role, Runner]] = {REFERENCE: reference_runners(checkpoint, width)}
    for key in bundle.targets:
        target, _ = target_of(key)
        found[key] = {role: target.open(a.path, threads=threads) for role, a in bundle.artifacts(key).items()}
    return found


def draw(runners: Mapping[Role, Runner], bundle: Bundle, prompts: Sequence[str]) -> list[np.ndarray]:
    """Draw each prompt once, with seed i for prompt i."""
    components, tokenizers = components_of(bundle.config), bundle.tokenizers()
    pipeline = Pipeline(components, runners, schedule_of(bundle.config), bundle.latent)
    if not tokenizers:
        raise SystemExit("the bundle has no tokenizer; expected one of the embedded checkpoint")
    texts = (pipeline.encode(tokenize_all(components, tokenizers, prompt)) for prompt in prompts)
    return [pipeline.draw(text, seed)[0] for seed, text in enumerate(texts)]


def signed(picture: np.ndarray) -> np.ndarray:
    """Convert uint8 to -1 ... 1."""
    return np.asarray(picture.astype(np.float64) / 127.5 - 1)


def table(rows: Sequence[dict[str, object]], prompts: int) -> str:
    """The rows as Markdown."""
    lines = [
        f"Four steps, {prompts} held-out prompts, 95 % intervals; least PSNR of a picture against the reference's.",
        "",
        "| width | runtime | objects entirely right | prompts entirely right | least PSNR |",
        "| --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        least = "" if r["runtime"] == REFERENCE else f"{r['least_psnr_db']} dB"
        lines.append(
            f"| {r['width']} | {r['runtime']} | {_percent(r['objects'], r['objects_interval'])} "
            f"| {_percent(r['entirely'], r['entirely_interval'])} | {least} |"
        )
    return "\n".join(lines) + "\n"


def _percent(value: object, interval: object) -> str:
    assert isinstance(value, float)
    assert isinstance(interval, list)
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


if __name__ == "__main__":
    main()
