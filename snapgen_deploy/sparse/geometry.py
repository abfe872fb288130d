"""What the kernel forms share: head counts, windows of Blockwise Neighborhood Attention (BNA), and their checks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from snapgen_deploy.errors import BadInput


@dataclass(frozen=True)
class Heads:
    """Query heads, key/value heads and channels per head; query head i reads key/value head i // group."""

    queries: int
    keys: int
    dim: int

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.queries // self.keys


@dataclass(frozen=True)
class Window:
    """A run of queries and the one contiguous run of keys that all of them attend to, in tokens."""

    start: int
    length: int
    key_start: int
    key_length: int


def windows(tokens: int, blocks: int, radius: int) -> tuple[Window, ...]:
    """The windows of BNA over `tokens` tokens: block b attends to blocks b-radius ... b+radius, clipped at both ends.

    Neighbouring blocks with the same keys are one window, so that radius >= blocks - 1 is full attention.

    >>> windows(8, 4, 1)[0]
    Window(start=0, length=2, key_start=0, key_length=4)

    Raises:
        BadInput: if `blocks` does not divide `tokens`, or `radius` is negative.
    """
    if blocks < 1 or tokens < 1 or tokens % blocks:
        raise BadInput(f"got {tokens} tokens in {blocks} blocks, expected a number of blocks that divides {tokens}")
    if radius < 0:
        raise BadInput(f"got radius {radius}, expected 0 or more")
    length = tokens // blocks
    found: list[Window] = []
    for b in range(blocks):
        first, last = max(b - radius, 0) * length, min(b + radius + 1, blocks) * length
        if found and (found[-1].key_start, found[-1].key_length) == (first, last - first):
            found[-1] = Window(found[-1].start, found[-1].length + length, first, last - first)
        else:
            found.append(Window(b * length, length, first, last - first))
    return tuple(found)


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> Heads:
    """Heads of q (h, N, d), k and v (h_kv, N, d).

    Raises:
        BadInput: if the shapes are not such, or h is not a multiple of h_kv.
    """
    shapes = f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[1:] != k.shape[1:]:
        raise BadInput(f"{shapes}; expected q (h, N, d) with k and v (h_kv, N, d)")
    if q.shape[0] % k.shape[0]:
        raise BadInput(f"{shapes}; expected query heads that are a multiple of the key/value heads")
    return Heads(q.shape[0], k.shape[0], q.shape[2])
