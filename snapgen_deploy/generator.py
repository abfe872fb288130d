"""Draws with a bundle's own files on a runtime of this host."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from snapgen_deploy.bundle import Bundle
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.files import write_bytes
from snapgen_deploy.pipeline import Pipeline, tokenize


def choose_target(bundle: Bundle, wanted: str | None) -> str:
    """The target asked for, else the bundle's first that runs on this host; BadInput with the reasons when none does."""
    reasons = []
    for key in bundle.targets if wanted is None else [_full_key(bundle, wanted)]:
        target, variant = target_of(key)
        reason = target.unavailable(variant)
        if reason is None:
            return key
        reasons.append(f"{key}: {reason}")
    raise BadInput(f"no target of {bundle.path.name} runs here ({'; '.join(reasons)})")


def _full_key(bundle: Bundle, wanted: str) -> str:
    """`executorch` stands for `executorch:xnnpack` where the bundle holds just one variant of it."""
    matches = [k for k in bundle.targets if k == wanted or k.split(":")[0] == wanted]
    if len(matches) != 1:
        raise BadInput(f"{bundle.path.name} holds the targets {', '.join(bundle.targets)}; got '{wanted}'")
    return matches[0]


def draw(bundle: Bundle, key: str, prompt: str, seed: int, threads: int) -> np.ndarray:
    """A picture (H, W, 3) of unsigned bytes."""
    text = bundle.tokenizer()
    encoder = bundle.config.text_encoder
    if text is None or encoder is None:
        raise BadInput(f"{bundle.path.name} has no tokenizer or text encoder: a prompt cannot be drawn from it")
    tokens, mask = tokenize(text, prompt, encoder.length)
    target, _ = target_of(key)
    runners = {role: target.open(a.path, threads=threads, entry=a.entry) for role, a in bundle.artifacts(key).items()}
    if "decoder" not in runners:
        raise BadInput(f"{bundle.path.name} has no decoder: it cannot draw a picture")
    return Pipeline(runners, bundle.schedule, bundle.latent).draw(tokens, mask, seed)


def save_png(picture: np.ndarray, path: Path) -> None:
    """Write the whole file or nothing."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG")
    write_bytes(path, data.getvalue(), "choose another place with --output")
