"""The nearest fulfilling picture against a search by chance, and two steps of the reward's training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.shapes import reward
from examples.shapes.detector import judge
from examples.shapes.nearest import Nearest, Options
from examples.shapes.prompts import realise
from examples.shapes.scenes import SIDE, render
from examples.shapes.stages import Clock, scenes
from snapgen_deploy.models import TextEncoder
from tests.shapes.test_training import DECODER, TEXT, net  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def nearest():
    return Nearest(replace(DECODER, latent_mean=(0.1, 0.2, 0.0, 0.1), latent_std=(0.5, 0.6, 0.7, 0.3)))


def test_a_fulfilling_picture_is_its_own_nearest(nearest):
    specs, wanted = zip(*scenes(5, 60), strict=True)
    noisy = nearest.latents(list(wanted)) + 0.2 * torch.randn(60, 4, 16, 16)
    latents, found = nearest(noisy, list(specs))
    assert found == list(wanted)
    assert torch.equal(latents, nearest.latents(list(wanted)))


def test_no_random_fulfilling_picture_is_nearer(nearest):
    rng = np.random.default_rng(3)
    for spec, _ in scenes(6, 25):
        drawn = torch.randn(4, 16, 16)
        best = float((nearest([drawn], [spec])[0] - drawn).square().sum())
        others = [scene for scene in (realise(spec, rng) for _ in range(60)) if scene]
        least = float((nearest.latents(others) - drawn).square().sum((1, 2, 3)).min())
        # objects that share a cell are costed as if each had it to itself
        assert best <= least * 1.01


def test_what_is_found_fulfils_the_prompt(nearest):
    specs = [spec for spec, _ in scenes(7, 40)]
    _, found = nearest(torch.randn(40, 4, 16, 16), specs)
    assert np.mean([judge(render(scene), spec).entirely for scene, spec in zip(found, specs, strict=True)]) == 1.0


def test_options_that_touch_or_leave_the_picture_are_dropped():
    x = np.array([[24.0, 64.0], [24.0, 40.0], [8.0, 64.0], [24.0, SIDE - 8.0]])
    ways = Options(x, np.full((4, 2), 64.0), np.full((4, 2), 12.0), np.arange(4.0))
    assert ways.valid().cost.tolist() == [0.0]


def test_faults_of_objects_weigh_more(nearest):
    (_, scene), *_ = scenes(8, 1)
    wanted = nearest.latents([scene])
    thing = scene.things[0]
    inside, outside = torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 16)
    inside[0, :, int(thing.y) // 8, int(thing.x) // 8] = 1.0
    outside[0, :, 0, 0] = 1.0  # no object reaches the corner
    assert reward.distance(wanted, wanted, [scene]) == 0.0
    assert reward.distance(wanted + inside, wanted, [scene]) > 1.5 * reward.distance(wanted + outside, wanted, [scene])


def test_two_steps_train_all_widths(tmp_path, net):  # noqa: F811
    torch.manual_seed(4)
    for tensor in net.tensors.values():
        tensor.data += 0.02 * torch.randn_like(tensor)
    before = {key: tensor.detach().clone() for key, tensor in net.tensors.items()}
    encoder = TextEncoder(TEXT).requires_grad_(False)
    config = replace(DECODER, latent_mean=(0.0,) * 4, latent_std=(0.5,) * 4)
    log, kept, levels = tmp_path / "log", tmp_path / "kept", (1.0, 0.75, 0.0)
    state = reward.train(net, config, encoder, Clock(5.0, steps=2), log, kept, levels, batch=2, compiled=False)
    changed = {key for key, tensor in net.tensors.items() if not torch.equal(before[key], tensor)}
    assert {key.split("@")[1] for key in changed if "@" in key} == {"tiny", "small", "full"}
    assert all(torch.equal(state[key], saved) for key, saved in torch.load(kept).items())
