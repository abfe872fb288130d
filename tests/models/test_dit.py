from dataclasses import replace

import pytest
import torch

from snapgen_deploy.families.registry import family_of
from snapgen_deploy.models import PRESETS, DiT, DiTConfig, ElasticDiT, TextStream, TinyDecoder, time_features
from snapgen_deploy.models.unfilled import without_storage

SMALL = DiTConfig(
    latent_channels=4,
    hidden=64,
    head_dim=4,
    depths=(1, 3, 1),
    blocks=4,
    text_streams=(TextStream("clip", 12, 5), TextStream("llm", 20, 7)),
    text_width=16,
    cross_dim=16,
    time_features=32,
)


def inputs(batch=2, height=8, width=12, streams=("clip", "llm")):
    latent = torch.randn(batch, 4, height, width)
    features = time_features(torch.rand(batch), 32)
    text = {s.name: torch.randn(batch, s.length, s.dim) for s in SMALL.text_streams if s.name in streams}
    mask = {name: torch.ones(batch, value.shape[1]) for name, value in text.items()}
    return latent, features, text, mask


@pytest.mark.parametrize(("width", "low", "high"), [("tiny", 0.25, 0.33), ("small", 0.40, 0.45), ("full", 1.45, 1.65)])
def test_full_scale_parameter_counts(width, low, high):
    with without_storage():
        count = sum(p.numel() for p in DiT(PRESETS["snapgenpp"]().student, width).parameters())
    assert low <= count / 1e9 <= high


def test_full_scale_decoder_has_the_published_size():
    with without_storage():
        decoder = TinyDecoder(PRESETS["snapgenpp"]().decoder)
    count = sum(p.numel() for p in decoder.parameters())
    assert abs(count / 1.38e6 - 1) <= 0.05
    assert decoder.config.factor == 8


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_sound(preset):
    config = PRESETS[preset]()
    assert config.student.problems() == []
    height, width = (side // config.student.latent_factor for side in config.resolution)
    assert family_of(config).size_problems(config, (height, width)) == []


def test_small_has_the_published_kv_heads():
    assert DiTConfig().kv_heads_at("small") == 8


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (16, 4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_admissible_latent_size_and_batch(size, batch):
    model = DiT(SMALL, "small")
    latent, features, text, mask = inputs(batch, *size)
    assert model(latent, features, text, mask).shape == latent.shape


@pytest.mark.parametrize("size", [(6, 8), (8, 5), (0, 8)])
def test_inadmissible_latent_is_refused(size):
    latent, features, text, mask = inputs(1, *size)
    with pytest.raises(ValueError, match="multiples of 4"):
        DiT(SMALL, "tiny")(latent, features, text, mask)


def test_blocks_must_divide_the_tokens():
    latent, features, text, mask = inputs(1, 4, 12)
    with pytest.raises(ValueError, match="do not divide into 5 blocks"):
        DiT(replace(SMALL, blocks=5), "tiny")(latent, features, text, mask)


@pytest.mark.parametrize("streams", [("clip",), ("llm",)])
def test_either_text_encoder_may_be_absent(streams):
    assert torch.isfinite(DiT(SMALL, "tiny")(*inputs(streams=streams))).all()


def test_no_text_at_all_is_refused():
    latent, features, _, _ = inputs()
    with pytest.raises(ValueError, match="text streams"):
        DiT(SMALL, "tiny")(latent, features, {}, {})


def test_masked_text_has_no_influence():
    model = DiT(SMALL, "small")
    latent, features, text, mask = inputs()
    mask["llm"][:, 3:] = 0
    first = model(latent, features, text, mask)
    text["llm"][:, 3:] += 100
    torch.testing.assert_close(model(latent, features, text, mask), first, rtol=0, atol=1e-5)
    text["llm"][:, :3] += 1
    assert (model(latent, features, text, mask) - first).abs().max() > 1e-4


def test_batch_rows_are_independent():
    model = DiT(SMALL, "full")
    latent, features, text, mask = inputs(3)
    whole = model(latent, features, text, mask)
    one = model(latent[1:2], features[1:2], {n: t[1:2] for n, t in text.items()}, {n: m[1:2] for n, m in mask.items()})
    torch.testing.assert_close(whole[1:2], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", ["tiny", "small", "full"])
def test_elastic_forward_is_the_sliced_student(width):
    elastic = ElasticDiT(SMALL)
    student = DiT(SMALL, width)
    student.load_state_dict(elastic.sliced(width), strict=True)
    x = inputs()
    torch.testing.assert_close(elastic(*x, width=width), student(*x), rtol=1e-5, atol=1e-6)


def test_norms_and_modulation_are_per_width_and_cross_kv_is_whole():
    elastic = ElasticDiT(SMALL)
    names = elastic.elastic_state().keys()
    assert {"down.0.table@tiny", "down.0.attention.q_norm.weight@small", "time.six.weight@full", "final_table@tiny"} <= names
    assert "down.0.attention.q.weight" in names
    tiny, full = elastic.sliced("tiny"), elastic.sliced("full")
    assert tiny["down.0.cross.k.weight"].shape == full["down.0.cross.k.weight"].shape
    assert tiny["down.0.ffn.up.weight"].shape == (96, 24)
    assert tiny["down.0.ffn.up.weight"].data_ptr() == full["down.0.ffn.up.weight"].data_ptr()


def test_training_one_width_leaves_the_other_widths_norms_alone():
    elastic = ElasticDiT(SMALL)
    elastic(*inputs(), width="tiny").square().mean().backward()
    grads = {name.replace("/", "."): p.grad for name, p in elastic.tensors.items()}
    assert grads["time.six.weight@tiny"].abs().sum() > 0
    assert grads["time.six.weight@full"] is None
    shared = grads["down.0.ffn.up.weight"]
    assert shared[:96, :24].abs().sum() > 0
    assert shared[96:].abs().sum() == 0


def test_a_sparse_middle_has_a_grid_of_its_own():
    config = replace(DiTConfig(blocks=9, widths={"full": 1.0}), attention=("full", "assa", "full"))
    assert "3x3 tokens of stage middle" in config.grid_problems(12, 12)[0]  # compression would drop a row and a column
    assert "8x8 tokens of stage middle" in config.grid_problems(32, 32)[0]  # 64 tokens in 9 blocks
    assert config.grid_problems(24, 24) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"time_features": 255}, "time_features 255 must be"),
        ({"widths": {"full": 1.0, "xl": 1.5}}, "width xl: ratios above 1"),
    ],
)
def test_what_would_fail_inside_torch_is_said_before(changed, message):
    (problem,) = replace(DiTConfig(), absolute_positions=True, **changed).problems()
    assert message in problem
