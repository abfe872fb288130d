"""The cost model against closed formulas: N tokens, hidden D, text length L, inner width C of cross-attention."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.export.registry import TARGETS
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.job.speed_estimate import SpeedEstimate
from snapgen_deploy.latency.estimate import cost_ops
from snapgen_deploy.latency.estimate.bundle_estimate import of_plan
from snapgen_deploy.latency.estimate.cost import total, trace_module
from snapgen_deploy.latency.estimate.cost_components import Drawn, NoCosts, component_costs, picture_costs, spelling_of
from snapgen_deploy.latency.estimate.cost_ops import UnknownOperation
from snapgen_deploy.latency.estimate.estimate import plan_estimator
from snapgen_deploy.models import DecoderConfig, DiT, DiTConfig, ModelConfig, TextEncoderConfig, TextStream
from snapgen_deploy.models.autoencoders import facts_of
from snapgen_deploy.models.presets import shapes, snapgenpp
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.plan.make import make_plan
from tests import library_decoders, library_students

BASE = DiTConfig(
    latent_channels=4, hidden=64, head_dim=16, depths=(1, 2, 1), blocks=4, text_streams=(TextStream("text", 32, 10),),
    text_width=32, cross_dim=48, widths={"half": 0.5, "full": 1.0},
)  # fmt: skip


def ops_of(config=BASE, side=16, target="onnx", form="loop", width="full"):
    with without_storage():
        dit = DiT(config, width)
    model = ModelConfig(config, None, None)
    drawn = Drawn(width, (8 * side, 8 * side), (config.latent_channels, side, side))
    return component_costs(model, components_of(model).denoiser, dit, drawn, spelling_of(target), form)


def macs(ops, *kinds):
    return sum(o.macs for o in ops if o.kind in kinds)


def scores(ops):
    """Bytes that softmaxes write: all score matrices once."""
    return sum(o.written for o in ops if o.kind == "softmax")


def linear_macs(c, side, width="full"):
    """MACs of every stored matrix, written down from the architecture."""
    d, kv, p = c.hidden_at(width), c.kv_heads_at(width) * c.head_dim, c.patch
    fine = (side // p) ** 2
    length = sum(s.length for s in c.text_streams)
    found = 2 * fine * p * p * c.latent_channels * d  # patch and unpatch
    found += 2 * (fine // 4) * 4 * d * d  # downsample and upsample
    found += c.time_features * d + d * d + 6 * d * d
    found += sum(s.length * (s.dim * c.text_width + c.text_width**2) for s in c.text_streams)
    found += (c.depths[1] // 2) * 2 * (fine // 4) * d * d  # dense skips
    for depth, ratio, kind, n in zip(c.depths, c.ffn_ratios, c.attention, (fine, fine // 4, fine), strict=True):
        block = n * (2 * d * d + 2 * d * kv) + n * 2 * d * c.cross_dim + length * 2 * c.text_width * c.cross_dim
        block += n * 2 * ratio * d * d + (n * d * c.heads_at(width) if kind == "assa" else 0)
        found += depth * block
    return found


def attention_pairs(c, side):
    """Query-key pairs of self-attention over all blocks, for one head; border blocks of the local branch see fewer keys."""
    fine = (side // c.patch) ** 2
    size = fine // c.blocks
    near = sum(size * size * (min(b + c.radius, c.blocks - 1) - max(b - c.radius, 0) + 1) for b in range(c.blocks))
    return (c.depths[0] + c.depths[2]) * (fine * fine // 4 + near) + c.depths[1] * (fine // 4) ** 2


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("width", ["half", "full"])
def test_macs_of_matrices_follow_the_architecture(side, width):
    config = replace(BASE, kv_group=1) if width == "half" else BASE
    assert macs(ops_of(config, side, width=width), "linear") == linear_macs(config, side, width)


@pytest.mark.parametrize("form", ["loop", "batched", "per_head"])
@pytest.mark.parametrize(("blocks", "radius"), [(4, 1), (8, 0), (8, 2)])
def test_macs_of_attention_follow_its_pairs(form, blocks, radius):
    c = replace(BASE, blocks=blocks, radius=radius)
    fine = 64
    cross = 10 * (fine * (c.depths[0] + c.depths[2]) + fine // 4 * c.depths[1]) * c.cross_dim
    pairs = attention_pairs(c, 16)
    ops = ops_of(c, form=form)
    assert macs(ops, "product") == 2 * (pairs * c.hidden + cross)
    assert scores(ops) == 4 * (pairs * 4 + cross // c.head_dim)


def test_the_channels_graph_does_the_same_arithmetic_in_half_the_bytes():
    token, channels = ops_of(), ops_of(target="coreml")
    dense = ("linear", "product", "pointwise", "conv")
    spread = 64 * 64 * 2  # the gate is copied to its channels by a depthwise convolution, counted apart
    assert macs(channels, *dense) == macs(token, *dense)
    assert 0 < macs(channels, "depthwise") <= spread * 10
    assert scores(channels) * 2 == scores(token)


def test_scores_are_counted_where_they_are_written_and_read():
    ops = ops_of()
    written = scores(ops)
    masks = sum(o.scores for o in ops if o.kind == "elementwise")  # the text mask is added to the scores of cross-attention
    cross = 4 * 10 * (64 * 2 + 16 * 2) * BASE.cross_dim // BASE.head_dim
    assert masks == 2 * cross
    assert sum(o.scores for o in ops) == 4 * written + masks  # product out, softmax in and out, product in


@pytest.mark.parametrize(("what", "power"), [("hidden", 2), ("side", 2), ("depth", 1)])
def test_scaling_laws(what, power):
    """Doubling D or the side multiplies the middle's projections by four, doubling the depth by two."""

    def ffn(c, side):
        return sum(o.macs for o in ops_of(c, side) if o.kind == "linear" and o.macs == side * side // 16 * 3 * c.hidden**2)

    base = replace(BASE, cross_dim=112)  # so that no other layer has as many
    double = {"hidden": (replace(base, hidden=128), 16), "side": (base, 32), "depth": (replace(base, depths=(1, 4, 1)), 16)}
    assert ffn(*double[what]) == 2**power * ffn(base, 16) > 0


def test_full_attention_writes_sixteen_times_the_scores_at_twice_the_side_and_sparse_attention_does_too():
    full = replace(BASE, attention=("full", "full", "full"))
    assert scores(ops_of(full, 32)) > scores(ops_of(BASE, 32))

    def own(c, side):
        return sum(o.written for o in ops_of(c, side) if o.kind == "softmax" and o.tile and o.rows != (side // 2) ** 2 * 3)

    assert own(full, 32) / own(full, 16) > 12


@pytest.mark.parametrize("target", ["coreml", "onnx"])
@pytest.mark.parametrize("form", ["loop", "batched", "per_head"])
def test_a_tile_is_one_heads_scores_in_every_form(target, form):
    """Grid 8 x 8: 64 queries of 16 compressed keys, of windows of 16 tokens, of text; 16 tokens in the middle."""
    found = {o.tile for o in ops_of(BASE, 16, target, form) if o.tile}
    size = spelling_of(target).element
    assert found == {n * size for n in (64 * 16, 16 * 32, 16 * 48, 16 * 16, 64 * 10, 16 * 10)}


def test_views_cost_nothing_and_swapped_operands_are_not_copied():
    class Two(nn.Module):
        def forward(self, a, b):
            return torch.bmm(a, b.transpose(1, 2)).reshape(-1, 4)

    ops = trace_module(Two(), [torch.zeros(2, 3, 5), torch.zeros(2, 4, 5)])
    assert [o.kind for o in ops] == ["product", "view"]
    assert total(ops).ops == 1
    assert (ops[0].macs, ops[0].read, ops[0].written) == (2 * 3 * 4 * 5, 4 * (30 + 40), 4 * 24)
    assert (ops[1].read, ops[1].written) == (0, 0)


def test_a_transpose_that_nothing_absorbs_is_a_copy():
    class Turn(nn.Module):
        def forward(self, a):
            return a.transpose(0, 1) + a.transpose(0, 1)

    kinds = [(o.kind, o.read, o.written) for o in trace_module(Turn(), [torch.zeros(6, 5)], element=2)]
    assert kinds == [("transpose", 60, 60), ("transpose", 60, 60), ("elementwise", 120, 60)]


def test_what_needs_only_stored_tensors_is_folded():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(3, 3))

        def forward(self, x):
            return x + (self.a.t() @ self.a).sigmoid()

    assert [o.kind for o in trace_module(Folded(), [torch.zeros(3, 3)])] == ["elementwise"]


def test_convolutions():
    conv = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 8, 1),
        nn.ConvTranspose2d(8, 8, 2, 2),
    )
    ops = trace_module(conv, [torch.zeros(1, 4, 10, 10)])
    assert [(o.kind, o.macs) for o in ops] == [
        ("conv", 100 * 4 * 6 * 9), ("depthwise", 100 * 6 * 9), ("pointwise", 100 * 6 * 8), ("conv", 100 * 8 * 8 * 4)
    ]  # fmt: skip


def test_an_operation_without_a_rule_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return x.cumsum(0)

    with pytest.raises(UnknownOperation, match="cumsum"):
        trace_module(Odd(), [torch.zeros(3)])


def test_a_plan_goes_on_without_an_estimate(monkeypatch):
    """A missing rule is a fault of ours, and no reason to end an export."""
    config = replace(shapes(), name="unseen")
    monkeypatch.setattr(cost_ops, "_KIND", {name: kind for name, kind in cost_ops._KIND.items() if name != "mul"})
    with pytest.raises(NoCosts, match="nothing is known of the text encoder's speed: no cost rule for the operation 'mul'"):
        picture_costs(config, "full", (64, 64), "onnx")
    profile = load_profile("iphone16pm")
    plan = make_plan(config, profile, estimator=plan_estimator(config, profile))
    assert any("no latency figure" in reason for reason in plan.reasons)
    assert of_plan(config, plan, profile) == SpeedEstimate({}, ())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_traces_every_component(target):
    config = ModelConfig(
        BASE,
        DecoderConfig(4, (16, 8, 8, 8), (1, 0, 0, 0), groups=4),
        TextEncoderConfig(20, 10, 32, 1, 2),
        resolution=(128, 128),
    )
    found = picture_costs(config, "full", (128, 128), target)
    assert all(total(part).macs > 0 for part in found.values())
    assert list(found) == ["text_encoder", "student", "decoder"]
    weights = sum(p.numel() for p in DiT(BASE, "full").parameters()) * spelling_of(target).element
    assert total(found["student"]).weights == pytest.approx(weights, rel=0.25)  # tables and biases are read in other shapes


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_traces_a_large_picture(target):
    """XNNPACK's norms are written otherwise above 256 x 256 positions; no target may use an operation without a rule there."""
    found = picture_costs(ModelConfig(BASE, DecoderConfig(4), None, resolution=(1024, 1024)), "full", (1024, 1024), target)
    pooled = any(o.name == "avg_pool2d" for o in found["decoder"])
    assert pooled == (target == "executorch")


@pytest.mark.parametrize("name", library_students.CASES)
def test_every_student_of_diffusers_is_traced(name):
    student = library_students.config_of(name)
    config = ModelConfig(student, None, None, family="diffusers", resolution=(64, 64))
    for target in ("onnx", "coreml", "executorch"):
        assert total(picture_costs(config, "full", (64, 64), target)["student"]).macs > 1e5


@pytest.mark.parametrize("name", library_decoders.CASES)
def test_every_decoder_of_diffusers_is_traced(name):
    decoder = library_decoders.config_of(name)
    factor, channels = facts_of(decoder).factor, facts_of(decoder).latent
    dit = replace(BASE, latent_channels=channels, latent_factor=factor)
    config = ModelConfig(dit, decoder, None, resolution=(16 * factor, 16 * factor))
    for target in ("onnx", "coreml", "executorch"):
        assert total(picture_costs(config, "full", config.resolution, target)["decoder"]).macs > 1e4


@pytest.mark.slow
@pytest.mark.parametrize("width", ["tiny", "small", "full"])
def test_full_scale(width):
    config = snapgenpp()
    found = picture_costs(config, width, (1024, 1024), "onnx")
    assert macs(found["student"], "linear") == linear_macs(config.student, 128, width)


def test_the_embedded_preset():
    config = shapes()
    found = picture_costs(config, "tiny", config.resolution, "onnx")
    assert macs(found["student"], "linear") == linear_macs(config.student, 16, "tiny")
