"""Stage 2: the text encoder, pre-trained to parse prompts and then frozen.

It takes the role of the paper's frozen CLIP and Gemma. From the prompt alone, it learns which colour, size and place belong to
which shape word. The student is trained on its frozen outputs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.shapes.prompts import PromptSpec, is_held_out, sample_spec
from examples.shapes.scenes import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES
from examples.shapes.stages import Clock, Log, learning_rate, set_rate, tokenizer, tokens_of
from snapgen_deploy.models import TextEncoder, TextEncoderConfig

# What is predicted at each shape word; the first choice of the last three means "the prompt does not say".
HEADS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "index": ("0", "1", "2"),
    "size": ("", *SIZES),
    "place": ("", *PLACES),
    "relation": ("", *(f"{role} {name}" for role in ("first", "second") for name in RELATIONS)),
    "background": tuple(BACKGROUNDS),
}


def targets(spec: PromptSpec) -> list[list[int]]:
    """For each object, the index of the right choice of every head."""
    rows = []
    for i, thing in enumerate(spec.objects):
        role = f"{('first', 'second')[i]} {spec.relation}" if spec.relation and i < 2 else ""
        right = (thing.colour, thing.shape, str(i), thing.size or "", thing.place or "", role, spec.background)
        rows.append([choices.index(word) for choices, word in zip(HEADS.values(), right, strict=True)])
    return rows


def train(config: TextEncoderConfig, clock: Clock, log: Path, batch: int = 128, seed: int = 2) -> TextEncoder:
    """Train encoder and heads together; the heads are discarded."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    words = tokenizer()
    encoder, heads = TextEncoder(config), nn.Linear(config.width, sum(map(len, HEADS.values())))
    nn.init.normal_(encoder.tokens.weight, std=0.3)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2)
    shape_words = torch.tensor([words.encode(s, 3)[0][1] for s in SHAPES])
    rows = Log(log, "text_encoder", clock)
    for progress in clock.ticks():
        set_rate([optimiser], learning_rate(progress, 1e-3))
        specs: list[PromptSpec] = []
        while len(specs) < batch:
            spec = sample_spec(rng)
            if not is_held_out(spec.text()):
                specs.append(spec)
        tokens, mask = tokens_of(words, [s.text() for s in specs], config.length)
        chosen = torch.isin(tokens, shape_words)  # shape words are in the order of the objects
        wanted = torch.tensor([row for s in specs for row in targets(s)])  # (objects, heads)
        loss, right = parse_loss(heads(encoder(tokens, mask)[chosen]), wanted)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        rows.add(loss=loss.detach(), right=right)
    return encoder.eval().requires_grad_(False)


def parse_loss(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of cross-entropies over the heads, and the share of objects with every head right."""
    split = logits.split([len(c) for c in HEADS.values()], dim=1)
    loss = sum((F.cross_entropy(part, wanted[:, i]) for i, part in enumerate(split)), start=logits.new_zeros(()))
    right = torch.stack([part.argmax(1) == wanted[:, i] for i, part in enumerate(split)]).all(0).float().mean()
    return loss, right
