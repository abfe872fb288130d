"""Students of diffusers rewritten for each layout: the same numbers as the library's own network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.library_student import library_output
from snapgen_deploy.models.schedule import timestep_features
from snapgen_deploy.sparse import rewrite_library_student
from tests import library_students as cases

WAYS: tuple[dict[str, Any], ...] = (
    {"layout": "token", "ops": "native"}, {"layout": "token", "ops": "spelled"}, {"layout": "token", "ops": "half"},
    {"layout": "channels"},
)  # fmt: skip


@pytest.mark.parametrize("name", cases.CASES)
def test_every_layout_computes_what_the_library_does(name: str) -> None:
    config = cases.config_of(name)
    whole, reference = cases.pair(config)
    torch.manual_seed(0)
    for rows, size in ((2, (8, 8)), (1, (4, 12))):
        text, latent = cases.texts(config, rows), torch.randn(rows, config.latent_channels, *size)
        timestep = torch.full((rows,), 400.0)
        features = timestep_features(timestep, config.time_features)
        with torch.no_grad():
            expected = library_output(whole, config, latent, timestep, text)
            for way in WAYS:
                written = rewrite_library_student(reference, size, batch=rows, **way)
                assert cases.relative(written(latent, features, *cases.as_inputs(config, text)), expected) < 3e-6, way


def test_latents_that_do_not_fit_are_refused() -> None:
    _, reference = cases.pair(cases.config_of("pixart"))
    with pytest.raises(BadInput, match="latent 7x8: both sides must be positive multiples of 2"):
        rewrite_library_student(reference, (7, 8), layout="token")
    with pytest.raises(BadInput, match="batch 0"):
        rewrite_library_student(reference, (8, 8), layout="token", batch=0)
