"""Every kernel form against the reference's local attention, over random admissible shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.attention import attend, blockwise_neighborhood_attention
from snapgen_deploy.sparse import FORMS
from snapgen_deploy.sparse.channels_forms import CHANNELS_FORMS
from snapgen_deploy.sparse.geometry import Heads, windows

SHAPES = {
    "blocks": st.integers(1, 9),
    "size": st.integers(1, 5),
    "radius": st.integers(0, 10),
    "kv_heads": st.integers(1, 3),
    "group": st.integers(1, 4),
    "batch": st.integers(1, 3),
    "dim": st.sampled_from([1, 3, 8]),
    "seed": st.integers(0, 2**31),
}


def random_qkv(batch: int, heads: int, kv_heads: int, tokens: int, dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, tokens, dim, generator=generator)
    k, v = (torch.randn(batch, kv_heads, tokens, dim, generator=generator) for _ in range(2))
    return q, k, v


def token_form(form: str, q: Tensor, k: Tensor, v: Tensor, blocks: int, radius: int) -> Tensor:
    scaled = (q * q.shape[3] ** -0.5).flatten(0, 1)
    return FORMS[form](scaled, k.flatten(0, 1), v.flatten(0, 1), blocks, radius).view(q.shape)


def channels_form(form: str, q: Tensor, k: Tensor, v: Tensor, blocks: int, radius: int) -> Tensor:
    def channels(x: Tensor) -> Tensor:
        return x.transpose(2, 3).reshape(x.shape[0], -1, 1, x.shape[2])

    heads = Heads(q.shape[1], k.shape[1], q.shape[3])
    out = CHANNELS_FORMS[form].near(channels(q * q.shape[3] ** -0.5), channels(k), channels(v), heads, blocks, radius)
    return out.view(q.shape[0], q.shape[1], q.shape[3], -1).transpose(2, 3)


@pytest.mark.parametrize("run", [token_form, channels_form])
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_form_equals_reference(run, form, blocks, size, radius, kv_heads, group, batch, dim, seed):
    q, k, v = random_qkv(batch, kv_heads * group, kv_heads, blocks * size, dim, seed)
    got, expected = run(form, q, k, v, blocks, radius), blockwise_neighborhood_attention(q, k, v, blocks, radius)
    assert float((got - expected).norm() / expected.norm()) <= 1e-5
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("run", [token_form, channels_form])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("radius", [4, 5, 50])
def test_large_radius_is_full_attention(run, form, radius):
    q, k, v = random_qkv(2, 4, 2, 20, 8, 0)
    torch.testing.assert_close(run(form, q, k, v, 5, radius), attend(q, k, v), rtol=1e-5, atol=1e-6)


def test_every_block_count_radius_and_head_ratio_of_one_map():
    for blocks in (1, 2, 3, 4, 6, 8, 12, 24):
        for radius in range(blocks + 1):
            for group in (1, 2, 3, 6):
                q, k, v = random_qkv(1, 6, 6 // group, 24, 4, blocks * 100 + radius)
                expected = blockwise_neighborhood_attention(q, k, v, blocks, radius)
                for form in FORMS:
                    for run in (token_form, channels_form):
                        got = run(form, q, k, v, blocks, radius)
                        assert float((got - expected).norm() / expected.norm()) <= 1e-5, (form, blocks, radius, group)


@given(blocks=st.integers(1, 40), size=st.integers(1, 7), radius=st.integers(0, 45))
def test_windows_cover_every_token_once_and_nothing_beyond(blocks, size, radius):
    found = windows(blocks * size, blocks, radius)
    assert [t for w in found for t in range(w.start, w.start + w.length)] == list(range(blocks * size))
    for w in found:
        for b in range(w.start // size, (w.start + w.length) // size):
            first, last = max(b - radius, 0) * size, min(b + radius + 1, blocks) * size
            assert (w.key_start, w.key_start + w.key_length) == (first, last)


@pytest.mark.parametrize("run", [token_form, channels_form])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("blocks", "radius", "message"), [(5, 1, "12 tokens in 5"), (0, 1, "in 0 blocks"), (4, -1, "radius -1")]
)
def test_inadmissible_blocks_are_refused(run, form, blocks, radius, message):
    q, k, v = random_qkv(1, 2, 2, 12, 4, 0)
    with pytest.raises(BadInput, match=message):
        run(form, q, k, v, blocks, radius)


@pytest.mark.parametrize("form", FORMS)
def test_heads_that_do_not_belong_together_are_refused(form):
    q, k = torch.zeros(3, 8, 4), torch.zeros(2, 8, 4)
    with pytest.raises(BadInput, match="multiple of the key/value heads"):
        FORMS[form](q, k, k, 2, 1)
    with pytest.raises(BadInput, match="expected q"):
        FORMS[form](q, k, k[:, :4], 2, 1)
