"""The U-Net's rewrite against the reference, and what its graphs consist of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models import TextStream
from snapgen_deploy.models.unet import UNet
from snapgen_deploy.models.unet_config import UNetConfig
from snapgen_deploy.sparse import rewrite_unet
from snapgen_deploy.sparse.token_layers import OP_FORMS
from tests.sparse.conftest import filled
from tests.sparse.test_graph import DECODER_OPS, TOKEN_OPS, assert_rank_at_most_4, core_graph, ops_of

LAYOUTS = ("token", "channels")
SMALL = UNetConfig(
    latent_channels=3, channels=(8, 16), blocks=(0, 1), residuals=1, groups=4, head_dim=8, time_features=16, time_width=12,
    text_streams=(TextStream("text", 12, 5),), text_width=24,
)  # fmt: skip
LATENT = (6, 10)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_rewrite_is_the_reference(kit, layout, data):
    draw = data.draw
    dim, levels = draw(st.sampled_from([8, 12])), draw(st.integers(1, 3))
    config = UNetConfig(
        latent_channels=3,
        channels=tuple(dim * draw(st.integers(1, 3)) for _ in range(levels)),
        blocks=tuple(draw(st.integers(0, 2)) for _ in range(levels)),
        residuals=draw(st.integers(1, 2)),
        expansion=draw(st.integers(1, 2)),
        groups=draw(st.sampled_from([1, 2, 4])),
        head_dim=dim,
        ffn_gated=draw(st.booleans()),
        text_streams=(TextStream("text", 6, 5), TextStream("llm", 10, 3))[: draw(st.integers(1, 2))],
        text_width=12,
        time_features=8,
        time_width=10,
    )
    assert config.problems() == []
    step = config.step
    latent = (step * draw(st.integers(1, 5)), step * draw(st.integers(1, 5)))
    if latent[0] * latent[1] == step * step:  # GroupNorm of a single cell amplifies rounding without bound
        latent = (latent[0], 2 * step)
    seed, batch, ops = draw(st.integers(0, 2**31)), draw(st.integers(1, 3)), draw(st.sampled_from(OP_FORMS))
    net = filled(UNet(config), seed)
    inputs = kit.inputs(config, latent, batch, seed)
    got = rewrite_unet(net, latent, layout=layout, batch=batch, ops=ops)(*inputs)
    assert kit.relative(got, kit.velocity(net, inputs)) <= 2e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_weight_is_changed(layout):
    net = filled(UNet(SMALL), 0)
    own = {p.data_ptr() for p in net.parameters() if p.dim() > 1}
    assert own <= {p.data_ptr() for p in rewrite_unet(net, LATENT, layout=layout).parameters()}


def test_nothing_of_the_token_layout_stays_outside_a_delegate(kit):
    net = filled(UNet(SMALL), 0)
    program = core_graph(rewrite_unet(net, LATENT, layout="token"), kit.inputs(SMALL, LATENT))
    assert_rank_at_most_4(program)
    assert set(ops_of(program)) <= TOKEN_OPS | DECODER_OPS


def test_the_channels_layout_moves_no_data_but_for_attention(kit):
    net = filled(UNet(SMALL), 0)
    module = rewrite_unet(net, LATENT, layout="channels")
    program = torch.export.export(module, kit.inputs(SMALL, LATENT), strict=False).run_decompositions({})
    assert_rank_at_most_4(program)
    counts, blocks = ops_of(program), 4
    # Of attention: q, k and v to heads, the result to a map, the keys transposed; of text, its mask and features: one each.
    assert counts["view"] + counts["reshape"] + counts["_unsafe_view"] == 2 * 4 * blocks + 3
    assert counts["transpose"] + counts["permute"] == 2 * blocks + 1
    assert not {"index", "gather", "where", "masked_fill", "select", "expand", "repeat", "pow", "linear", "clone"} & set(counts)


def test_a_rewrite_for_a_latent_that_does_not_fit_is_refused():
    net = filled(UNet(SMALL), 0)
    with pytest.raises(BadInput, match="latent 5x4: both sides must be positive multiples of 2"):
        rewrite_unet(net, (5, 4), layout="token")
    with pytest.raises(BadInput, match="got layout 'maps'"):
        rewrite_unet(net, (4, 4), layout="maps")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="got batch 0"):
        rewrite_unet(net, (4, 4), layout="token", batch=0)
