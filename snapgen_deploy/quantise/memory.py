"""What the recipe of mixed precision holds in memory: how much runs together, and the peak of its process, predicted.

At full scale second moments of all layers take 20 GB and activations of all blocks as much, so that both are held in parts.
"""

from __future__ import annotations

import torch

from snapgen_deploy.host_memory import available_bytes
from snapgen_deploy.models import DiT, DiTConfig
from snapgen_deploy.quantise.layers import Layer, layers_of, matrix_of

TOKENS = 2048  # image tokens that run together at most: activations of a full-scale student take gigabytes a call
MEASURED_CALLS = 8  # calls of the student that run together while layers are measured
LESSON = 16  # calls of one iteration of the tuning
MOMENTS = 1 << 30  # bytes of second moments that are held at once, where little is free
KEPT = 2 << 30  # bytes of activations of all blocks that are kept for the gradients; beyond, blocks compute them again
# Maps of (tokens, hidden) that a block keeps for its gradients: fitted, as BASE, to `benchmarks.export_memory recipe`.
MAPS = 32
BASE = 480_000_000  # of the process without a network
WEIGHTS = 1.05  # bytes for each byte of the student's weights in fp32


def together(tokens: int, most: int) -> int:
    """How many calls of so many image tokens run together: at most `most`, and at most `TOKENS` tokens (or one call)."""
    return max(1, min(most, TOKENS // tokens))


def moment_bytes(layer: Layer) -> int:
    """Bytes of a layer's second moments (groups, columns, columns) in double precision."""
    groups, _, columns = matrix_of(layer, layer.weight).shape
    return 8 * groups * columns**2


def moments_at_once() -> int:
    """Bytes of second moments to hold together: half of what this computer has free, so that few passes are made."""
    return max(MOMENTS, (available_bytes() or 0) // 2)


def recomputes(config: DiTConfig, width: str, tokens: int) -> bool:
    """Whether activations of all blocks for so many image tokens are too many to be kept for the gradients."""
    return MAPS * sum(config.depths) * _map(config, width, tokens) > KEPT


def predicted_peak(config: DiTConfig, width: str, latent: tuple[int, int, int]) -> int:
    """Bytes that the recipe's process needs: the larger of measuring layers and tuning.

    More second moments are held where more memory is free (`moments_at_once`); this is what it cannot do without.
    """
    with torch.device("meta"):
        student = DiT(config, width)
    rows, columns = config.grid(*latent[1:])
    weights = round(WEIGHTS * 4 * sum(p.numel() for p in student.parameters()))
    moments = [moment_bytes(layer) for layer in layers_of(student).values()]
    # beside the sums, one batch's own product in single and double precision
    measuring = min(sum(moments), max(MOMENTS, max(moments))) + 3 * max(moments) // 2
    tokens = rows * columns * together(rows * columns, LESSON)
    scores = 4 * config.hidden_at(width) // config.head_dim * tokens * rows * columns // 4
    return BASE + weights + max(measuring, _for_gradients(config, width, tokens) + scores)


def _for_gradients(config: DiTConfig, width: str, tokens: int) -> int:
    of_block, blocks = MAPS * _map(config, width, tokens), sum(config.depths)
    return of_block + blocks * _map(config, width, tokens) if recomputes(config, width, tokens) else of_block * blocks


def _map(config: DiTConfig, width: str, tokens: int) -> int:
    """Bytes of one (tokens, hidden) map in fp32."""
    return 4 * tokens * config.hidden_at(width)
