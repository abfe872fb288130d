"""The decoder in half precision, with maps before its norms whose squares that cannot hold."""

from __future__ import annotations

import copy

import pytest
import torch

from snapgen_deploy.models import TinyDecoder
from snapgen_deploy.sparse import norm_scales, rewrite_decoder
from snapgen_deploy.sparse.decoder import ImageGroupNorm

LAYOUTS = ("token", "channels")


def enlarged(decoder: TinyDecoder, times: float) -> tuple[TinyDecoder, torch.nn.GroupNorm]:
    """The decoder with one group of one norm's input that many times as large, and that norm."""
    block = decoder.levels[0].blocks[0]
    members = block.norm.num_channels // block.norm.num_groups
    for tensor in (block.depthwise2.weight, block.depthwise2.bias):
        tensor[members : 2 * members] *= times
    return decoder, block.norm


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("times", [100.0, 3000.0, 1e4])
def test_large_maps_neither_overflow_nor_lose_digits(kit, layout, times):
    decoder, norm = enlarged(kit.decoder(4), times)
    scales, size = norm_scales(decoder), (5, 7)
    assert list(scales) == [norm]
    members = norm.num_channels // norm.num_groups
    assert sorted(scales[norm].tolist())[members:] == [1.0] * (norm.num_channels - members)  # the other groups
    assert (scales[norm] < 1).sum() == members
    latent = torch.randn(2, 3, *size)
    wanted = decoder(latent)
    for used, sound in ((scales, True), ({}, False)):
        got = copy.deepcopy(rewrite_decoder(decoder, size, layout=layout, scales=used))
        assert kit.relative(got(latent), wanted) < 1e-5
        assert (kit.relative(got.half()(latent.half()).float(), wanted) < 1e-2) == sound


def test_ordinary_decoders_are_left_as_they_are(kit):
    decoder = kit.decoder(5)
    assert norm_scales(decoder) == {}
    rewritten = rewrite_decoder(decoder, (4, 4), layout="channels", scales={})
    shared = {p.data_ptr() for p in decoder.parameters()}
    assert all(p.data_ptr() in shared for p in rewritten.parameters())


def test_the_checkpoints_own_weights_stay_where_a_norm_is_scaled(kit):
    decoder, _ = enlarged(kit.decoder(6), 3000.0)
    before = {name: t.clone() for name, t in decoder.state_dict().items()}
    scales = norm_scales(decoder)
    assert scales != {}
    rewrite_decoder(decoder, (4, 4), layout="channels", scales=scales)
    assert all(torch.equal(before[name], t) for name, t in decoder.state_dict().items())


def test_maps_that_are_not_finite_are_not_scaled(kit):
    decoder, _ = enlarged(kit.decoder(7), float("inf"))
    assert norm_scales(decoder) == {}


@pytest.mark.parametrize("scale", [None, torch.full((12,), 2.0**-9)])
def test_eps_is_a_normal_number_of_half_precision(scale):
    norm = ImageGroupNorm(torch.nn.GroupNorm(4, 12), scale)
    assert float(norm.eps16.min()) >= torch.finfo(torch.float16).tiny
    constant = torch.full((1, 12, 4, 4), 3.0)
    assert torch.equal(norm.half()(constant.half()), torch.zeros(1, 12, 4, 4, dtype=torch.float16))
