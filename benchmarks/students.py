"""Published students of diffusers with seeded weights: error against the library's own network, time and memory per target.

    python -m benchmarks.students [--students NAME ...] [--targets KEY ...] [--size 512] [--generic] [--threads 2]

Writes benchmarks/results/students-SIZE.json and .md after every row, in place of an earlier one. Every step is a process of its
own. A call is one step. With --generic, the library's module is also converted as it is. Configurations are those of the
published folders.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snapgen_deploy.checkpoint.initial import initial_tensor
from snapgen_deploy.errors import Refused
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import LATENT, TIME, VELOCITY, ComponentSpec, Spelling
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden.vectors import GoldenSize
from snapgen_deploy.models.config import ModelConfig, TextStream
from snapgen_deploy.models.diffusers_classes import CLASS
from snapgen_deploy.models.library_student import DiffusersStudent, StudentText, build_student, library_output
from snapgen_deploy.models.schedule import timestep_features
from snapgen_deploy.models.students import LibraryStudent
from snapgen_deploy.system.child import run_in_child

RESULTS = Path(__file__).parent / "results"
TARGETS = ("onnx:cpu", "coreml", "executorch:xnnpack")
_FLOW = {CLASS: "FlowMatchEulerDiscreteScheduler"}
PUBLISHED: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "SANA-Sprint 0.6B": ({
        CLASS: "SanaTransformer2DModel", "in_channels": 32, "out_channels": 32, "num_layers": 28, "num_attention_heads": 36,
        "attention_head_dim": 32, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72,
        "cross_attention_dim": 1152, "caption_channels": 2304, "mlp_ratio": 2.5, "sample_size": 32, "patch_size": 1,
        "guidance_embeds": True, "guidance_embeds_scale": 0.1, "qk_norm": "rms_norm_across_heads",
    }, 32),
    "PixArt-alpha": ({
        CLASS: "PixArtTransformer2DModel", "in_channels": 4, "out_channels": 8, "num_layers": 28, "num_attention_heads": 16,
        "attention_head_dim": 72, "patch_size": 2, "sample_size": 64, "caption_channels": 4096, "cross_attention_dim": 1152,
        "norm_type": "ada_norm_single",
    }, 8),
    "SDXS": ({
        CLASS: "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "sample_size": 64, "layers_per_block": 1,
        "block_out_channels": [320, 640, 1280], "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "mid_block_type": None,
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
    }, 8),
    # Its configuration is not at hand: text, latent and 36 blocks as its own exporters state them (108 LayerNorms), the rest
    # from SnapGen and the class. That makes 388M parameters, and 0.39B are published.
    "DreamLite-mobile": ({
        CLASS: "DreamLiteUNetModel", "in_channels": 4, "out_channels": 4, "sample_size": 128, "layers_per_block": 2,
        "block_out_channels": [256, 512, 896], "transformer_layers_per_block": [1, 2, 4], "attention_head_dim": [4, 8, 14],
        "down_block_types": ["DreamLiteCrossAttnNoSelfAttnDownBlock2D"] * 2 + ["DreamLiteCrossAttnDownBlock2D"],
        "up_block_types": ["DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D", "DreamLiteUpBlock2D"],
        "cross_attention_dim": 2048, "encoder_hid_dim": 2048, "encoder_hid_dim_type": "text_proj_rms", "ff_mult": 3,
        "addition_embed_type": "time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 512,
    }, 8),
}  # fmt: skip


def published(name: str) -> LibraryStudent:
    """The configuration of a published student."""
    config, factor = PUBLISHED[name]
    bare = LibraryStudent("diffusers", dict(config), _FLOW, factor, (TextStream("text", 1, 1),))
    streams = tuple(TextStream(s["name"], s["dim"], s["length"], s.get("pooled", 0)) for s in bare.facts.streams())
    return LibraryStudent("diffusers", dict(config), _FLOW, factor, streams, bare.facts.GUIDANCE)


@dataclass(frozen=True)
class Row:
    """One student on one target; seconds of wall time, bytes of a process."""

    student: str
    parameters: int
    target: str
    precision: str
    form: str  # ours, or the library's module as it is
    size: int  # of a side of the picture, in pixels
    error: float  # relative, against the library's own network
    convert_seconds: float
    convert_peak: int
    step_seconds: float
    run_peak: int
    bytes: int
    operators: int
    outside: int  # operators outside the delegate
    library_seconds: float
    library_peak: int
    refused: str = ""  # why it is not converted; then the numbers of it are 0


@dataclass(frozen=True)
class Case:
    """A student at a picture size, and the folder where its processes meet."""

    name: str
    size: int
    folder: Path
    threads: int

    @property
    def config(self) -> LibraryStudent:
        """Of the student."""
        return published(self.name)

    @property
    def spec(self) -> ComponentSpec:
        """Of the student."""
        model = ModelConfig(self.config, None, None, family="diffusers", resolution=(self.size, self.size))
        return components_of(model).denoiser

    @property
    def drawing(self) -> GoldenSize:
        """Its latent and picture."""
        side = self.size // self.config.latent_factor
        return GoldenSize("full", (self.size, self.size), (self.config.latent_channels, side, side))

    def state(self) -> dict[str, Tensor]:
        """Seeded weights, under the library's names."""
        return {name: initial_tensor(self.spec, name, shape, 0) for name, shape in self.spec.stored_shapes().items()}


class AsItIs(nn.Module):
    """The library's module with its inputs in the order of the ports."""

    def __init__(self, student: DiffusersStudent) -> None:
        super().__init__()
        self.student, self.streams = student, student.config.text_streams

    def forward(self, latent: Tensor, features: Tensor, *texts: Tensor) -> Tensor:
        """The network's output."""
        text = {s.name: texts[2 * i] for i, s in enumerate(self.streams)}
        mask = {s.name: texts[2 * i + 1] for i, s in enumerate(self.streams)}
        pooled = dict(zip((s.name for s in self.streams if s.pooled), texts[2 * len(self.streams) :], strict=True))
        out: Tensor = self.student(latent, features, text, mask, pooled)
        return out


def step_of_library(case: Case) -> float:
    """Write the inputs of a call and what diffusers computes of them; the seconds that it took."""
    torch.set_num_threads(case.threads)
    config, generator = case.config, torch.Generator().manual_seed(1)
    network = build_student(config).eval()
    network.load_state_dict(case.state())
    latent, timestep = torch.randn(1, *case.drawing.latent, generator=generator), torch.tensor([0.7])
    text = {s.name: torch.randn(1, s.length, s.dim, generator=generator) for s in config.text_streams}
    mask = {s.name: torch.ones(1, s.length) for s in config.text_streams}
    pooled = {s.name: torch.randn(1, s.pooled, generator=generator) for s in config.text_streams if s.pooled}
    start = time.monotonic()
    with torch.inference_mode():
        out = library_output(network, config, latent, timestep, StudentText(text, mask, pooled))
    seconds = time.monotonic() - start
    inputs = {LATENT: latent, TIME: timestep_features(timestep, config.time_features), **text}
    inputs |= {f"{name}_mask": value for name, value in mask.items()}
    inputs |= {s.pooled_name: pooled[s.name] for s in config.text_streams if s.pooled}
    arrays: dict[str, Any] = {VELOCITY: out.numpy()} | {name: t.numpy() for name, t in inputs.items()}
    np.savez(case.folder / "library.npz", **arrays)
    return seconds


def convert(case: Case, key: str, form: str) -> tuple[float, str, int, int, int]:
    """Write the file of a target; seconds, its path, its bytes, its operators, and those outside the delegate."""
    torch.set_num_threads(case.threads)
    spec, target_spec = case.spec, spec_of(key)
    precision, writing = target_spec.precisions[0], target_spec.writing
    start = time.monotonic()
    with torch.device("cpu" if spec.has_constants else "meta"):
        network = spec.build("full")
    assert isinstance(network, DiffusersStudent)
    network.network.load_state_dict(case.state(), assign=True)
    network.requires_grad_(False).eval()
    how = Spelling(target_spec.layout, writing.ops_at(precision), writing.upsample, "dense")
    module = spec.rewrite(network, case.drawing.latent[1:], how) if form == "ours" else AsItIs(network)
    del network
    inputs, outputs, doc = spec.ports(case.drawing)
    example = tuple(torch.ones(port.shape) for port in inputs)
    component = Component(spec.name, module, inputs, outputs, example, doc, expendable=True)
    target, variant = target_of(key)
    folder = case.folder / form
    folder.mkdir(exist_ok=True)
    artifact = target.export(component, variant, precision, folder, {})
    seconds = time.monotonic() - start
    told = target.describe(artifact.path)
    return seconds, str(artifact.path), told.bytes, sum(told.ops.values()), sum(told.portable_ops.values())


def run(case: Case, key: str, path: str) -> tuple[float, float]:
    """Error and seconds of a call of the saved file, the quicker of two."""
    torch.set_num_threads(case.threads)
    with np.load(case.folder / "library.npz") as held:
        inputs = {name: held[name] for name in held.files if name != VELOCITY}
        expected = held[VELOCITY].astype(np.float64)
    runner = target_of(key)[0].open(Path(path), threads=case.threads)
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        out = runner(inputs)[VELOCITY]
        seconds.append(time.monotonic() - start)
    return float(np.linalg.norm(out - expected) / np.linalg.norm(expected)), min(seconds)


def rows_of(case: Case, targets: tuple[str, ...], forms: tuple[str, ...]) -> Iterator[Row]:
    """One student on each target. The library's module as it is may be refused; our own form may not."""
    library_seconds, library_peak = run_in_child("library", step_of_library, case)
    about = {
        "student": case.name, "parameters": case.spec.parameters("full"), "size": case.size,
        "library_seconds": library_seconds, "library_peak": library_peak,
    }  # fmt: skip
    for key, form in ((key, form) for key in targets for form in forms):
        of: dict[str, Any] = about | {"target": key, "precision": spec_of(key).precisions[0], "form": form}
        try:
            made, convert_peak = run_in_child(f"{key} conversion", convert, case, key, form)
        except Refused as refusal:
            if form == "ours":
                raise
            left: dict[str, Any] = {f.name: 0 for f in fields(Row) if f.name not in {*of, "refused"}}
            yield Row(**of, **left, refused=str(refusal))
            continue
        converting, path, size, operators, outside = made
        (error, running), run_peak = run_in_child(f"{key} run", run, case, key, path)
        yield Row(
            **of, error=error, convert_seconds=converting, convert_peak=convert_peak, step_seconds=running,
            run_peak=run_peak, bytes=size, operators=operators, outside=outside,
        )  # fmt: skip


def table(rows: list[Row]) -> str:
    """The results in Markdown."""
    head = "| student | target | form | error | convert | peak | step | peak | file | operators, outside | diffusers |"
    lines = [head, "|" + " --- |" * 11]
    for r in rows:
        library = f"{r.library_seconds:.2f} s, {r.library_peak / 1e9:.2f} GB"
        said = f"{r.student}, {r.parameters / 1e6:.0f}M | {r.target} {r.precision} | {r.form}"
        if r.refused:
            lines.append(f"| {said} | refused: {r.refused} | | | | | | | {library} |")
            continue
        times = (
            f"{r.convert_seconds:.0f} s | {r.convert_peak / 1e9:.2f} GB | {r.step_seconds:.2f} s | {r.run_peak / 1e9:.2f} GB"
        )
        lines.append(f"| {said} | {r.error:.1e} | {times} | {r.bytes / 1e6:.0f} MB | {r.operators}, {r.outside} | {library} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--students", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--size", type=int, default=512, help="pixels of a side of the picture")
    parser.add_argument("--generic", action="store_true", help="also convert the library's module as it is")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    forms = ("ours", "as it is") if given.generic else ("ours",)
    for name in given.students:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows_of(Case(name, given.size, Path(folder), given.threads), tuple(given.targets), forms):
                print(json.dumps(asdict(row)), flush=True)
                keep(row, RESULTS / f"students-{given.size}", given.threads)


def keep(row: Row, stem: Path, threads: int) -> None:
    """Write a row into the results, in place of an earlier one of the same."""
    before = stem.with_suffix(".json")
    rows = [Row(**one) for one in json.loads(before.read_text(encoding="utf-8"))] if before.is_file() else []
    rows = [one for one in rows if (one.student, one.target, one.form) != (row.student, row.target, row.form)] + [row]
    rows.sort(key=lambda one: (list(PUBLISHED).index(one.student), TARGETS.index(one.target), one.form != "ours"))
    stem.with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    title = f"# Students of diffusers, {row.size} x {row.size} pixels\n\n"
    notes = f"\n\nSeeded weights, {threads} threads. Core ML's packages run in our executor: its time is no phone's.\n"
    stem.with_suffix(".md").write_text(f"{title}{table(rows)}{notes}", encoding="utf-8")


if __name__ == "__main__":
    main()
