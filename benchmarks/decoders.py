"""Published decoders of diffusers with seeded weights: error against the library's own decode, time and peak memory per target.

    python -m benchmarks.decoders [--decoders NAME ...] [--targets KEY ...] [--size 512] [--threads 2]

Writes benchmarks/results/decoders-SIZE.json and .md; rows replace those of earlier runs. Every step is a process of its own.
SD 3 and Flux have one network, and so have Qwen-Image and Wan 2.1; configurations are those of the published folders.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snapgen_deploy.checkpoint.initial import initial_tensor
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import LATENT, PICTURE, Spelling
from snapgen_deploy.families.library_decoder import library_decoder
from snapgen_deploy.golden.vectors import GoldenSize
from snapgen_deploy.models.autoencoders import facts_of
from snapgen_deploy.models.config import LibraryDecoder
from snapgen_deploy.models.diffusers_classes import CLASS
from snapgen_deploy.models.library_decoder import DiffusersDecoder, build_autoencoder, library_decode
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.system.child import run_in_child

RESULTS = Path(__file__).parent / "results"
TARGETS = ("onnx:cpu", "coreml", "executorch:xnnpack")
_QWEN = {
    "base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
    "temperal_downsample": [False, True, True], "dropout": 0.0,
    "latents_mean": [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
        -0.9497, 0.2503, -0.2921,
    ],
    "latents_std": [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
        2.8251, 1.916,
    ],
}  # fmt: skip
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "TAESD 3": {
        CLASS: "AutoencoderTiny", "latent_channels": 16, "act_fn": "relu", "encoder_block_out_channels": [64] * 4,
        "decoder_block_out_channels": [64] * 4, "num_encoder_blocks": [1, 3, 3, 3], "num_decoder_blocks": [3, 3, 3, 1],
        "upsampling_scaling_factor": 2, "scaling_factor": 1.0,
    },
    "SD 3, Flux": {
        CLASS: "AutoencoderKL", "latent_channels": 16, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "norm_num_groups": 32,
        "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False,
    },
    "SANA": {
        CLASS: "AutoencoderDC", "latent_channels": 32, "attention_head_dim": 32, "scaling_factor": 0.41407,
        "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3, "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3, "decoder_layers_per_block": [3] * 6,
        "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024], "downsample_block_type": "conv",
        "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024], "upsample_block_type": "interpolate",
        "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]], "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    },
    "Qwen-Image, Wan 2.1": {CLASS: "AutoencoderKLQwenImage", **_QWEN},
}  # fmt: skip


def published(name: str) -> LibraryDecoder:
    """The configuration of a published decoder."""
    return LibraryDecoder("diffusers", dict(PUBLISHED[name]))


@dataclass(frozen=True)
class Row:
    """One decoder on one target; seconds of wall time, bytes of a process."""

    decoder: str
    parameters: int
    target: str
    precision: str
    size: int  # of a side of the picture, in pixels
    error: float  # relative, against the library's own decode
    convert_seconds: float
    convert_peak: int
    run_seconds: float
    run_peak: int
    bytes: int
    outside: int  # operators outside the delegate
    library_seconds: float
    library_peak: int


@dataclass(frozen=True)
class Case:
    """A decoder at a picture size, and the folder where its processes meet."""

    name: str
    size: int
    folder: Path
    threads: int

    @property
    def drawing(self) -> GoldenSize:
        """Its latent and picture."""
        facts = facts_of(published(self.name))
        side = self.size // facts.factor
        return GoldenSize("", (self.size, self.size), (facts.latent, side, side))


def state_of(config: LibraryDecoder) -> dict[str, torch.Tensor]:
    """Seeded weights of the decoding half."""
    spec = library_decoder(config)
    return {name: initial_tensor(spec, name, shape, 0) for name, shape in spec.stored_shapes().items()}


def decode_by_library(case: Case) -> float:
    """Write a latent and what diffusers decodes of it; the seconds that decoding took."""
    torch.set_num_threads(case.threads)
    config = published(case.name)
    whole = build_autoencoder(config).eval()
    whole.load_state_dict(state_of(config), strict=False)
    latent = torch.randn(1, *case.drawing.latent, generator=torch.Generator().manual_seed(1))
    start = time.monotonic()
    picture = library_decode(whole, config, latent)
    seconds = time.monotonic() - start
    np.savez(case.folder / "library.npz", latent=latent.numpy(), picture=picture.numpy())
    return seconds


def convert(case: Case, key: str) -> tuple[float, str, int, int]:
    """Write the file of a target; seconds, its path, its bytes, and its operators outside the delegate."""
    torch.set_num_threads(case.threads)
    config, target_spec = published(case.name), spec_of(key)
    spec, precision, writing = library_decoder(config), target_spec.precisions[0], target_spec.writing
    start = time.monotonic()
    with without_storage():
        network = DiffusersDecoder(config)
    network.load_state_dict(state_of(config), assign=True)
    how = Spelling(target_spec.layout, writing.ops_at(precision), writing.upsample, "loop")
    module = spec.rewrite(network.requires_grad_(False), case.drawing.latent[1:], how)
    inputs, outputs, doc = spec.ports(case.drawing)
    example = (torch.ones(inputs[0].shape),)
    component = Component("decoder", module, inputs, outputs, example, doc, expendable=True)
    target, variant = target_of(key)
    artifact = target.export(component, variant, precision, case.folder, {})
    seconds = time.monotonic() - start
    description = target.describe(artifact.path)
    return seconds, str(artifact.path), description.bytes, sum(description.portable_ops.values())


def run(case: Case, key: str, path: str) -> tuple[float, float]:
    """Error and seconds of the saved file."""
    torch.set_num_threads(case.threads)
    with np.load(case.folder / "library.npz") as held:
        latent, expected = held[LATENT], held[PICTURE].astype(np.float64)
    runner = target_of(key)[0].open(Path(path), threads=case.threads)
    start = time.monotonic()
    picture = runner({LATENT: latent})[PICTURE]
    seconds = time.monotonic() - start
    return float(np.linalg.norm(picture - expected) / np.linalg.norm(expected)), seconds


def rows_of(case: Case, targets: tuple[str, ...]) -> list[Row]:
    """One decoder on each target."""
    library_seconds, library_peak = run_in_child("library", decode_by_library, case)
    found = []
    for key in targets:
        (converting, path, size, outside), convert_peak = run_in_child(f"{key} conversion", convert, case, key)
        (error, running), run_peak = run_in_child(f"{key} run", run, case, key, path)
        parameters, precision = library_decoder(published(case.name)).parameters(""), spec_of(key).precisions[0]
        found.append(
            Row(
                case.name,
                parameters,
                key,
                precision,
                case.size,
                error,
                converting,
                convert_peak,
                running,
                run_peak,
                size,
                outside,
                library_seconds,
                library_peak,
            )
        )
        print(json.dumps(asdict(found[-1])), flush=True)
    return found


def table(rows: list[Row]) -> str:
    """The results in Markdown."""
    head = "| decoder | target | error | convert | peak | run | peak | file | outside the delegate | diffusers |"
    lines = [head, "|" + " --- |" * 10]
    for r in rows:
        times = f"{r.convert_seconds:.0f} s | {r.convert_peak / 1e9:.2f} GB | {r.run_seconds:.1f} s | {r.run_peak / 1e9:.2f} GB"
        said = f"{r.decoder}, {r.parameters / 1e6:.1f}M | {r.target} {r.precision} | {r.error:.1e} | {times}"
        library = f"{r.library_seconds:.1f} s, {r.library_peak / 1e9:.2f} GB"
        lines.append(f"| {said} | {r.bytes / 1e6:.1f} MB | {r.outside} | {library} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--decoders", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--size", type=int, default=512, help="pixels of a side of the picture")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    rows: list[Row] = []
    for name in given.decoders:
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(Case(name, given.size, Path(folder), given.threads), tuple(given.targets))
    stem = RESULTS / f"decoders-{given.size}"
    if (before := stem.with_suffix(".json")).is_file():
        made = {(row.decoder, row.target) for row in rows}
        earlier = [Row(**row) for row in json.loads(before.read_text(encoding="utf-8"))]
        rows = [row for row in earlier if (row.decoder, row.target) not in made] + rows
        rows.sort(key=lambda row: (list(PUBLISHED).index(row.decoder), TARGETS.index(row.target)))
    stem.with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    title = f"# Decoders of diffusers, {given.size} x {given.size} pixels\n\n"
    notes = f"\n\nSeeded weights, {given.threads} threads. Core ML's packages run in our executor: its time is no phone's.\n"
    stem.with_suffix(".md").write_text(f"{title}{table(rows)}{notes}", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
