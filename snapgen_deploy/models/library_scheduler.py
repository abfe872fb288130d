"""Schedulers of `diffusers` at work: the noise of a seed to a clean latent, by the library's own classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snapgen_deploy.models.diffusers_classes import CLASS, built, library_class
from snapgen_deploy.models.schedulers import SCM, angles_of, scheduler_of
from snapgen_deploy.models.students import LibraryStudent
from snapgen_deploy.system.quiet import quiet

# Latent and timestep (1,) as the network reads them -> its output.
CalledStep = Callable[[Tensor, Tensor], Tensor]


def library_scheduler(config: LibraryStudent) -> Any:
    """The library's scheduler.

    Raises:
        BadInput: if it is none that is taken, or the library does not take its settings.
    """
    scheduler_of(config.scheduler)
    with quiet():
        return built(library_class("schedulers", str(config.scheduler[CLASS])), config.scheduler, "scheduler: ")


def draw_by_library(
    config: LibraryStudent, steps: int, run: CalledStep, latent: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """The latent (1, C, h, w) that a pipeline of the library ends with, from noise that `generator` draws."""
    scheduler, facts = library_scheduler(config), config.facts
    x = torch.randn(1, *latent, generator=generator)
    given = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    if config.scheduler[CLASS] == SCM:
        return _by_angles(scheduler, steps, run, x, given)
    told = {"mu": _mu(scheduler, config.shift_tokens(latent[1:]))} if config.shifts_by_size else {}
    if facts.EVEN:
        scheduler.set_timesteps(sigmas=[1.0 - i / steps for i in range(steps)], **told)
    else:
        scheduler.set_timesteps(steps, **told)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = run(seen, t.float().reshape(1) * facts.timestep_scale)
        x = scheduler.step(output, t, x, return_dict=False, **given)[0]
    return x


def _mu(scheduler: Any, tokens: int) -> float:
    """What pipelines tell a scheduler of a picture, by the library's own function."""
    c, calculate = scheduler.config, library_class("pipelines.flux.pipeline_flux", "calculate_shift")
    return float(calculate(tokens, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift))


def _by_angles(scheduler: Any, steps: int, run: CalledStep, x: Tensor, given: dict[str, Any]) -> Tensor:
    """As SANA-Sprint's pipeline draws."""
    data = scheduler.config.sigma_data
    scheduler.set_timesteps(steps, timesteps=list(angles_of(steps)), max_timesteps=None, intermediate_timesteps=None)
    x, denoised = x * data, x
    for t in scheduler.timesteps[:-1]:
        level = torch.sin(t) / (torch.cos(t) + torch.sin(t))
        norm = torch.sqrt(level**2 + (1 - level) ** 2)
        seen = x / data * norm
        output = ((1 - 2 * level) * seen + (1 - 2 * level + 2 * level**2) * run(seen, level.reshape(1))) / norm
        x, denoised = scheduler.step(output * data, t, x, return_dict=False, **given)
    clean: Tensor = denoised / data
    return clean
