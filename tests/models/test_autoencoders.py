"""What a config.json of diffusers says of a decoder, without the library."""

from __future__ import annotations

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.library_decoder import library_decoder
from snapgen_deploy.models.autoencoders import facts_of, latent_statistics, library_decoder_problems
from snapgen_deploy.models.config import LibraryDecoder
from snapgen_deploy.models.diffusers_classes import CLASS
from snapgen_deploy.models.presets import shapes
from tests.library_decoders import CASES, config_of

FACTORS = {"tiny": 8, "kl": 2, "kl-post": 2, "dc": 4, "dc-interpolate": 4, "qwen": 2, "wan": 4, "wan-residual": 8}


@pytest.mark.parametrize("name", CASES)
def test_channels_factor_and_normalisation(name: str) -> None:
    config = config_of(name)
    facts = facts_of(config)
    assert (facts.latent, facts.factor) == (4, FACTORS[name])
    assert all(len(values) == 4 for values in latent_statistics(config))
    assert library_decoder(config).activations("full", (4, 8, 8), (64, 64)) > 0


def test_scale_and_shift_are_undone() -> None:
    mean, std = latent_statistics(config_of("kl"))
    assert (mean[0], std[0]) == (0.1159, 1 / 0.3611)
    mean, std = latent_statistics(config_of("kl-post"))  # per channel, and a scale for all
    assert (mean, std) == ((0.1, -0.2, 0.3, 0.4), (2.0, 4.0, 1.0, 6.0))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("kl", {CLASS: "AutoencoderKLL"}, "_class_name: got 'AutoencoderKLL', .*did you mean AutoencoderKL?"),
        ("kl", {CLASS: ["x"]}, "_class_name: got"),
        ("kl", {"scaling_factor": None}, "config.json of AutoencoderKL: scaling_factor: got nothing, expected .*save it anew"),
        ("kl", {"scaling_factor": 0.0}, "scaling_factor: got 0.0"),
        ("kl", {"block_out_channels": [8] * 99}, "block_out_channels: got"),
        ("qwen", {"latents_mean": [0.0, 1.0]}, "2 values of the latent's mean, expected 4"),
        ("qwen", {"latents_std": [1.0, 1.0, 0.0, 1.0]}, r"latents_std\[2\]: got 0.0"),
        ("tiny", {"num_decoder_blocks": [10**9]}, r"num_decoder_blocks\[0\]: got 1000000000"),
    ],
)
def test_what_is_refused(name: str, change: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        facts_of(config_of(name, **change))


def test_a_forgotten_scale_is_refused() -> None:
    values = {k: v for k, v in config_of("dc").config.items() if k != "scaling_factor"}
    with pytest.raises(BadInput, match="scaling_factor: got nothing"):
        facts_of(LibraryDecoder("diffusers", values))


def test_it_must_fit_the_student() -> None:
    student = shapes().student
    assert library_decoder_problems(config_of("tiny"), student) == []
    assert library_decoder_problems(config_of("kl", latent_channels=16), student) == [
        "decoder: takes latents of 16 channels, the student's have 4",
        "decoder: enlarges 2x, the student's latent_factor is 8",
    ]
