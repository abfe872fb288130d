import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snapgen_deploy.models.attention import (
    AdaptiveSparseSelfAttention,
    attend,
    blockwise_neighborhood_attention,
    rope_table,
    rotate,
)


def masked_oracle(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: int, radius: int) -> torch.Tensor:
    """BNA written the other way round: full attention with a mask over block distances, by torch's own kernel."""
    size = q.shape[2] // blocks
    block = torch.arange(q.shape[2]) // size
    mask = (block[:, None] - block[None, :]).abs() <= radius
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@settings(deadline=None, max_examples=40)
@given(
    blocks=st.integers(1, 9),
    size=st.integers(1, 7),
    radius=st.integers(0, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_bna_is_masked_attention(blocks, size, radius, kv_heads, group, batch, seed):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, kv_heads * group, blocks * size, 4, generator=g)
    k, v = torch.randn(2, batch, kv_heads, blocks * size, 4, generator=g)
    got = blockwise_neighborhood_attention(q, k, v, blocks, radius)
    torch.testing.assert_close(got, masked_oracle(q, k, v, blocks, radius), rtol=1e-5, atol=1e-5)


def test_bna_never_drops_a_tail():
    q = torch.randn(1, 1, 10, 4)
    with pytest.raises(ValueError, match="10 tokens do not divide into 4 blocks"):
        blockwise_neighborhood_attention(q, q, q, 4, 1)


def test_full_attention_agrees_with_torch():
    q, k, v = torch.randn(2, 6, 11, 8), torch.randn(2, 3, 13, 8), torch.randn(2, 3, 13, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v), expected, rtol=1e-5, atol=1e-5)


def test_rope_depends_on_relative_position_only():
    """Scores of rotated vectors depend on the row and column distance, so shifting both tokens changes nothing."""
    cos, sin = rope_table(6, 5, 16, 10000.0)
    q, k = torch.randn(16), torch.randn(16)
    full_q = rotate(q.expand(1, 1, 30, 16), cos, sin)[0, 0].view(6, 5, 16)
    full_k = rotate(k.expand(1, 1, 30, 16), cos, sin)[0, 0].view(6, 5, 16)
    torch.testing.assert_close(full_q[1, 2] @ full_k[3, 1], full_q[3, 4] @ full_k[5, 3], rtol=1e-4, atol=1e-4)
    assert (full_q[1, 2] @ full_k[3, 1] - full_q[1, 2] @ full_k[1, 2]).abs() > 1e-4


@pytest.mark.parametrize(("gate", "branch"), [(30.0, "global"), (-30.0, "local")])
def test_gate_mixes_per_head(gate, branch):
    """A saturated gate leaves one branch: g weighs the global side."""
    torch.manual_seed(0)
    module = AdaptiveSparseSelfAttention(32, 4, 2, 8, blocks=4, radius=1)
    torch.nn.init.zeros_(module.gate.weight)
    torch.nn.init.constant_(module.gate.bias, gate)
    grid = (4, 6)
    rope = rope_table(*grid, 8, 10000.0)
    x = torch.randn(2, 24, 32)
    q, k, v = module.project(x, rope)
    if branch == "global":
        small_k, small_v = (module.compress(c, t, grid) for c, t in ((module.k_compress, k), (module.v_compress, v)))
        assert small_k.shape == (2, 2, 6, 8)
        expected = module.merge(attend(q, small_k, small_v))
    else:
        expected = module.merge(masked_oracle(q, k, v, 4, 1))
    torch.testing.assert_close(module(x, rope, grid), expected, rtol=1e-5, atol=1e-5)
