"""Whole rewritten components against the reference networks, in fp32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models import TextStream
from snapgen_deploy.sparse import FORMS, rewrite_decoder, rewrite_student, rewrite_text_encoder
from snapgen_deploy.sparse.channels_layers import ChannelsNorm
from snapgen_deploy.sparse.token_layers import GELUS, OP_FORMS, TokenNorm

LAYOUTS = ("token", "channels")
BOUND = 1e-5
SMALLEST = 2.0**-14  # normal number of half precision


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_student_equals_reference(kit, layout, data):
    draw = data.draw
    patch = draw(st.sampled_from([1, 2]))
    grid = (2 * draw(st.integers(1, 4)), 2 * draw(st.integers(1, 4)))
    tokens, dim, group = grid[0] * grid[1], draw(st.sampled_from([4, 8])), draw(st.sampled_from([1, 2, 3]))
    streams = (TextStream("text", 6, 5), TextStream("llm", 10, 3))[: draw(st.integers(1, 2))]
    seed, batch = draw(st.integers(0, 2**31)), draw(st.integers(1, 3))
    dit = kit.student(
        seed,
        draw(st.sampled_from(["small", "full"])),
        patch=patch,
        hidden=4 * dim * group,
        head_dim=dim,
        kv_group=group,
        cross_dim=2 * dim,
        depths=(1, draw(st.integers(1, 3)), 1),
        blocks=draw(st.sampled_from([b for b in range(1, tokens + 1) if tokens % b == 0])),
        radius=draw(st.integers(0, 3)),
        text_streams=streams,
        absolute_positions=draw(st.booleans()),
        attention=draw(st.sampled_from([("assa", "full", "assa"), ("full", "assa", "assa")])),
    )
    latent = (grid[0] * patch, grid[1] * patch)
    form, ops = draw(st.sampled_from(sorted(FORMS))), draw(st.sampled_from(OP_FORMS))
    if dit.config.attention[1] == "assa" and (grid[0] % 4 or grid[1] % 4 or tokens // 4 % dit.config.blocks):
        with pytest.raises(BadInput, match="tokens of stage middle do not divide"):
            rewrite_student(dit, latent, layout=layout, form=form, batch=batch, ops=ops)
        return
    inputs = kit.inputs(dit.config, latent, batch, seed)
    keep = draw(st.booleans())
    got = rewrite_student(dit, latent, layout=layout, form=form, batch=batch, ops=ops, keep_weights=keep)(*inputs)
    assert kit.relative(got, kit.velocity(dit, inputs)) <= BOUND


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_width_above_one_without_absolute_positions(kit, layout):
    dit = kit.student(3, "wide", absolute_positions=False, widths={"full": 1.0, "wide": 1.5})
    inputs = kit.inputs(dit.config, (8, 8), 1, 0)
    got = rewrite_student(dit, (8, 8), layout=layout, form="loop", batch=1, ops="native" if layout == "token" else "spelled")
    assert kit.relative(got(*inputs), kit.velocity(dit, inputs)) <= BOUND


def test_weights_are_kept_where_they_are_palettes(kit):
    dit = kit.student(0)
    own = {p.data_ptr() for n, p in dit.named_parameters() if p.dim() > 1 and not n.endswith("table")}
    kept = rewrite_student(dit, (8, 8), layout="channels", form="batched", keep_weights=True)
    folded = rewrite_student(dit, (8, 8), layout="channels", form="batched")
    assert own <= {p.data_ptr() for p in kept.parameters()}
    assert not own <= {p.data_ptr() for p in folded.parameters()}
    tokens = rewrite_student(dit, (8, 8), layout="token", form="batched", keep_weights=True)
    moved = [n for n, p in dit.named_parameters() if p.data_ptr() in own - {p.data_ptr() for p in tokens.parameters()}]
    assert all("compress" in n or n.startswith(("unpatch.", "downsample.", "upsample.")) for n in moved), moved


@pytest.mark.parametrize("largest", [1e-2, 1.0, 300.0, 3000.0])
def test_a_norm_for_half_precision_neither_overflows_nor_vanishes(kit, largest):
    x = torch.randn(1, 50, 256)
    x[..., 7] *= 20  # as in trained networks, one channel is far from the others
    x = x * (largest / x.abs().max())
    half = TokenNorm(1, 256, 1e-6, "half").half()(x.half())
    assert kit.relative(half.float(), F.layer_norm(x, (256,), eps=1e-6)) < 2e-3
    assert TokenNorm(1, 256, 1e-6, "half")(torch.zeros(1, 2, 256)).abs().max() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("upsample", [None, "native", "transposed"])
@pytest.mark.parametrize(("size", "batch"), [((4, 4), 1), ((3, 5), 2), ((1, 7), 3)])
def test_decoder_equals_reference(kit, layout, upsample, size, batch):
    decoder = kit.decoder(3, channels=(16, 8, 8), blocks=(1, 0, 1))
    latent = torch.randn(batch, 3, *size)
    got = rewrite_decoder(decoder, size, layout=layout, upsample=upsample)(latent)
    assert kit.relative(got, decoder(latent)) <= BOUND


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ops", OP_FORMS)
@pytest.mark.parametrize("batch", [1, 3])
def test_text_encoder_equals_reference(kit, layout, ops, batch):
    encoder = kit.encoder(5)
    tokens, mask = torch.randint(0, 32, (batch, 7), dtype=torch.int32), torch.ones(batch, 7)
    mask[0, 4:] = 0
    got = rewrite_text_encoder(encoder, layout=layout, batch=batch, ops=ops)(tokens, mask)
    assert kit.relative(got, encoder(tokens, mask)) <= BOUND


def test_masked_text_does_not_reach_the_picture(kit):
    dit = kit.student(1)
    latent, features, text, mask = kit.inputs(kit.SMALL, (8, 8))
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    other = text.clone()
    other[:, 2:] += 5.0
    for layout in LAYOUTS:
        student = rewrite_student(dit, (8, 8), layout=layout, form="loop")
        assert torch.equal(student(latent, features, text, mask), student(latent, features, other, mask))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_shared_not_copied(kit, layout):
    dit = kit.student(1)
    student = rewrite_student(dit, (8, 8), layout=layout, form="loop")
    there = {p.data_ptr() for p in student.parameters()}
    for name in ("down.0.ffn.up", "down.0.attention.v", "middle.1.attention.out", "up.0.cross.k", "time.six", "skips.0.x"):
        assert dit.get_parameter(f"{name}.weight").data_ptr() in there, name


def test_the_norm_of_the_channels_layout_survives_half_precision():
    x = torch.randn(1, 256, 1, 9, dtype=torch.float64)
    x[:, 0].uniform_(-6e4, 6e4)  # squares of these overflow half precision
    x[..., 7] = 12.5  # constant: variance zero
    x = x.half().double()
    got = ChannelsNorm(1, 1e-6)(x.half())
    expected = F.layer_norm(x.transpose(1, 3), (256,), eps=1e-6).transpose(1, 3)
    assert torch.isfinite(got).all()
    assert float((got.double() - expected).abs().max()) <= 1e-2 * float(expected.abs().max())
    plain = x.half() - x.half().mean(1, keepdim=True)
    assert not torch.isfinite((plain * plain).mean(1)).all()


class Flushing(TorchFunctionMode):
    """Every number below the normal ones of half precision is zero, as hardware without them has it; constants, too."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = [0.0 if isinstance(a, float) and abs(a) < SMALLEST else a for a in args]
        found = function(*given, **(kwargs or {}))
        return torch.where(found.abs() < SMALLEST, 0.0, found) if isinstance(found, torch.Tensor) else found


def test_the_norm_of_the_channels_layout_survives_hardware_without_subnormal_numbers():
    x = torch.randn(1, 64, 1, 5).half()
    x[..., 2] = 3.0  # constant: 0 / sqrt(0) where eps is lost
    with Flushing():
        got = ChannelsNorm(1, 1e-6)(x)
    assert torch.isfinite(got).all()
    assert torch.allclose(got.float(), F.layer_norm(x.float().transpose(1, 3), (64,), eps=1e-6).transpose(1, 3), atol=1e-2)


@pytest.mark.parametrize("ops", GELUS)
def test_gelu_is_the_tanh_approximation(ops):
    x = torch.linspace(-8, 8, 999)
    expected = F.gelu(x.double(), approximate="tanh")
    assert float((GELUS[ops](x).double() - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": (8, 10)}, "8x10"),
        ({"latent": (0, 8)}, "0x8"),
        ({"latent": (4, 12)}, "do not divide into 4 blocks|multiples of 4"),
        ({"layout": "nhwc"}, "layout 'nhwc', expected one of token, channels"),
        ({"form": "flash"}, "form 'flash', expected one of loop, batched, per_head"),
        ({"batch": 0}, "batch 0"),
        ({"ops": "fast"}, "ops 'fast'"),
    ],
)
def test_inadmissible_students_are_refused(kit, changes, message):
    arguments = {"latent": (8, 8), "layout": "token", "form": "loop", "batch": 1, "ops": "spelled"} | changes
    dit = kit.student(1, blocks=8) if changes.get("latent") == (4, 12) else kit.student(1)
    with pytest.raises(BadInput, match=message if "4 blocks" not in message else "do not divide into 8 blocks"):
        rewrite_student(dit, arguments.pop("latent"), **arguments)


def test_inadmissible_decoders_and_encoders_are_refused(kit):
    with pytest.raises(BadInput, match="layout 'rows'"):
        rewrite_decoder(kit.decoder(), (4, 4), layout="rows")
    with pytest.raises(BadInput, match="upsample 'cubic'"):
        rewrite_decoder(kit.decoder(), (4, 4), layout="token", upsample="cubic")
    with pytest.raises(BadInput, match="0x4"):
        rewrite_decoder(kit.decoder(), (0, 4), layout="token")
    with pytest.raises(BadInput, match="batch 0"):
        rewrite_text_encoder(kit.encoder(), layout="token", batch=0)
    with pytest.raises(BadInput, match="layout 'rows'"):
        rewrite_text_encoder(kit.encoder(), layout="rows")
