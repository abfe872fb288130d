"""Whole pipelines of diffusers, from text to latent: the reference and its schedule end where they do, from the same seed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from snapgen_deploy.drawing.pipeline import noise_for
from snapgen_deploy.models.diffusers_classes import CLASS
from snapgen_deploy.models.library_scheduler import library_scheduler
from snapgen_deploy.models.library_student import StudentText
from snapgen_deploy.models.noise import TORCH
from snapgen_deploy.models.students import LibraryStudent
from tests import library_students as cases

TURBO = {
    CLASS: "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "beta_end": 0.012,
}  # fmt: skip
SCHNELL = {CLASS: "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
# Case, scheduler, pipeline, and what its network is called there.
PIPELINES: list[tuple[str, Mapping[str, Any], str, str]] = [
    ("pixart", cases.LCM, "PixArtAlphaPipeline", "transformer"),
    ("sana-sprint", cases.SCM, "SanaSprintPipeline", "transformer"),
    ("sd3.5", cases.FLOW, "StableDiffusion3Pipeline", "transformer"),
    ("flux", SCHNELL, "FluxPipeline", "transformer"),
    ("flux-dev", SCHNELL, "FluxPipeline", "transformer"),
    ("sd", TURBO, "StableDiffusionPipeline", "unet"),
    ("sdxl", TURBO, "StableDiffusionXLPipeline", "unet"),
    ("dreamlite", cases.DYNAMIC, "DreamLiteMobilePipeline", "unet"),
    ("flux-dev", cases.DYNAMIC, "FluxPipeline", "transformer"),
    ("sd3.5", cases.DYNAMIC, "StableDiffusion3Pipeline", "transformer"),
]
CHANGES: Mapping[str, dict[str, Any]] = {"pixart": {"sample_size": 128}}  # where its pipeline gives the picture's size
SIDE = {"sana-sprint": 256}  # of a picture, in pixels; others have 64


class Asked:
    """In the place of parts of a pipeline that it only asks for something."""

    dtype = torch.float32
    config = SimpleNamespace(latent_channels=4, encoder_block_out_channels=[64] * 4)


def arguments(config: LibraryStudent, text: StudentText) -> dict[str, Any]:
    """The text as a pipeline takes it."""
    streams = config.text_streams
    kind = config.config[CLASS]
    if kind == "DreamLiteUNetModel":
        return {"prompt": "a red ring"}
    if kind in ("PixArtTransformer2DModel", "SanaTransformer2DModel"):
        return {"prompt_embeds": text.text["text"], "prompt_attention_mask": text.mask["text"]}
    pooled = [text.pooled[s.name] for s in streams if s.pooled]
    given: dict[str, Any] = {"pooled_prompt_embeds": torch.cat(pooled, 1)} if pooled else {}
    if kind == "UNet2DConditionModel":
        return {"prompt_embeds": torch.cat([text.text[s.name] for s in streams], 2), **given}
    last = text.text[streams[-1].name]
    if kind == "FluxTransformer2DModel":
        return {"prompt_embeds": last, **given}
    clips = torch.cat([text.text[s.name] for s in streams[:2]], 2)
    filled = torch.nn.functional.pad(clips, (0, last.shape[2] - clips.shape[2]))
    return {"prompt_embeds": torch.cat([filled, last], 1), **given}


@pytest.mark.parametrize(("name", "scheduler", "pipeline", "part"), PIPELINES)
def test_a_pipeline_of_the_library(name: str, scheduler: Mapping[str, Any], pipeline: str, part: str) -> None:
    config = cases.config_of(name, scheduler, **CHANGES.get(name, {}))
    whole, reference = cases.pair(config)
    text, side = cases.texts(config), SIDE.get(name, 64)
    kind = getattr(importlib.import_module("diffusers"), pipeline)
    parts = dict.fromkeys(n for n, p in inspect.signature(kind.__init__).parameters.items() if p.default is p.empty)
    del parts["self"]
    if name == "dreamlite":  # it asks its encoder for a type, and its autoencoder for sizes
        parts["text_encoder"] = parts["vae"] = Asked()
    made = kind(**parts | {part: whole, "scheduler": library_scheduler(config)})
    if name == "dreamlite":
        made.encode_prompt = lambda **asked: (text.text["text"], text.mask["text"])
    made.set_progress_bar_config(disable=True)
    guidance = {"flux-dev": 4.5, "sana-sprint": 4.5}.get(name, 0.0)
    given: dict[str, Any] = {"intermediate_timesteps": None} if name == "sana-sprint" else {}
    if name in ("pixart", "sana-sprint"):
        given["use_resolution_binning"] = False
    if name == "sana-sprint":
        made.vae_scale_factor = 32
    expected: Tensor = made(
        height=side, width=side, num_inference_steps=4, guidance_scale=guidance, output_type="latent",
        generator=torch.Generator().manual_seed(7), **arguments(config, text), **given,
    )[0]  # fmt: skip
    latent = (config.latent_channels, side // made.vae_scale_factor, side // made.vae_scale_factor)
    if pipeline == "FluxPipeline":
        expected = made._unpack_latents(expected, side, side, made.vae_scale_factor)
    schedule = config.schedule(4, latent[1:])
    noise = torch.from_numpy(noise_for(7, latent, TORCH, schedule.fresh))
    with torch.no_grad():
        got = schedule.sampled(
            lambda x, step: reference(x, torch.from_numpy(schedule.features(step)), text.text, text.mask, text.pooled), noise
        )
    assert cases.relative(got, expected) < 1e-4
