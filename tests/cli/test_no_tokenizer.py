"""A checkpoint whose text encoder comes without a tokenizer: nothing reads prompts, everything else works."""

import numpy as np
import pytest
import torch

from snapgen_deploy.checkpoint import checkpoint_state, open_checkpoint, save_checkpoint
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.reference import make_vectors
from snapgen_deploy.errors import BadInput
from snapgen_deploy.job.pictures import prompts_of
from snapgen_deploy.models import ElasticDiT, TextEncoder, TinyDecoder
from snapgen_deploy.plan.make import make_plan
from tests.cli.conftest import invoke, tiny_config


@pytest.fixture
def mute(tmp_path):
    config = tiny_config()
    torch.manual_seed(0)
    parts = ElasticDiT(config.student), TinyDecoder(config.decoder), TextEncoder(config.text_encoder)
    save_checkpoint(checkpoint_state(*parts), config, tmp_path / "mute.safetensors", license="MIT")
    return open_checkpoint(tmp_path / "mute.safetensors")


def test_test_vectors_come_from_random_tokens(mute):
    plan = make_plan(mute.config, load_profile("server"), width="tiny")
    found = make_vectors(mute, plan, ("no prompt: seeded random text",) * 2)
    assert found.arrays["tokens"].shape == (2, mute.config.text_encoder.length)
    assert found.arrays["tokens"].dtype == np.int32
    assert 0 <= found.arrays["tokens"].min() <= found.arrays["tokens"].max() < mute.config.text_encoder.vocab
    assert not np.array_equal(*found.arrays["tokens"])
    assert found.arrays["picture"].shape == (2, 3, 64, 64)
    again = make_vectors(mute, plan, ("no prompt: seeded random text",))
    assert np.array_equal(again.arrays["tokens"][0], found.arrays["tokens"][0])


def test_prompts_that_nothing_reads_are_refused(mute, tmp_path):
    assert [s.prompt for s in prompts_of(mute, None)] == ["no prompt: seeded random text"]
    with pytest.raises(BadInput, match="no text encoder with a tokenizer"):
        prompts_of(mute, tmp_path / "prompts.txt")


def test_it_is_said_that_prompts_cannot_be_read(mute):
    for command in (("inspect", mute.path), ("export", "--device", "server", "--checkpoint", mute.path, "--dry-run")):
        done = invoke(*command)
        assert done.exit_code == 0, done.output
        assert "no tokenizer: prompts cannot be read" in " ".join(done.output.split())


def test_a_reference_that_is_not_finite_is_told_before_any_conversion(mute, tmp_path):
    state = {name: mute.read(name) for name in mute.tensors}
    state["student.unpatch.weight"].fill_(1e38)
    save_checkpoint(state, mute.config, tmp_path / "huge.safetensors")
    huge = open_checkpoint(tmp_path / "huge.safetensors")
    with pytest.raises(BadInput, match="the reference itself gives values of .* that are not finite"):
        make_vectors(huge, make_plan(huge.config, load_profile("server"), width="tiny"), ("no prompt: seeded random text",))
