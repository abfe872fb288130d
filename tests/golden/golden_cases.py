"""Golden vectors of a checkpoint, as the code of a team would write them: here that is the reference, changed or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.networks import load_component
from snapgen_deploy.drawing.pipeline import Pipeline, noise_for, tokenize_all
from snapgen_deploy.drawing.reference import schedule_of
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.families.variant import Variant
from snapgen_deploy.golden import Recorder, open_golden
from snapgen_deploy.plan.sizes import latent_of


def variant(spec: ComponentSpec, network: nn.Module, text: str) -> Variant:
    """The one whose kind and text are named, as `mask: causal`."""
    (found,) = [v for v in spec.variants(network) if f"{v.kind}: {v.theirs}".startswith(text)]
    return found


def write_golden(
    checkpoint: Checkpoint,
    path: Path,
    width: str,
    *,
    stated: bool = True,
) -> Path:
    """Two pictures at the checkpoint's own size, with every call of every component."""
    components = components_of(checkpoint.config)
    networks = {spec.name: load_component(checkpoint, spec.name, width) for spec in components}
    recorder = Recorder(width if stated else "")

    def runner(spec: ComponentSpec) -> Any:
        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
            with torch.inference_mode():
                result = spec.run(networks[spec.name], tensors)
            recorder.add(spec.name, **tensors, **result)
            return {name: value.numpy() for name, value in result.items()}

        return run

    latent = latent_of(checkpoint.config, checkpoint.config.resolution)
    pipeline = Pipeline(components, {s.name: runner(s) for s in components}, schedule_of(checkpoint.config), latent)
    for seed, prompt in enumerate(checkpoint.config.prompts[:2]):
        text, noise = pipeline.encode(tokenize_all(components, checkpoint.tokenizers, prompt)), noise_for(seed, latent)
        recorder.picture(prompt, noise=noise, picture=pipeline.decode(pipeline.denoise(noise, text)))
    recorder.save(path)
    return path


def write_changed(checkpoint: Checkpoint, golden: Path, path: Path, role: str, variants: Sequence[str]) -> Path:
    """The calls of one component in a file of golden vectors, with what it returns when it has some variants."""
    spec = components_of(checkpoint.config)[role]
    vectors = open_golden(golden, checkpoint.config, tokenizers=checkpoint.tokenizers)
    network, recorder = load_component(checkpoint, role, vectors.width), Recorder(vectors.width)
    with ExitStack() as stack, torch.inference_mode():
        for name in variants:
            stack.enter_context(variant(spec, network, name).change(network))
        tensors = {name: torch.from_numpy(value) for name, value in vectors.cases[role].inputs.items()}
        recorder.add(role, **tensors, **spec.run(network, tensors))
    recorder.save(path)
    return path
