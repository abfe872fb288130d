"""Draws pictures with a bundle's files, on this machine."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.drawing.pipeline import Condition, Pipeline, in_calls, stacked_rows, tokenize_all
from snapgen_deploy.drawing.ports import NEGATIVE, absent_text
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.system.documents import several
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
        raise BadInput(f"{bundle.name} holds the targets {several(bundle.targets)}; got '{wanted}'")
    return matches[0]


@dataclass(frozen=True)
class Guidance:
    """What to draw away from, and how far, in place of the bundle's own; None: the bundle's."""

    scale: float | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True)
class WantedPicture:
    """A picture to draw: what it is of (None for a bundle without a text encoder), and the seed of its noise."""

    prompt: str | None
    seed: int


def draw(
    bundle: Bundle,
    key: str,
    wanted: Sequence[WantedPicture],
    threads: int,
    embeddings: Mapping[str, np.ndarray] | None = None,
    *,
    guidance: Guidance | None = None,
) -> list[np.ndarray]:
    """Draw pictures (H, W, 3), uint8, with the bundle's files for the target `key`, as many in a call as the files take.

    Args:
        bundle: The bundle, at one picture size.
        key: The target, as `choose_target` returns it.
        wanted: The pictures.
        threads: CPU threads.
        embeddings: Outputs of text encoders that are not part of the bundle: for each such text stream NAME (1, L, D) and
            NAME_mask (1, L), float32, 1 where there is a token, for all pictures, and NAME_pooled (1, P) where the student
            takes one. With guidance also negative.NAME and so on of the negative prompt; zeros where there are none.
        guidance: Scale and negative prompt of classifier-free guidance.

    Raises:
        BadInput: if the prompt, guidance or an array of `embeddings` is missing, superfluous or cannot be used, the bundle
            lacks a tokenizer or a decoder, or the picture is not finite.
    """
    guidance = guidance or Guidance()
    components, tokenizers = components_of(bundle.config), bundle.tokenizers()
    for prompt in (one.prompt for one in wanted):
        if prompt is None and components.encoders:
            raise BadInput("--prompt is missing: the bundle's text encoder reads one")
        if prompt is not None and not components.encoders:
            raise BadInput(f"{bundle.name} has no text encoder to read --prompt with; give its text by --embeddings alone")
        if prompt is not None and not prompt.strip():
            raise BadInput("--prompt: got an empty text, expected what to draw, such as 'a red ring'")
    if any(spec.name not in tokenizers for spec in components.encoders):
        raise BadInput(f"{bundle.name} has no tokenizer: a prompt cannot be drawn from it")
    _check_guidance(bundle, guidance)
    others = _texts(bundle.config, embeddings or {})
    read = [{} if one.prompt is None else tokenize_all(components, tokenizers, one.prompt) for one in wanted]
    away = _negative_tokens(bundle.config, tokenizers, guidance.negative_prompt) if bundle.config.guided else {}
    target, _ = target_of(key)
    runners = {role: target.open(a.path, threads=threads, entry=a.entry) for role, a in bundle.artifacts(key).items()}
    made = (bundle.schedule, bundle.latent, bundle.noise_generator)
    pipeline = Pipeline(components, runners, *made, batch=bundle.batch, guidance=guidance.scale)
    if not pipeline.decodes:
        raise BadInput(f"{bundle.name} has no decoder: it cannot draw a picture")
    pictures: list[np.ndarray] = []
    for rows in in_calls(len(wanted), bundle.batch):
        tokens = [{role: stacked_rows([read[i][role] for i in rows]) for role in read[0]}]
        tokens.append({role: _repeated(given, len(rows)) for role, given in away.items()})
        texts = [_repeated(text, len(rows)) for text in others]
        conditions = [Condition(of, text) for of, text in zip(tokens, texts, strict=False)]
        pictures += pipeline.draw(pipeline.condition(*conditions), *(wanted[i].seed for i in rows))
    return pictures[: len(wanted)]


def _repeated(arrays: Arrays, rows: int) -> Arrays:
    return {name: np.repeat(array, rows, axis=0) for name, array in arrays.items()}


def _check_guidance(bundle: Bundle, asked: Guidance) -> None:
    """BadInput for guidance that the bundle's student does not take."""
    given = {"--guidance": asked.scale, "--negative-prompt": asked.negative_prompt}
    name = next((name for name, value in given.items() if value is not None), None)
    if name is None:
        return
    if not bundle.config.guided:
        raise BadInput(
            f"{name}: {bundle.name} has no guidance, its student takes the prompt alone; leave it out, or export a checkpoint "
            "whose guidance_scale is not 1"
        )
    if asked.scale is not None and not 0 <= asked.scale < math.inf:
        raise BadInput(f"--guidance: got {asked.scale:g}, expected a number of 0 or more")
    if asked.negative_prompt and not components_of(bundle.config).encoders:
        raise BadInput(
            f"{bundle.name} has no text encoder to read --negative-prompt with; give its text by --embeddings, as negative.NAME"
        )


def _negative_tokens(config: ModelConfig, tokenizers: Mapping[Role, str], wanted: str | None) -> dict[Role, Arrays]:
    """The text encoders' inputs for the wanted negative prompt, else for the configuration's."""
    try:
        return tokenize_all(components_of(config), tokenizers, config.negative_prompt if wanted is None else wanted)
    except BadInput as error:
        raise BadInput(f"negative prompt: {error}") from None


def _texts(config: ModelConfig, embeddings: Mapping[str, np.ndarray]) -> list[Arrays]:
    """The student's text inputs that no text encoder makes: of the prompt, and with guidance of the negative prompt."""
    if not config.guided:
        return [other_text(config, embeddings)]
    negative = {name.removeprefix(NEGATIVE): array for name, array in embeddings.items() if name.startswith(NEGATIVE)}
    prompt = other_text(config, {name: array for name, array in embeddings.items() if not name.startswith(NEGATIVE)})
    return [
        prompt,
        other_text(config, negative) if negative else {name: np.zeros_like(array) for name, array in prompt.items()},
    ]


def other_text(config: ModelConfig, embeddings: Mapping[str, np.ndarray]) -> Arrays:
    """Check the student's text inputs that no text encoder of the model produces, and return them as float32.

    Raises:
        BadInput: if names or shapes are not exactly the expected ones, or a value is not a finite number.
    """
    own = {encoder.stream for encoder in config.text_encoders} | set(config.absent_streams)
    shapes: dict[str, tuple[int, ...]] = {}
    for s in config.student.text_streams:
        if s.name not in own:
            shapes |= {name: (1, *shape) for name, shape in s.shapes.items()}
    expected = several([f"{name} {shape}" for name, shape in shapes.items()])
    got = {name: tuple(array.shape) for name, array in embeddings.items()}
    if got != shapes:
        listed = several([f"{name} {shape}" for name, shape in got.items()])
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
