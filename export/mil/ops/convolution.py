"""Convolutions in one to three dimensions (coremltools: iOS15/conv.py)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_deploy.export.mil.ops.registry import op

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
Pads = tuple[tuple[int, int], ...]


def resolve_pads(
    pad_type: str, sizes: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], pad: tuple[int, ...]
) -> Pads:
    """Padding before and after each spatial axis; `kernel` counts the dilated kernel.

    `same` makes ceil(size / stride) results and puts the odd cell behind, `same_lower` in front.
    """
    if pad_type == "valid":
        return ((0, 0),) * len(sizes)
    if pad_type == "custom":
        if len(pad) != 2 * len(sizes):
            raise ValueError(f"custom padding needs {2 * len(sizes)} numbers, got {len(pad)}")
        return tuple((pad[2 * i], pad[2 * i + 1]) for i in range(len(sizes)))
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r} is unknown")
    pads = []
    for size, k, stride in zip(sizes, kernel, strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + k - size)
        small, large = total // 2, total - total // 2
        pads.append((large, small) if pad_type == "same_lower" else (small, large))
    return tuple(pads)


def flat_pads(pads: Pads) -> list[int]:
    """As torch's `pad` wants them: last axis first."""
    return [n for pair in reversed(pads) for n in pair]


@op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: tuple[int, ...] = (),
    pad_type: str = "valid",
    pad: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    groups: int = 1,
) -> Tensor:
    """x (n, C_in, *D), weight (C_out, C_in / groups, *K)."""
    sizes = tuple(x.shape[2:])
    strides, dilations = strides or (1,) * len(sizes), dilations or (1,) * len(sizes)
    kernel = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True))
    pads = resolve_pads(pad_type, sizes, kernel, strides, pad)
    if all(a == b for a, b in pads):
        padding = [a for a, _ in pads]
    else:
        x, padding = F.pad(x, flat_pads(pads)), [0] * len(sizes)
    result: Tensor = _CONV[len(sizes)](x, weight, bias, list(strides), padding, list(dilations), groups)
    return result


@op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pad: tuple[int, ...] = (),
    output_shape: tuple[int, ...] = (),
    pad_type: str = "valid",
    strides: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    groups: int = 1,
) -> Tensor:
    """x (n, C_in, *D), weight (C_in, C_out / groups, *K): the full result, cropped by the padding.

    `same` crops to D * stride. With `output_shape` the result is what `conv` with these parameters maps back to x: it starts
    after the padding before and ends where the shape says, with zeros (plus bias) where no input reaches.
    """
    sizes = tuple(x.shape[2:])
    strides, dilations = strides or (1,) * len(sizes), dilations or (1,) * len(sizes)
    kernel = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True))
    full = tuple((n - 1) * s + k for n, s, k in zip(sizes, strides, kernel, strict=True))
    if pad_type in ("same", "same_lower"):
        wanted = output_shape[2:] or tuple(n * s for n, s in zip(sizes, strides, strict=True))
        pads = resolve_pads(pad_type, tuple(wanted), kernel, strides, pad)
    else:
        pads = resolve_pads(pad_type, full, kernel, strides, pad)
        wanted = output_shape[2:] or tuple(n - a - b for n, (a, b) in zip(full, pads, strict=True))
    function = _TRANSPOSED[len(sizes)]
    before = [a for a, _ in pads]
    # torch crops both ends by `padding` and can give back up to stride - 1 cells at the far end.
    extra = [w - (n - 2 * a) for w, n, a in zip(wanted, full, before, strict=True)]
    if all(0 <= e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        result: Tensor = function(x, weight, bias, list(strides), before, extra, groups, list(dilations))
        return result
    whole = function(x, weight, None, list(strides), [0] * len(sizes), [0] * len(sizes), groups, list(dilations))
    crop = tuple((-a, w - (n - a)) for w, n, a in zip(wanted, full, before, strict=True))
    cropped = F.pad(whole, flat_pads(crop))
    return cropped if bias is None else torch.add(cropped, bias.reshape(-1, *(1,) * len(sizes)))
