"""Drawing with any components that follow the bundle's ports."""

from __future__ import annotations

import numpy as np

from snapgen_deploy.drawing.pipeline import Pipeline, StudentTrace
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import PRESETS, Schedule


class Numbered(Schedule):
    """A schedule whose time features are the number of the step."""

    def features(self, step: int) -> np.ndarray:
        return np.array([[step]], np.float32)


def test_every_step_has_its_own_features_where_noise_levels_look_alike() -> None:
    """Two equal levels, and two that are one number in single precision."""
    sigmas = (1.0, 0.75, 0.75, 0.5, 0.5 - 1e-12, 0.0)
    told: list[float] = []

    def student(inputs):
        told.append(float(inputs["time_features"][0, 0]))
        return {"velocity": np.full_like(inputs["latent"], inputs["time_features"][0, 0])}

    components = components_of(PRESETS["shapes"]())
    pipeline, trace = Pipeline(components, {"student": student}, Numbered(sigmas, 3.0, 1), (1, 2, 2)), StudentTrace()
    latent = pipeline.denoise(np.zeros((1, 1, 2, 2), np.float32), {}, trace)
    assert told == [0, 1, 2, 3, 4]
    assert len(trace.latents) == len(trace.velocities) == 5
    np.testing.assert_allclose(latent, 0 * -0.25 + 1 * 0 + 2 * -0.25 + 3 * 0 + 4 * -0.5)
