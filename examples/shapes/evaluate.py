"""Stage 7: scores of the shipped file, and of its base model, on held-out prompts; plots of losses and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from examples.shapes.distill import GUIDANCE
from examples.shapes.fast import Worker
from examples.shapes.latents import embed
from examples.shapes.nearest import Nearest
from examples.shapes.prompts import parse
from examples.shapes.sampling import Network, draw, guided
from examples.shapes.scenes import SIDE, SIZES
from examples.shapes.score import score_pictures
from examples.shapes.stages import scenes, to_bytes
from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.checkpoint.networks import load_decoder, load_student, load_text_encoder
from snapgen_deploy.models import DecoderConfig, ElasticDiT, TextEncoder, initial_noise, sigmas

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PROMPTS, SEED, BATCH = 200, 77, 40
OPEN, NOISES = "a red ring on a gray background", 80  # a prompt that leaves size and place open, and the number of its pictures
Pictures = list[np.ndarray]


def held_out(count: int = PROMPTS) -> list[str]:
    """The prompts to score."""
    return [spec.text() for spec, _ in scenes(SEED, count, held_out=True)]


def evaluate(shipped: Path, base: ElasticDiT | None, results: Path, count: int = PROMPTS) -> dict[str, object]:
    """Score all widths at 4 steps (the shipped file, fp32) and, if there is a base, at 28 guided steps (bfloat16).

    Writes scores.json and samples.png after each, so that an interruption loses little. Rows that are not scored again stay in
    scores.json.
    """
    checkpoint = open_checkpoint(shipped)
    config = checkpoint.config
    decoder, encoder = load_decoder(checkpoint), load_text_encoder(checkpoint)
    prompts = held_out(count)
    text, mask = embed(encoder, prompts)
    empty = embed(encoder, [""])
    channels, side = config.student.latent_channels, config.resolution[0] // config.student.latent_factor
    noise = torch.cat([initial_noise(i, (1, channels, side, side)) for i in range(count)])
    widths = sorted(config.student.widths, key=config.student.widths.__getitem__, reverse=True)
    few, long = sigmas(config.steps, config.shift), sigmas(28, config.shift)
    jobs = [(f"{w} {config.steps} steps", _plain(load_student(checkpoint, w)), few, 1.0) for w in widths]
    if base:
        jobs += [(f"{w} 28 steps, guidance {GUIDANCE:g}", Worker(base, w, compiled=False), long, GUIDANCE) for w in widths]
    results.mkdir(parents=True, exist_ok=True)
    kept = results / "scores.json"
    scores: dict[str, object] = json.loads(kept.read_text()) if kept.exists() else {}
    rows = []
    for name, network, levels, scale in jobs:
        pictures: Pictures = []
        for i in range(0, count, BATCH):
            part = slice(i, i + BATCH)
            velocity = guided(network, config.student.time_features, text[part], mask[part], empty, scale)
            with torch.no_grad():
                pictures.extend(to_bytes(decoder(draw(velocity, noise[part], levels))))
        scores[name] = score_pictures(prompts, pictures)
        if scale == 1.0:
            scores[f"{name}, variety"] = variety(network, decoder.config, encoder, config.student.time_features, levels)
        print(name, json.dumps(scores[name]), flush=True)
        kept.write_text(json.dumps(scores, indent=1) + "\n")
        rows.append((name, pictures[:8]))
        grid(rows, prompts[:8], results / "samples.png")
    return scores


@torch.no_grad()
def variety(
    network: Network, decoder: DecoderConfig, encoder: TextEncoder, features: int, levels: tuple[float, ...]
) -> dict[str, object]:
    """How much pictures of a prompt vary that leaves size and place open: sizes and places of the nearest scenes."""
    text, mask = (part.expand(NOISES, *part.shape[1:]) for part in embed(encoder, [OPEN]))
    side = SIDE // decoder.factor
    noise = torch.cat([initial_noise(i, (1, decoder.latent_channels, side, side)) for i in range(NOISES)])
    parts = [slice(i, i + BATCH) for i in range(0, NOISES, BATCH)]
    drawn = torch.cat([draw(guided(network, features, text[p], mask[p]), noise[p], levels) for p in parts])
    _, scenes = Nearest(decoder)(drawn, [parse(OPEN)] * NOISES)
    things = [scene.things[0] for scene in scenes]
    return {
        "prompt": OPEN,
        "noises": NOISES,
        "scenes": len(set(things)),
        "large": round(float(np.mean([t.half == SIZES["large"] for t in things])), 3),
        "deviation": [round(float(np.std(c)), 1) for c in ([t.x for t in things], [t.y for t in things])],
    }


def _plain(student: torch.nn.Module) -> Network:
    def network(x: Tensor, features: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        velocity: Tensor = student(x, features, {"text": text}, {"text": mask})
        return velocity

    return network


def grid(rows: list[tuple[str, Pictures]], prompts: list[str], path: Path) -> None:
    """Draw a labelled grid: one row per width and number of steps, one column per prompt."""
    figure, axes = plt.subplots(len(rows), len(prompts), figsize=(1.7 * len(prompts), 1.75 * len(rows) + 0.6), squeeze=False)
    for (name, pictures), line in zip(rows, axes, strict=True):
        for picture, axis in zip(pictures, line, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
    for prompt, axis in zip(prompts, axes[0], strict=True):
        axis.set_title("\n".join(_wrapped(prompt, 24)), fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _continued(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with increasing seconds: each run continues the time of the previous one."""
    found: list[dict[str, Any]] = []
    start = before = 0.0
    for row in rows:
        if row["seconds"] < before:
            start += before
        before = row["seconds"]
        found.append(row | {"seconds": start + before})
    return found


def curves(log: Path, path: Path) -> None:
    """Plot the losses of every stage over wall-clock minutes; continued runs are joined."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure, axes = plt.subplots(1, len(stages), figsize=(4.2 * len(stages), 3.4), squeeze=False)
    for stage, axis in zip(stages, axes[0], strict=True):
        own = _continued([row for row in rows if row["stage"] == stage])
        for name in dict.fromkeys(n for row in own for n in row if n not in ("stage", "step", "seconds", "latent", "right")):
            points = [(row["seconds"] / 60, row[name]) for row in own if name in row]
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
        axis.set(title=stage, xlabel="minutes", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
