"""Schedules from scheduler_config.json, held to the library's own schedulers."""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.diffusers_classes import CLASS
from snapgen_deploy.models.schedule import EULER
from snapgen_deploy.models.schedulers import FLOW, SCHEDULERS, Spacing, schedule_from
from tests.library_students import timesteps_of

MODULES = {
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler_discrete", "SCMScheduler": "scm", "LCMScheduler": "lcm",
    "EulerDiscreteScheduler": "euler_discrete", "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
}  # fmt: skip
TURBO = {"timestep_spacing": "trailing", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 4),
    ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500}, 3),
    ("SCMScheduler", {}, 4),
    ("SCMScheduler", {"sigma_data": 1.0}, 2),
    ("LCMScheduler", {}, 4),
    ("LCMScheduler", {"prediction_type": "v_prediction"}, 1),
    ("LCMScheduler", {"prediction_type": "sample"}, 3),
    ("EulerDiscreteScheduler", TURBO, 4),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "v_prediction"}, 4),
    ("EulerDiscreteScheduler", {}, 3),
    ("EulerAncestralDiscreteScheduler", TURBO, 4),
]


def scheduler_of_library(name: str, settings: dict[str, Any]) -> Any:
    kind = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{MODULES[name]}"), name)
    return kind(**settings)


def network(x: Tensor, timestep: float) -> Tensor:
    return torch.tanh(0.7 * x + 0.1 * math.sin(timestep) + 0.05)


def drawn_by_library(scheduler: Any, x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """As pipelines of the library call a scheduler, SANA-Sprint's for SCM."""
    given = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    if type(scheduler).__name__ != "SCMScheduler":
        scheduler.set_timesteps(steps)
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(network(seen, float(t)), t, x, return_dict=False, **given)[0]
        return x
    scheduler.set_timesteps(steps, max_timesteps=1.57080, intermediate_timesteps=1.3 if steps == 2 else None)
    data, denoised = scheduler.config.sigma_data, x
    x = x * data
    for t in scheduler.timesteps[:-1]:
        s = torch.sin(t) / (torch.cos(t) + torch.sin(t))
        seen = x / data * torch.sqrt(s**2 + (1 - s) ** 2)
        out = ((1 - 2 * s) * seen + (1 - 2 * s + 2 * s**2) * network(seen, float(s))) / torch.sqrt(s**2 + (1 - s) ** 2)
        x, denoised = scheduler.step(out * data, t, x, return_dict=False, **given)
    return denoised / data


@pytest.mark.parametrize(("name", "settings", "steps"), CASES)
def test_a_schedule_draws_what_the_library_draws(name: str, settings: dict[str, Any], steps: int) -> None:
    library = scheduler_of_library(name, settings)
    ours = schedule_from({**library.config, CLASS: name}, Spacing(steps), 16)
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(1, 4, 8, 8, generator=generator) for _ in range(1 + ours.fresh)]
    timesteps = timesteps_of(ours)
    got = ours.sampled(lambda x, step: network(x, timesteps[step]), torch.stack(draws, 1) if ours.fresh else draws[0])
    generator = torch.Generator().manual_seed(3)  # the scheduler draws what comes after the first noise
    expected = drawn_by_library(library, torch.randn(1, 4, 8, 8, generator=generator), steps, generator)
    assert float((got - expected).norm() / expected.norm()) < 5e-6
    assert len(ours.sigmas) == steps + 1


def test_flux_spaces_its_levels_evenly() -> None:
    library = scheduler_of_library("FlowMatchEulerDiscreteScheduler", {})
    library.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    ours = schedule_from({CLASS: "FlowMatchEulerDiscreteScheduler"}, Spacing(4, even=True), 16)
    assert ours.sampler == EULER
    assert ours.sigmas == tuple(library.sigmas.tolist())


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize(
    "settings", [{"shift": 3.0}, {"time_shift_type": "linear", "max_shift": 2.5}, {"base_image_seq_len": 64}]
)
def test_a_shift_of_the_pictures_size(settings: dict[str, Any], even: bool) -> None:
    from diffusers.pipelines.dreamlite.pipeline_dreamlite_mobile import calculate_shift

    library = scheduler_of_library(FLOW, {"use_dynamic_shifting": True, **settings})
    c = library.config
    for tokens in (16, 1024, 4096):
        mu = calculate_shift(tokens, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift)
        given = {"sigmas": [1.0, 0.75, 0.5, 0.25]} if even else {"num_inference_steps": 4}
        library.set_timesteps(mu=mu, **given)
        ours = schedule_from({**c, CLASS: FLOW}, Spacing(4, even, tokens=tokens), 16)
        assert ours.sigmas == pytest.approx(library.sigmas.tolist(), rel=1e-6)
        assert ours.sampler == EULER


@pytest.mark.parametrize("changes", [{"base_image_seq_len": 4096}, {"time_shift_type": "linear", "max_shift": -3.0}])
def test_a_shift_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="scheduler: FlowMatchEulerDiscreteScheduler: got"):
        schedule_from({CLASS: FLOW, "use_dynamic_shifting": True, **changes}, Spacing(4, tokens=4096), 16)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({CLASS: "DPMSolverMultistepScheduler"}, "scheduler: _class_name: got 'DPMSolverMultistepScheduler', expected one of"),
        ({}, "scheduler: _class_name: got nothing"),
        ({CLASS: FLOW, "use_dynamic_shifting": True}, "pipelines of this student tell the scheduler no picture size"),
        ({CLASS: FLOW, "time_shift_type": "steep"}, "time_shift_type: got 'steep'"),
        ({CLASS: "SCMScheduler", "prediction_type": "epsilon"}, "prediction_type: got 'epsilon', expected 'trigflow'"),
        ({CLASS: "LCMScheduler", "original_inference_steps": 2}, "got 4 steps, expected at most the 2 of"),
        ({CLASS: "LCMScheduler", "beta_schedule": "squaredcos_cap_v2"}, "beta_schedule: got 'squaredcos_cap_v2'"),
        ({CLASS: "EulerDiscreteScheduler", "steps_offset": 999, "timestep_spacing": "leading"}, "beyond num_train_timesteps"),
        ({CLASS: "EulerDiscreteScheduler", "num_train_timesteps": 3}, "got 4 steps, expected at most the 3"),
    ],
)
def test_what_is_not_taken_is_refused_in_one_line(config: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as error:
        schedule_from(config, Spacing(4), 16)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert set(MODULES) == set(SCHEDULERS)
