"""The fast form against the reference, and two steps of every stage on small settings."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.shapes import autoencoder, distill, flow, latents, text
from examples.shapes.evaluate import curves, grid, held_out
from examples.shapes.fast import Worker
from examples.shapes.sampling import draw, guided
from examples.shapes.scenes import SHAPES
from examples.shapes.ship import ship
from examples.shapes.stages import Clock, pictures, scenes, to_bytes
from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.models import (
    PRESETS,
    DecoderConfig,
    ElasticDiT,
    TextEncoderConfig,
    TextStream,
    TinyDecoder,
    sigmas,
    time_features,
)
from snapgen_deploy.models import TextEncoder as Encoder

STREAM = TextStream("text", 16, 40)
SMALL = replace(
    PRESETS["shapes"]().student, hidden=128, head_dim=8, depths=(1, 2, 1), text_streams=(STREAM,), text_width=16, cross_dim=16
)
TEXT = TextEncoderConfig(vocab=64, length=40, width=16, layers=1, heads=2)
DECODER = DecoderConfig(latent_channels=4, channels=(8, 8, 8, 8), blocks=(0, 0, 0, 0), groups=2)


@pytest.fixture
def net() -> ElasticDiT:
    return flow.initial(SMALL, seed=0)


def inputs(batch=2):
    torch.manual_seed(1)
    mask = (torch.arange(40) < torch.tensor([[9], [30]])).float()[:batch]
    return torch.randn(batch, 4, 16, 16), time_features(torch.rand(batch), 256), torch.randn(batch, 40, 16), mask


@pytest.mark.parametrize("width", ["tiny", "small", "full"])
def test_the_fast_form_is_the_reference(width):
    torch.manual_seed(0)
    net = ElasticDiT(SMALL)
    for tensor in net.tensors.values():
        tensor.data += 0.1 * torch.randn_like(tensor)
    x, features, words, mask = inputs()
    wanted = net(x, features, {"text": words}, {"text": mask}, width)
    worker = Worker(net, width, compiled=False, dtype=torch.float32)
    got = worker(x, features, words, mask)
    assert torch.allclose(got, wanted, atol=1e-4 * float(wanted.detach().abs().max()))
    wanted.square().sum().backward()
    expected = {k: t.grad.clone() for k, t in net.tensors.items() if t.grad is not None}
    net.zero_grad()
    got.square().sum().backward()
    worker.push()
    assert expected.keys() == {k for k, t in net.tensors.items() if t.grad is not None}
    scale = max(float(grad.abs().max()) for grad in expected.values())
    for key, grad in expected.items():
        assert torch.allclose(net.tensors[key].grad, grad, atol=1e-5 * scale), key


def test_a_fresh_student_predicts_nothing(net):
    x, features, words, mask = inputs()
    assert float(net(x, features, {"text": words}, {"text": mask}, "tiny").detach().abs().max()) == 0.0


def test_autoencoder_and_latents(tmp_path):
    decoder = autoencoder.train(DECODER, Clock(1.0, steps=2), tmp_path / "log", batch=2)
    assert len(decoder.config.latent_std) == 4
    words = Encoder(TEXT)
    latents.make_shard(0, tmp_path / "shard00.pt", decoder.config, words, count=4)
    pairs = latents.load(tmp_path, words)
    x, embedded, mask = pairs.batch(8, drop=1.0)
    assert x.shape == (8, 4, 16, 16)
    assert embedded.shape == (8, 40, 16)
    assert mask.sum().item() == 16  # the empty prompt has two tokens
    again = autoencoder.encode(decoder.config, pictures([s for _, s in scenes(1000, 4)]))
    assert torch.allclose(again, pairs.latents.float(), atol=1e-2)


def test_crowded_scenes_are_weighted_around_objects():
    scene = autoencoder.crowd(np.random.default_rng(0))
    weights = autoencoder.weights([scene])
    assert len(scene.things) > 3
    assert all(weights[0, 0, int(t.y), int(t.x)] > 3 for t in scene.things)


def test_text_targets_follow_the_objects(tmp_path):
    spec, _ = next(s for s in scenes(0, 200) if s[0].relation)
    rows = text.targets(spec)
    assert [SHAPES[row[1]] for row in rows] == [o.shape for o in spec.objects]
    assert rows[0][5] != rows[1][5] != 0
    trained = text.train(TEXT, Clock(1.0, steps=2), tmp_path / "log", batch=4)
    assert not any(p.requires_grad for p in trained.parameters())


def fake_pairs(count=8):
    torch.manual_seed(2)
    words = torch.randn(count, 40, 16)
    return latents.Pairs(torch.randn(count, 4, 16, 16), words, torch.ones(count, 40), words[0], torch.ones(40))


def test_two_steps_of_flow_and_distillation(tmp_path, net):
    before = {k: t.detach().clone() for k, t in net.tensors.items()}
    state = flow.train(net, fake_pairs(), Clock(1.0, steps=2), tmp_path / "log", tmp_path / "flow", batch=4, compiled=False)
    assert any(not torch.equal(before[k], net.tensors[k]) for k in before if k.endswith("@tiny"))
    base = flow.restore(SMALL, torch.load(tmp_path / "flow"))
    assert all(torch.equal(state[k], t) for k, t in base.tensors.items())
    kept = tmp_path / "distilled"
    distill.train(base, base, fake_pairs(), Clock(1.0, steps=2), tmp_path / "log", kept, batch=4, compiled=False)
    assert any(not torch.equal(state[k], t) for k, t in torch.load(kept).items())


def pulling(x, features, words, mask):
    """A network whose velocity depends on where it is and on the prompt."""
    return 0.3 * x + words.mean((1, 2))[:, None, None, None]


def test_the_teacher_takes_euler_steps():
    x, _, words, mask = inputs()
    found = distill.follow(pulling, 256, x, words, mask, (words[0], mask[0]), 1.0, 0.9, substeps=7, scale=1.0)
    fine = draw(guided(pulling, 256, words, mask), x, tuple(torch.linspace(1, 0.9, 8).tolist()))
    assert torch.allclose(found, fine, atol=1e-5)


def test_a_walk_that_learns_its_lessons_ends_where_the_teacher_does():
    walk = distill.Walk(fake_pairs(), sigmas(4, 3.0), batch=8)
    for _ in range(3):  # until the pictures of the last window have begun as noise
        walk.move(walk.lesson(pulling, 256))
    assert sorted(set(walk.sigma.tolist())) == pytest.approx([0.5, 0.75, 0.9, 1.0])
    first = walk.window == 0
    x, words, mask = (t[first].clone() for t in (walk.x, walk.text, walk.mask))
    for _ in range(3):
        walk.move(walk.lesson(pulling, 256))
    assert torch.equal(walk.text[first], words)
    goal = x
    for (start, end), count in zip(itertools.pairwise(sigmas(4, 3.0)[:4]), distill.SUBSTEPS, strict=False):
        goal = distill.follow(pulling, 256, goal, words, mask, walk.empty, start, end, count)
    assert torch.allclose(walk.x[first], goal, atol=1e-4)
    walk.move(walk.lesson(pulling, 256))
    assert not torch.equal(walk.text[first], words)  # finished: another prompt


def test_guidance_is_an_extrapolation():
    def network(x, features, words, mask):
        return words.mean() * torch.ones_like(x)

    x, _, words, mask = inputs()
    ones, zeros = torch.ones_like(words), torch.zeros_like(words[0])
    velocity = guided(network, 256, ones, mask, (zeros, mask[0]), scale=2.5)
    assert torch.allclose(velocity(x, 1.0), torch.full_like(x, 2.5))


def test_the_shipped_file_is_deterministic_and_opens(tmp_path):
    preset = PRESETS["shapes"]()
    torch.manual_seed(0)
    parts = ElasticDiT(preset.student), TinyDecoder(preset.decoder), Encoder(preset.text_encoder)
    ship(*parts, tmp_path / "a.safetensors")
    ship(*parts, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "a.safetensors").stat().st_size < 24e6
    assert open_checkpoint(tmp_path / "a.safetensors").config.trained


def test_plots(tmp_path):
    (tmp_path / "log").write_text('{"stage": "flow", "step": 1, "seconds": 3, "full": 1.0}\n')
    curves(tmp_path / "log", tmp_path / "curves.png")
    drawn = list(to_bytes(pictures([s for _, s in scenes(0, 2)])))
    grid([("full", drawn)], held_out(2), tmp_path / "grid.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000 < (tmp_path / "grid.png").stat().st_size
