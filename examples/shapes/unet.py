"""Trains the embedded U-Net from the embedded elastic transformer: `python -m examples.shapes.unet`.

The teacher draws in four steps, so a student that copies its four velocities draws as it does. Two stages:

1 imitation   the student is called at its own states (on-policy, as DAgger, arXiv 1011.0686); its target is the teacher's
              velocity there. States begin as noise. At first the teacher's velocities move them on, later the student's own.
2 reward      as `reward.py`: the gradient of the distance to the nearest right picture flows back through all four steps.

The text encoder and the decoder are the teacher's. A run writes its weights to its folder every 100 steps and continues from
there; `--score` scores what is there.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from examples.shapes.evaluate import BATCH, held_out
from examples.shapes.fast import Worker
from examples.shapes.flow import MUON_SCALE, State, save
from examples.shapes.latents import embed
from examples.shapes.nearest import Nearest
from examples.shapes.prompts import PromptSpec, sample
from examples.shapes.reward import distance
from examples.shapes.sampling import Network, draw, guided
from examples.shapes.score import score_pictures
from examples.shapes.ship import ship_as, shipped_student
from examples.shapes.stages import Clock, Log, learning_rate, set_rate, to_bytes
from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.checkpoint.initial import initial_tensor
from snapgen_deploy.checkpoint.networks import load_decoder, load_text_encoder
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import PRESETS, TextEncoder, euler, initial_noise, sigmas, time_features
from snapgen_deploy.models.unet import UNet
from snapgen_deploy.models.unet_config import UNetConfig, unet_of

SHIPPED = Path("snapgen_deploy/assets/shapes-unet.safetensors")
TEACHER = "full"
LED = 0.35  # share of the imitation in which the teacher's velocities move the states
LOW = torch.bfloat16


def initial(config: UNetConfig) -> UNet:
    """Seeded weights, of which those that end a residual branch are small."""
    model = dataclasses.replace(PRESETS["shapes-unet"](), student=config)
    spec, net = components_of(model).denoiser, UNet(config)
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            tensor.copy_(initial_tensor(spec, name, tuple(tensor.shape), 3))
            if name.endswith(("out.weight", "down.weight", "leave.weight", "conv2.pointwise.weight", "last.weight")):
                tensor.mul_(0.1)
    return net


class Learner:
    """The network in training: a bfloat16 copy that computes, fp32 weights, optimisers, and their moving average."""

    def __init__(self, net: UNet, rate: float, average: float, compiled: bool = True) -> None:
        self.net, self.average, self.steps = net, average, 0
        self.copy = copy.deepcopy(net).to(LOW)
        if compiled:
            for layer in self.copy.recomputable():
                layer.compile(dynamic=False)
        self.mean = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
        self.pairs = list(zip(self.copy.parameters(), net.parameters(), strict=True))
        matrices = [p for p in net.parameters() if p.ndim == 2]
        others = [p for p in net.parameters() if p.ndim != 2]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                [{"params": matrices, "scale": MUON_SCALE}],
                lr=rate,
                weight_decay=0.01,
                adjust_lr_fn="match_rms_adamw",
                ns_steps=4,
            ),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        ]

    def __call__(self, x: Tensor, features: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Latent (B, C, h, w), features (B, F), text (B, L, T), mask (B, L) -> velocity (B, C, h, w), fp32."""
        x, features, text, mask = (t.to(LOW) for t in (x, features, text, mask))
        velocity: Tensor = self.copy(x, features, {"text": text}, {"text": mask})
        return velocity.float()

    def update(self, rate: float) -> None:
        """Take the gradients of the copy, update the weights, their moving average, and the copy."""
        set_rate(self.optimisers, rate)
        for low, master in self.pairs:
            assert low.grad is not None
            master.grad, low.grad = low.grad.float(), None
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.steps += 1
        keep = min(self.average, self.steps / (self.steps + 19))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.values()), list(self.net.parameters()), 1 - keep)
            torch._foreach_copy_([low for low, _ in self.pairs], [master for _, master in self.pairs])


def prompts(encoder: TextEncoder, seed: int, count: int) -> Iterator[tuple[list[PromptSpec], Tensor, Tensor]]:
    """Batches of new prompts of the training split, with embeddings and masks."""
    rng = np.random.default_rng(seed)
    while True:
        specs = [sample(rng, held_out=False)[0] for _ in range(count)]
        yield specs, *embed(encoder, [spec.text() for spec in specs])


def imitate(
    learner: Learner, teacher: Network, encoder: TextEncoder, clock: Clock, log: Path, keep: Path,
    levels: tuple[float, ...], batch: int = 48, peak: float = 1.5e-3, seed: int = 0,
) -> None:  # fmt: skip
    """Stage 1. Every picture is at one of the four steps, an equal number at each, and moves on to the next."""
    torch.manual_seed(seed)
    config, windows = learner.net.config, len(levels) - 1
    each, level = batch // windows, torch.tensor(levels)
    fresh = prompts(encoder, seed, each)
    parts = [next(fresh)[1:] for _ in range(windows)]
    text, mask = (torch.cat(list(part)) for part in zip(*parts, strict=True))
    step = torch.arange(windows).repeat_interleave(each)  # (B,) of each picture
    x = torch.randn(each * windows, config.latent_channels, 16, 16)
    rows, rng = Log(log, "imitate", clock, every=25), torch.Generator().manual_seed(seed)
    for progress in clock.ticks():
        features = time_features(level[step], config.time_features)
        with torch.no_grad():
            target = teacher(x, features, text, mask).float()
        velocity = learner(x, features, text, mask)
        loss = (velocity - target).square().mean()
        loss.backward()
        learner.update(learning_rate(progress, peak))
        rows.add(loss=loss.detach())
        led = torch.rand(len(x), generator=rng) < (1.0 if progress < LED else 0.25)
        moved = torch.where(led.view(-1, 1, 1, 1), target, velocity.detach())
        x = x + (level[step + 1] - level[step]).view(-1, 1, 1, 1) * moved
        over = step == windows - 1
        _, text[over], mask[over] = next(fresh)
        x[over] = torch.randn_like(x[over])
        step = (step + 1) % windows
        if learner.steps % 100 == 0:
            save(learner.mean, keep)
    save(learner.mean, keep)


def reward(
    learner: Learner, nearest: Nearest, encoder: TextEncoder, clock: Clock, log: Path, keep: Path,
    levels: tuple[float, ...], batch: int = 16, peak: float = 3e-4, seed: int = 5,
) -> None:  # fmt: skip
    """Stage 2."""
    torch.manual_seed(seed)
    config, rows = learner.net.config, Log(log, "reward", clock, every=25)
    fresh = prompts(encoder, seed, batch)
    for progress in clock.ticks():
        specs, text, mask = next(fresh)
        noise = torch.randn(batch, config.latent_channels, 16, 16)
        drawn = euler(guided(learner, config.time_features, text, mask), noise, levels)
        wanted, scenes = nearest(drawn, specs)
        nearest.balance(specs, scenes)
        loss = distance(drawn, wanted, scenes)
        loss.backward()
        learner.update(learning_rate(progress, peak))
        rows.add(loss=loss.detach())
        if learner.steps % 50 == 0:
            save(learner.mean, keep)
    save(learner.mean, keep)


def score(net: UNet, count: int = 200) -> dict[str, object]:
    """The score of four steps in fp32 on held-out prompts, as `evaluate.py` has it for the teacher."""
    checkpoint = open_checkpoint(None)
    config, decoder, encoder = checkpoint.config, load_decoder(checkpoint), load_text_encoder(checkpoint)
    wanted = held_out(count)
    text, mask = embed(encoder, wanted)
    noise = torch.cat([initial_noise(i, (1, 4, 16, 16)) for i in range(count)])

    def network(x: Tensor, features: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        velocity: Tensor = net(x, features, {"text": words}, {"text": seen})
        return velocity

    pictures: list[np.ndarray] = []
    for i in range(0, count, BATCH):
        part = slice(i, i + BATCH)
        velocity = guided(network, net.config.time_features, text[part], mask[part])
        with torch.no_grad():
            drawn = decoder(draw(velocity, noise[part], sigmas(config.steps, config.shift)))
        pictures.extend(to_bytes(drawn))
    return score_pictures(wanted, pictures)


def restore(state: State) -> UNet:
    """The preset's network with the weights of a state."""
    net = UNet(unet_of(PRESETS["shapes-unet"]()))
    net.load_state_dict(state)
    return net.eval()


def shipped(path: Path = SHIPPED) -> UNet:
    """The network of the shipped file."""
    state = load_file(path)
    return restore({n.removeprefix("student."): t.float() for n, t in state.items() if n.startswith("student.")})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/shapes/unet"), help="folder of the intermediate files")
    parser.add_argument("--imitate", type=float, default=60.0, metavar="MINUTES")
    parser.add_argument("--reward", type=float, default=60.0, metavar="MINUTES")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--score", action="store_true", help="score the newest weights of the run, and train nothing")
    parser.add_argument("--ship", action="store_true", help=f"write the newest weights of the run to {SHIPPED}")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.run.mkdir(parents=True, exist_ok=True)
    keep, log = chosen.run / "unet.pt", chosen.run / "losses.jsonl"
    checkpoint = open_checkpoint(None)
    decoder, encoder = load_decoder(checkpoint), load_text_encoder(checkpoint)
    if chosen.score or chosen.ship:
        net = restore(torch.load(keep, weights_only=True))
        if chosen.ship:
            ship_as(PRESETS["shapes-unet"](), net, decoder, encoder, SHIPPED)
        print(json.dumps(score(net)))
        return
    net = restore(torch.load(keep, weights_only=True)).train() if keep.exists() else initial(unet_of(PRESETS["shapes-unet"]()))
    levels = sigmas(checkpoint.config.steps, checkpoint.config.shift)
    if chosen.imitate:
        teacher = Worker(shipped_student(), TEACHER)
        imitate(Learner(net, 1.5e-3, 0.998), teacher, encoder, Clock(chosen.imitate), log, keep, levels)
        net = restore(torch.load(keep, weights_only=True)).train()
    if chosen.reward:
        nearest = Nearest(decoder.config)
        reward(Learner(net, 3e-4, 0.99), nearest, encoder, Clock(chosen.reward), log, keep, levels)
    print(json.dumps(score(restore(torch.load(keep, weights_only=True)))))


if __name__ == "__main__":
    main()
