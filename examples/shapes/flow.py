"""Stage 4: elastic flow matching. Every step trains the full network and one narrower width.

loss = |v_full - v|^2 + |v_sub - v|^2 + |v_sub - stopgrad(v_full)|^2, v = noise - latent at (1 - sigma) latent + sigma noise;
sigma is logit-normal, shifted by 2; one prompt in ten is empty, for classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.shapes.fast import Worker
from examples.shapes.latents import Pairs
from examples.shapes.stages import Clock, Log, learning_rate, set_rate
from snapgen_deploy.models import DiTConfig, ElasticDiT, time_features

State = dict[str, Tensor]
SHIFT = 2.0
MUON_SCALE = 2.0  # factor of the matrices' learning rate


def initial(config: DiTConfig, seed: int) -> ElasticDiT:
    """An untrained network: small modulation, averaging compression, zero output."""
    torch.manual_seed(seed)
    net = ElasticDiT(config)
    for key, tensor in net.tensors.items():
        name = key.replace("/", ".")
        if name.endswith("bias") or name == "unpatch.weight":
            nn.init.zeros_(tensor)
        elif "table" in name:
            nn.init.normal_(tensor, std=0.02)
        elif name.startswith("time.six"):
            nn.init.normal_(tensor, std=0.005)
        elif "compress.weight" in name:
            nn.init.constant_(tensor, 0.25)
        elif name.endswith("cross.out.weight"):
            nn.init.normal_(tensor, std=0.01)
        elif name == "downsample.weight":
            nn.init.normal_(tensor, std=(config.hidden * 4) ** -0.5)
        elif name == "upsample.weight":
            nn.init.normal_(tensor, std=config.hidden**-0.5)
    return net


def optimisers_for(net: ElasticDiT, rate: float) -> list[torch.optim.Optimizer]:
    """Muon (arXiv 2502.16982, steps as large as AdamW's) for the matrices; AdamW for tables, biases and convolutions."""
    matrices = [t for key, t in net.tensors.items() if t.ndim == 2 and "table" not in key]
    others = [t for key, t in net.tensors.items() if t.ndim != 2 or "table" in key]
    return [
        torch.optim.Muon(
            [{"params": matrices, "scale": MUON_SCALE}], lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw", ns_steps=4
        ),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    ]


class Elastic:
    """The supernetwork during training: a worker per width, optimisers, moving average."""

    def __init__(self, net: ElasticDiT, rate: float, average: float = 0.999, compiled: bool = True) -> None:
        self.net, self.average = net, average
        self.parameters = list(net.tensors.values())
        self.optimisers = optimisers_for(net, rate)
        self.workers = {width: Worker(net, width, compiled=compiled) for width in net.config.widths}
        self.mean = {key: tensor.detach().clone() for key, tensor in net.tensors.items()}
        self.steps = 0

    @property
    def widest(self) -> str:
        """The full network's width."""
        return max(self.net.config.widths, key=self.net.config.widths.__getitem__)

    def narrow(self) -> Iterator[str]:
        """The narrower widths, in turn."""
        widths = sorted(self.net.config.widths, key=self.net.config.widths.__getitem__)[:-1]
        while True:
            yield from reversed(widths)

    def step(self, x: Tensor, features: Tensor, text: Tensor, mask: Tensor, target: Tensor, sub: str) -> dict[str, Tensor]:
        """One joint step of the full network and `sub` towards the target velocity."""
        full, narrow = self.workers[self.widest], self.workers[sub]
        full.pull()
        teacher = full(x, features, text, mask)
        loss = (teacher - target).square().mean()
        loss.backward()
        full.push()
        narrow.pull()
        student = narrow(x, features, text, mask)
        own, distilled = (student - target).square().mean(), (student - teacher.detach()).square().mean()
        (own + distilled).backward()
        narrow.push()
        self.update()
        return {self.widest: loss.detach(), sub: own.detach(), f"distil_{sub}": distilled.detach()}

    def update(self) -> None:
        """Clip the gradients, update the weights and their moving average."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.steps += 1
        keep = min(self.average, self.steps / (self.steps + 19))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.values()), self.parameters, 1 - keep)


def noise_levels(count: int) -> Tensor:
    """Logit-normal, shifted: s -> SHIFT*s / (1 + (SHIFT - 1)*s)."""
    s = torch.sigmoid(torch.randn(count))
    return SHIFT * s / (1 + (SHIFT - 1) * s)


def train(
    net: ElasticDiT,
    pairs: Pairs,
    clock: Clock,
    log: Path,
    keep: Path,
    batch: int = 48,
    compiled: bool = True,
    peak: float = 1.2e-3,
) -> State:
    """Train `net` in place. Returns its moving average, which is also written to `keep` every 500 steps."""
    elastic = Elastic(net, peak, compiled=compiled)
    rows = Log(log, "flow", clock, every=25)
    subs = elastic.narrow()
    for progress in clock.ticks():
        set_rate(elastic.optimisers, learning_rate(progress, peak))
        latents, text, mask = pairs.batch(batch, drop=0.1)
        noise, sigma = torch.randn_like(latents), noise_levels(batch)
        level = sigma.view(-1, 1, 1, 1)
        x, target = (1 - level) * latents + level * noise, noise - latents
        features = time_features(sigma, net.config.time_features)
        rows.add(**elastic.step(x, features, text, mask, target, next(subs)))
        if elastic.steps % 500 == 0:
            save(elastic.mean, keep)
    save(elastic.mean, keep)
    return elastic.mean


def save(state: State, path: Path) -> None:
    """Write a state. A failed write leaves no partial file under the final name."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.rename(path)


def restore(config: DiTConfig, state: State) -> ElasticDiT:
    """A network with the weights of a state."""
    net = ElasticDiT(config)
    net.tensors.load_state_dict(state)
    return net
