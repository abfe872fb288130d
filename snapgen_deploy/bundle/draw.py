"""Draws pictures with a bundle's files, on this machine."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.drawing.pipeline import Pipeline, tokenize_all
from snapgen_deploy.drawing.ports import absent_text
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.system.files import write_bytes


def choose_target(bundle: Bundle, wanted: str | None) -> str:
    """The wanted target, else the bundle's quickest that runs on this machine: a format's own runtime before an executor
    that is here for its numbers, and the one for this host first of all.

    Raises:
        BadInput: if the bundle does not hold the wanted target, or none can run here (with the reasons).
    """
    reasons = []
    for key in sorted(bundle.targets, key=_slowness) if wanted is None else [full_key(bundle, wanted)]:
        target, variant = target_of(key)
        reason = target.unavailable(variant)
        if reason is None:
            return key
        reasons.append(f"{key}: {reason}")
    raise BadInput(f"no target of {bundle.name} runs here ({'; '.join(reasons) or 'it holds none'})")


def _slowness(key: str) -> tuple[bool, bool]:
    runtime = spec_of(key).runtime
    return bool(runtime.numbers_only), not runtime.host_default


def full_key(bundle: Bundle, wanted: str) -> str:
    """Complete a target's name: `executorch` means `executorch:xnnpack` if that is the bundle's only variant of it.

    Raises:
        BadInput: if no target of the bundle matches, or several do.
    """
    matches = [k for k in bundle.targets if k == wanted or k.split(":")[0] == wanted]
    if len(matches) != 1:
        raise BadInput(f"{bundle.name} holds the targets {', '.join(bundle.targets)}; got '{wanted}'")
    return matches[0]


def draw(
    bundle: Bundle, key: str, prompt: str | None, seed: int, threads: int, embeddings: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Draw a picture (H, W, 3), uint8, with the bundle's files for the target `key`.

    Args:
        bundle: The bundle, at one picture size.
        key: The target, as `choose_target` returns it.
        prompt: What to draw; None for a bundle without a text encoder.
        seed: Seed of the noise.
        threads: CPU threads.
        embeddings: Outputs of text encoders that are not part of the bundle: for each such text stream NAME (1, L, D) and
            NAME_mask (1, L), float32, 1 where there is a token.

    Raises:
        BadInput: if the prompt or an array of `embeddings` is missing, superfluous or cannot be used, the bundle lacks a
            tokenizer or a decoder, or the picture is not finite.
    """
    components, tokenizers = components_of(bundle.config), bundle.tokenizers()
    if prompt is None and components.encoders:
        raise BadInput("--prompt is missing: the bundle's text encoder reads one")
    if prompt is not None and not components.encoders:
        raise BadInput(f"{bundle.name} has no text encoder to read --prompt with; give its text by --embeddings alone")
    if prompt is not None and not prompt.strip():
        raise BadInput("--prompt: got an empty text, expected what to draw, such as 'a red ring'")
    if any(spec.name not in tokenizers for spec in components.encoders):
        raise BadInput(f"{bundle.name} has no tokenizer: a prompt cannot be drawn from it")
    others = other_text(bundle.config, embeddings or {})
    inputs = {} if prompt is None else tokenize_all(components, tokenizers, prompt)
    target, _ = target_of(key)
    runners = {role: target.open(a.path, threads=threads, entry=a.entry) for role, a in bundle.artifacts(key).items()}
    pipeline = Pipeline(components, runners, bundle.schedule, bundle.latent, bundle.noise_generator)
    if not pipeline.decodes:
        raise BadInput(f"{bundle.name} has no decoder: it cannot draw a picture")
    return pipeline.draw(pipeline.encode(inputs) | others, seed)


def other_text(config: ModelConfig, embeddings: Mapping[str, np.ndarray]) -> Arrays:
    """Check the student's text inputs that no text encoder of the model produces, and return them as float32.

    Raises:
        BadInput: if names or shapes are not exactly the expected ones, or a value is not a finite number.
    """
    own = {encoder.stream for encoder in config.text_encoders} | set(config.absent_streams)
    shapes: dict[str, tuple[int, ...]] = {}
    for s in config.student.text_streams:
        if s.name not in own:
            shapes |= {s.name: (1, s.length, s.dim), f"{s.name}_mask": (1, s.length)}
    expected = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
    got = {name: tuple(array.shape) for name, array in embeddings.items()}
    if got != shapes:
        listed = ", ".join(f"{name} {shape}" for name, shape in got.items()) or "none"
        raise BadInput(f"--embeddings: got {listed}; expected {expected}: text that no encoder of this bundle makes")
    if not all(np.issubdtype(a.dtype, np.number) and np.isfinite(a).all() for a in embeddings.values()):
        raise BadInput("--embeddings: expected finite numbers in every array")
    return {name: np.asarray(array, np.float32) for name, array in embeddings.items()} | absent_text(config)


def save_png(picture: np.ndarray, path: Path) -> None:
    """Write a picture (H, W, 3), uint8, as PNG. A failed write leaves no partial file.

    Raises:
        BadInput: if the file cannot be written.
    """
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG")
    write_bytes(path, data.getvalue(), "choose another place with --output")
