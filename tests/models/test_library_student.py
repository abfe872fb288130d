"""Students of diffusers: the reference computes what the library's own network does, from features in place of timesteps."""

from __future__ import annotations

import pytest
import torch

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.diffusers_classes import CLASS
from snapgen_deploy.models.library_student import build_student, library_output
from snapgen_deploy.models.schedule import timestep_features
from snapgen_deploy.models.students import STUDENTS, student_facts
from tests import library_students as cases


@pytest.mark.parametrize("name", cases.CASES)
def test_the_reference_is_the_librarys_network(name: str) -> None:
    config = cases.config_of(name)
    assert config.problems() == []
    whole, reference = cases.pair(config)
    text = cases.texts(config, 2)
    timestep, latent = torch.tensor([0.7, 481.0]), torch.randn(2, config.latent_channels, 8, 8)
    with torch.no_grad():
        expected = library_output(whole, config, latent, timestep, text)
        got = reference(latent, timestep_features(timestep, config.time_features), text.text, text.mask, text.pooled)
    assert cases.relative(got, expected) < 1e-6


def test_every_class_has_a_case() -> None:
    assert {case[CLASS] for case in cases.CASES.values()} == set(STUDENTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({CLASS: "SanaTransformer"}, "_class_name: got 'SanaTransformer', expected one of"),
        ({CLASS: None}, "_class_name: got nothing"),
        ({"num_layers": "2"}, "config.json of SanaTransformer2DModel: num_layers: got '2'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine: got true, expected it to be off"),
    ],
)
def test_what_is_not_converted_is_refused_in_one_line(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput) as error:
        student_facts({**cases.CASES["sana"], **changes})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_library_may_refuse_a_configuration() -> None:
    config = cases.config_of("pixart", num_attention_heads=1, cross_attention_dim=12, use_additional_conditions=False)
    broken = cases.config_of("pixart", dropout="much", use_additional_conditions=False)
    assert build_student(config) is not None
    with pytest.raises(BadInput, match="PixArtTransformer2DModel of diffusers takes no such configuration"):
        build_student(broken)


def test_problems_name_streams_and_guidance() -> None:
    config = cases.config_of("sana")
    assert "expected 1" in cases.LibraryStudent(
        "diffusers", config.config, config.scheduler, 8, (*config.text_streams, cases.TextStream("more", 20, 4))
    ).problems()[0]  # fmt: skip
    wrong = cases.LibraryStudent("diffusers", config.config, config.scheduler, 8, (cases.TextStream("text", 7, 4),), 4.5)
    assert len(wrong.problems()) == 2


def test_scores_of_self_attention_are_those_of_levels_that_have_it() -> None:
    said = dict(cases.CASES["dreamlite"])
    assert student_facts(said).scores(1024, 6) == 1024 * 6  # its self-attention is at the third level alone
    del said["down_block_types"]
    assert student_facts(said).scores(1024, 6) == 1024 * 1024
