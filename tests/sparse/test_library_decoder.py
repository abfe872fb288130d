"""Decoders of diffusers: the reference against the library's own decode, and the other forms against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.library_decoder import library_decode
from snapgen_deploy.sparse import image_layers, rewrite_library_decoder
from snapgen_deploy.sparse.image_layers import Duplicating, ImageAttention, ImageForms, NearestConv, ShuffledConv
from snapgen_deploy.sparse.image_parts import image_conv, scaled_conv
from snapgen_deploy.sparse.library_range import input_scales
from tests import library_decoders as cases

SIZE = (5, 3)  # of the latents
FORMS = {"token": {}, "channels": {}, "native": {"upsample": "native", "ops": "native"}}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", cases.CASES)
def test_every_class_is_the_librarys_decode_in_every_form(name: str) -> None:
    config = cases.config_of(name)
    whole, reference = cases.pair(config)
    latent = torch.cat([cases.latents(config, SIZE, seed) for seed in (1, 2)])  # two pictures in a call
    expected = library_decode(whole, config, latent)
    assert tuple(expected.shape[2:]) == tuple(side * reference.facts.factor for side in SIZE)
    assert cases.relative(reference(latent), expected) < 2e-6
    for form, more in FORMS.items():
        layout = "channels" if form == "channels" else "token"
        got = rewrite_library_decoder(reference, SIZE, layout=layout, **more)(latent)
        assert cases.relative(got, expected) < 1e-5, form


def test_attention_takes_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 x 7 positions, 8 queries at once and a rest of 3."""
    q, k, v, out = (cases.filled(nn.Conv2d(6, 6, 1), seed) for seed in range(4))
    x = torch.randn(1, 6, 5, 7)
    flat = [p(x).flatten(2).transpose(1, 2) for p in (q, k, v)]
    expected = out(torch.nn.functional.scaled_dot_product_attention(*flat, scale=1.0).transpose(1, 2).reshape(x.shape))
    monkeypatch.setattr(image_layers, "MOST_SCORES", 8 * 35)
    for columns in (False, True):
        forms = ImageForms("native", mean_by_convolution=False, columns=columns)
        assert cases.relative(ImageAttention(q, k, v, out, forms)(x), expected) < 1e-6


@pytest.mark.parametrize("kind", [NearestConv, ShuffledConv])
def test_enlarging_is_the_same_as_one_transposed_convolution(kind: type[nn.Module]) -> None:
    conv, x = cases.filled(nn.Conv2d(3, 8, 3, padding=1)), torch.randn(2, 3, 4, 5)
    plain, transposed = kind(conv, "native"), kind(conv, "transposed")
    assert cases.relative(transposed(x), plain(x)) < 1e-6
    assert not any(isinstance(m, nn.Conv2d) for m in transposed.modules())


def test_duplicating_takes_every_pixel_from_its_channel() -> None:
    sources = torch.tensor([[[0, 1], [2, 2]], [[1, 1], [0, 2]]])
    x = torch.randn(1, 3, 2, 3)
    expected = torch.nn.functional.pixel_shuffle(x[:, sources.flatten()], 2)
    for form in ("native", "transposed"):
        assert torch.equal(Duplicating(sources, 3, form)(x), expected)


def test_a_convolution_over_time_sees_one_frame_through_its_last_tap() -> None:
    config = cases.config_of("wan")
    _, reference = cases.pair(config)
    conv = reference.decoder.conv_in
    x = torch.randn(1, 4, 5, 3)
    assert cases.relative(image_conv(conv)(x), conv(x.unsqueeze(2))[:, :, 0]) < 1e-6


def test_an_unknown_module_is_refused_by_name() -> None:
    config = cases.config_of("tiny", act_fn="mish")
    _, reference = cases.pair(config)
    with pytest.raises(BadInput, match="decoder: a Mish of diffusers as an activation is not rewritten"):
        rewrite_library_decoder(reference, SIZE, layout="token")


@pytest.mark.parametrize("name", ["kl", "qwen", "dc"])
@pytest.mark.parametrize("times", [1e-3, 100.0])
def test_norms_of_large_and_small_maps_fit_half_precision(name: str, times: float) -> None:
    """The maps before the norms are that many times as large; the picture is not."""
    config = cases.config_of(name)
    whole, reference = cases.pair(config)
    latent = cases.latents(config, SIZE)
    for network in (whole.decoder, reference.decoder):
        if name == "dc":
            network.up_blocks[0][-1].conv2 = scaled_conv(network.up_blocks[0][-1].conv2, times)
        else:
            block = network.mid_block.resnets[0]
            block.conv1.weight.mul_(times)
            block.conv1.bias.mul_(times)
    assert input_scales(reference)
    expected = library_decode(whole, config, latent)
    for layout in ("token", "channels"):
        rewritten = rewrite_library_decoder(reference, SIZE, layout=layout)
        assert cases.relative(rewritten(latent), expected) < 2e-5
        with torch.no_grad():
            assert cases.relative(_halved(rewritten)(latent.half()).float(), expected) < 1e-2


def _halved(network: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(network).half()
