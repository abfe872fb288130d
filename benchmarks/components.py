"""Nine components of other people's making on three targets: three text encoders, four decoders, two checkpoints.

    python -m benchmarks.components                       the small ones, and the table of all
    python -m benchmarks.components --checkpoints         the two checkpoints at full size: 410M parameters at 1024 x 1024

Each row is the error of the saved file against the forward pass of the library that the component was saved with, and seconds
and peak memory of the process that converts. A checkpoint's forward pass is the reference student with its weights set by hand:
nothing of the reader that is measured. Text encoders and decoders of full size are taken from the results of their own
benchmarks, `text_encoders`, `language_model` and `decoders`. Writes benchmarks/results/components.json and .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snapgen_deploy.checkpoint.opener import Checkpoint, Reading, open_with_adapters
from snapgen_deploy.checkpoint.text_folder import open_text_folder
from snapgen_deploy.checkpoint.wrappers import Selection
from snapgen_deploy.checkpoint.writer import save_checkpoint
from snapgen_deploy.cli.console import megabytes
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import LATENT, MASK, PICTURE, TOKENS, ComponentSpec, Spelling
from snapgen_deploy.families.library_decoder import library_decoder
from snapgen_deploy.families.library_text import library_text_encoder
from snapgen_deploy.families.names import STUDENT
from snapgen_deploy.golden.vectors import GoldenSize
from snapgen_deploy.job.components import build_component
from snapgen_deploy.models import DiT, ModelConfig, TextStream, presets, time_features
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.models.library_decoder import library_decode
from snapgen_deploy.models.library_text import library_encoder
from snapgen_deploy.models.serialise import config_to_dict
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.system.child import run_in_child
from tests import library_decoders as decoders
from tests.checkpoint.foreign import PIXART_MAP, our_state, pixart_config, pixart_state
from tests.text_encoders.folders import write_folder

RESULTS = Path(__file__).parent / "results"
TARGETS = ("onnx:cpu", "coreml", "executorch:xnnpack")
LATENTS = (6, 5)  # of the small decoders
SMALL_TEXT = {
    "CLIP-L": ("clip_text_model", {}),
    "CLIP-bigG": ("clip_text_model", {"hidden_act": "gelu"}),
    "Gemma 3": ("gemma3_text", {}),
}  # fmt: skip
SMALL_DECODERS = {"TAESD 3": "tiny", "SD 3, Flux": "kl", "SANA": "dc", "Qwen-Image, Wan 2.1": "qwen"}
LAYOUTS = ("PixArt's names", "training checkpoint")


@dataclasses.dataclass(frozen=True)
class Held:
    """A component as it is converted, and what its library computes of some inputs."""

    spec: ComponentSpec
    network: nn.Module
    size: GoldenSize
    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]


def text_encoder(name: str, folder: Path) -> Held:
    """A small one, from the folder that transformers writes."""
    kind, changes = SMALL_TEXT[name]
    write_folder(folder / "text", kind, **changes)
    found = open_text_folder(folder / "text", TextStream("text", 32, 12))
    spec = library_text_encoder(found.config, 0)
    network = spec.build("")
    network.load_state_dict({n: t.read(t.info.shape).float() for n, t in found.stored.items()}, assign=True)
    tokens = torch.randint(5, 60, (1, 12), generator=torch.Generator().manual_seed(3)).int()
    mask = (torch.arange(12)[None] < 7).float()
    made = library_encoder(found.config, folder / "text", lambda n: torch.empty(0))(tokens, mask)
    assert isinstance(made, Tensor)
    inputs = {TOKENS: tokens.numpy(), MASK: mask.numpy()}
    return Held(spec, network, GoldenSize("", (64, 64), (4, 8, 8)), inputs, {"text": made.numpy()})


def decoder(name: str, folder: Path) -> Held:
    """A small one, with the weights of the library's autoencoder."""
    config = decoders.config_of(SMALL_DECODERS[name])
    whole, reference = decoders.pair(config)
    latent = decoders.latents(config, LATENTS)
    height, width = (side * reference.facts.factor for side in LATENTS)
    size = GoldenSize("", (height, width), (latent.shape[1], *LATENTS))
    picture = library_decode(whole, config, latent).numpy()
    return Held(library_decoder(config), reference, size, {LATENT: latent.numpy()}, {PICTURE: picture})


def convert_held(make: Callable[[str, Path], Held], name: str, key: str, folder: Path) -> dict[str, Any]:
    """Convert a small component, and run the file."""
    torch.set_num_threads(2)
    held, record = make(name, folder), spec_of(key)
    precision, writing = record.precisions[0], record.writing
    start = time.monotonic()
    how = Spelling(record.layout, writing.ops_at(precision), writing.upsample, "loop", writing.text_form)
    module = held.spec.rewrite(held.network.eval().requires_grad_(False), held.size.latent[1:], how)
    inputs, outputs, doc = held.spec.ports(held.size)
    example = tuple(torch.from_numpy(np.ascontiguousarray(held.inputs[port.name])) for port in inputs)
    component = Component(held.spec.name, module.eval(), inputs, outputs, example, doc)
    return written(component, key, folder, start, held.inputs, held.expected)


def written(
    component: Component, key: str, folder: Path, start: float,
    inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray],
) -> dict[str, Any]:  # fmt: skip
    """Write the file of a target and run it; `start` is when the conversion began."""
    target, variant = target_of(key)
    precision = spec_of(key).precisions[0]
    (folder / "file").mkdir()
    artifact = target.export(component, variant, precision, folder / "file", {})
    seconds = time.monotonic() - start
    got = target.open(artifact.path, threads=2)(inputs)
    error = max(float(np.linalg.norm(got[n] - x) / np.linalg.norm(x)) for n, x in expected.items())
    return {"precision": precision, "error": error, "seconds": seconds}


def student_config(full: bool) -> ModelConfig:
    """A student of 28 layers and one width: small, or as wide as snapgenpp's 0.4B student, for 1024 x 1024 pictures."""
    small = pixart_config()
    if not full:
        return small
    whole = dit_of(presets.snapgenpp())
    width = whole.hidden_at("small")
    student = dataclasses.replace(whole, hidden=width, widths={"full": 1.0}, text_streams=(TextStream("text", 512, 77),))
    return dataclasses.replace(small, student=student, resolution=(1024, 1024))


def store(layout: str, full: bool, folder: Path) -> None:
    """Write a checkpoint in this layout (bf16 at full size), and what the reference computes with weights set by hand."""
    torch.set_num_threads(2)
    config = student_config(full)
    state = {n: t.bfloat16() if full else t for n, t in our_state(config, 0.01 if full else 0.1).items()}
    foreign = pixart_state(state)
    (folder / "map.toml").write_text(PIXART_MAP)
    (folder / "config.json").write_text(json.dumps({"snapgen_config": config_to_dict(config)}))
    if layout == LAYOUTS[0]:
        save_checkpoint(foreign, config, folder / "model.safetensors")
    else:
        noise = {f"module.{n}": torch.zeros_like(t) for n, t in foreign.items()}
        average = {f"module._orig_mod.{n}": t for n, t in foreign.items()}
        torch.save({"model": noise, "ema": average, "step": 1000, "epoch": 3}, folder / "model.pt")
    del foreign
    student = DiT(dit_of(config))
    student.load_state_dict({n.removeprefix("student.").partition("@")[0]: t.float() for n, t in state.items()})
    del state
    inputs = inputs_of(config)
    with torch.no_grad():
        text, mask = ({"text": torch.from_numpy(inputs[n])} for n in ("text", "text_mask"))
        velocity = student.eval()(torch.from_numpy(inputs[LATENT]), torch.from_numpy(inputs["time_features"]), text, mask)
    np.savez(folder / "expected.npz", velocity=velocity.numpy())


def inputs_of(config: ModelConfig) -> dict[str, np.ndarray]:
    """A student's inputs, by port."""
    student, generator = dit_of(config), torch.Generator().manual_seed(7)
    height, width = (side // student.latent_factor for side in config.resolution)
    (stream,) = student.text_streams
    return {
        LATENT: torch.randn(1, student.latent_channels, height, width, generator=generator).numpy(),
        "time_features": time_features(torch.tensor([0.9]), student.time_features).numpy(),
        "text": torch.randn(1, stream.length, stream.dim, generator=generator).numpy(),
        "text_mask": (np.arange(stream.length)[None] < stream.length - 2).astype(np.float32),
    }


def opened(layout: str, folder: Path) -> Checkpoint:
    """The checkpoint as an export opens it."""
    plain = layout == LAYOUTS[0]
    path = folder / ("model.safetensors" if plain else "model.pt")
    reading = Reading(folder / "map.toml", None if plain else folder / "config.json", Selection(ema=not plain))
    return open_with_adapters(path, reading, ())[0]


def convert_checkpoint(layout: str, key: str, folder: Path, stored: Path) -> dict[str, Any]:
    """Convert the student of a foreign checkpoint, and run the file."""
    torch.set_num_threads(2)
    start = time.monotonic()
    checkpoint = opened(layout, stored)
    plan = make_plan(checkpoint.config, load_profile("iphone16pm"), targets=[key], width="full")
    component = build_component(checkpoint, plan, plan.targets[0], STUDENT)
    with np.load(stored / "expected.npz") as held:
        expected = dict(held)
    return written(component, key, folder, start, inputs_of(checkpoint.config), expected)


def checkpoints(full: bool) -> Iterable[dict[str, Any]]:
    """Rows of both checkpoints."""
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            run_in_child(f"{layout} stored", store, layout, full, Path(folder))
            for key in TARGETS:
                with tempfile.TemporaryDirectory() as place:
                    what = f"{layout} {key}"
                    found, peak = run_in_child(what, convert_checkpoint, layout, key, Path(place), Path(folder))
                yield {"component": f"student, {layout}", "size": _size(full), "target": key, **found, "peak_bytes": peak}


def small_ones() -> Iterable[dict[str, Any]]:
    """Rows of small text encoders and decoders."""
    for make, names in ((text_encoder, SMALL_TEXT), (decoder, SMALL_DECODERS)):
        for name in names:
            for key in TARGETS:
                with tempfile.TemporaryDirectory() as place:
                    found, peak = run_in_child(f"{name} {key}", convert_held, make, name, key, Path(place))
                yield {"component": name, "size": _size(False), "target": key, **found, "peak_bytes": peak}


def _size(full: bool) -> str:
    return "full" if full else "small"


def from_other_benchmarks() -> Iterable[dict[str, Any]]:
    """Rows of full-size text encoders and decoders, as their own benchmarks measured them."""
    names = {"clip-l": "CLIP-L", "clip-bigg": "CLIP-bigG"}
    for r in json.loads((RESULTS / "text_encoders.json").read_text()):
        if r["who"] == "ours":
            about = {"error": r["error"], "seconds": r["seconds"], "peak_bytes": r["peak_bytes"]}
            precision = spec_of(r["target"]).precisions[0]
            yield {"component": names[r["model"]], "size": "full", "target": r["target"], "precision": precision, **about}
    for name, r in json.loads((RESULTS / "language_model.json").read_text()).items():
        key, _, layers = name.partition(", ")
        if layers == "34 layers":
            about = {"error": r["error"], **r["conversion"]}
            yield {"component": "Gemma 3", "size": "full", "target": key, "precision": "int4", **about}
    for r in json.loads((RESULTS / "decoders-1024.json").read_text()):
        about = {"error": r["error"], "seconds": r["convert_seconds"], "peak_bytes": r["convert_peak"]}
        yield {"component": r["decoder"], "size": "full", "target": r["target"], "precision": r["precision"], **about}


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """One line for each component and size, one column for each target."""
    found = {(r["component"], r["size"], r["target"]): r for r in rows}
    names = [*SMALL_TEXT, *SMALL_DECODERS, *(f"student, {layout}" for layout in LAYOUTS)]
    lines = [
        "# Nine components of other people's making, on three targets",
        "",
        "`python -m benchmarks.components`. Error of the saved file against the library's own forward pass in fp32 (of a "
        "student: the reference with its weights set by hand), seconds and peak memory of the converting process. Seeded "
        "weights. Full size: published widths, decoders and students at 1024 x 1024. Rows come from several runs on two cores "
        "that others used as well: seconds do not compare across rows.",
        "",
        "| component | size | ONNX fp32 | Core ML fp16 | XNNPACK fp32 |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        for size in ("small", "full"):
            cells = (_cell(found.get((name, size, key)), key) for key in TARGETS)
            lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any] | None, key: str) -> str:
    if row is None:
        return "not run"
    other = "" if row["precision"] == spec_of(key).precisions[0] else f"{row['precision']}: "
    return f"{other}{row['error']:.1e}, {row['seconds']:.0f} s, {megabytes(row['peak_bytes'])}"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", action="store_true", help="the checkpoints at full size, instead of what is small")
    parser.add_argument("--table", action="store_true", help="measure nothing: only write the table anew")
    options = parser.parse_args()
    path = RESULTS / "components.json"
    rows = {_place(r): r for r in (json.loads(path.read_text()) if path.is_file() else [])}
    small = itertools.chain(checkpoints(False), small_ones())
    for row in () if options.table else checkpoints(True) if options.checkpoints else small:
        print(json.dumps(row), flush=True)
        rows[_place(row)] = row
        path.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    table = markdown([*rows.values(), *from_other_benchmarks()])
    (RESULTS / "components.md").write_text(table)
    print(table)


def _place(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["component"], row["size"], row["target"]


if __name__ == "__main__":
    main()
