"""Layers over images (B, C, H, W) that decoders of other libraries are rewritten with: norms, upsampling, attention.

Every form is the same mathematics as the layer that it stands for; which one a target gets is in `ImageForms`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.sparse.decoder import UpsampleForm

LEAST_SQUARE = 2.0**-14  # half precision's smallest normal number: hardware that flushes smaller ones would divide by zero
MOST_SCORES = 2**24  # elements of a matrix of attention scores that are alive at once
Scale = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class ImageForms:
    """In which operations layers over images are written."""

    upsample: UpsampleForm  # "transposed": what enlarges is one transposed convolution, for delegates that take nothing else
    mean_by_convolution: bool  # a mean over channels, for delegates that take means over height and width only
    columns: bool  # attention keeps positions on the last axis, as the Neural Engine likes it


class ChannelFactors(nn.Module):
    """A factor for each channel of a map."""

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.factor


class Swish(nn.Module):
    """x sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, unchanged."""
        return x * x.sigmoid()


class SoftClamp(nn.Module):
    """Keeps values within -limit ... limit: limit tanh(x / limit)."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, unchanged."""
        return torch.tanh(x * (1.0 / self.limit)) * self.limit


class Clamp(nn.Module):
    """Keeps values within -1 ... 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, unchanged."""
        return x.clamp(-1.0, 1.0)


class Affine(nn.Module):
    """x * std + mean, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.std + self.mean


class Sum(nn.Module):
    """The sum of two branches of one input."""

    def __init__(self, main: nn.Module, shortcut: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.main, self.shortcut, self.after = main, shortcut, nn.Identity() if after is None else after

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> whatever the branches make of it."""
        out: Tensor = self.after(self.main(x) + self.shortcut(x))
        return out


class ImageRMSNorm(nn.Module):
    """x / rms(x) over the channels of each position, with weight and bias (C,).

    The input is `scale` times what the layer gets in the reference. What is below half precision's normal numbers counts as
    the smallest of them, so that a position of zeros stays one.
    """

    average: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(self, source: Scale, eps: float, scale: float, forms: ImageForms) -> None:
        """`source`: weight (C,) and bias (C,) or None."""
        super().__init__()
        weight, bias = source
        self.by_convolution, self.eps = forms.mean_by_convolution, eps * scale * scale
        self.register_buffer("weight", weight.detach().reshape(1, -1, 1, 1))
        self.register_buffer("bias", None if bias is None else bias.detach().reshape(1, -1, 1, 1))
        if self.by_convolution:
            channels = weight.numel()
            self.register_buffer("average", torch.full((1, channels, 1, 1), 1.0 / channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        square = x * x
        mean = F.conv2d(square, self.average) if self.by_convolution else square.mean(1, keepdim=True)  # (B, 1, H, W)
        y = x * (mean + self.eps).clamp(min=LEAST_SQUARE).rsqrt() * self.weight
        return y if self.bias is None else y + self.bias


class NearestConv(nn.Module):
    """Nearest 2x upsampling and a 3x3 convolution.

    As one transposed convolution it has 4x4 taps, sums of those of the 3x3 ones: four ninths of the multiplications, and no
    enlarged map between.
    """

    def __init__(self, conv: nn.Conv2d, form: UpsampleForm) -> None:
        super().__init__()
        self.form = form
        self.conv: nn.Module = conv if form == "native" else _doubling(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.form == "native" else x)
        return out


class ShuffledConv(nn.Module):
    """A 3x3 convolution to four times the channels and a pixel shuffle, or both as one transposed convolution of 6x6 taps.

    That one has a bias for each channel; where those of its four pixels differ, the difference is added as a pattern.
    """

    pattern: Tensor | None

    def __init__(self, conv: nn.Conv2d, form: UpsampleForm) -> None:
        super().__init__()
        self.form = form
        self.conv: nn.Module = conv if form == "native" else _shuffling(conv)
        pattern = None
        if form != "native" and conv.bias is not None:
            phases = conv.bias.detach().reshape(-1, 4)  # (C', 4)
            differences = phases - phases[:, :1]
            pattern = differences.reshape(1, -1, 2, 2) if phases.is_meta or bool(differences.any()) else None
        self.register_buffer("pattern", pattern)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W)."""
        out: Tensor = self.conv(x)
        if self.form == "native":
            return F.pixel_shuffle(out, 2)
        if self.pattern is None:
            return out
        ones = x.narrow(1, 0, 1) * 0.0 + 1.0  # (B, 1, H, W)
        return out + F.conv_transpose2d(ones, self.pattern, stride=2)


class Duplicating(nn.Module):
    """2x upsampling that takes every pixel of every output channel from one input channel: `sources` (C', 2, 2)."""

    kernel: Tensor

    def __init__(self, sources: Tensor, channels: int, form: UpsampleForm) -> None:
        super().__init__()
        self.form = form
        chosen = F.one_hot(sources.long(), channels).float()  # (C', 2, 2, C)
        native = chosen.reshape(-1, channels, 1, 1)  # (4 C', C, 1, 1)
        self.register_buffer("kernel", native if form == "native" else chosen.permute(3, 0, 1, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W)."""
        if self.form == "native":
            return F.pixel_shuffle(F.conv2d(x, self.kernel), 2)
        return F.conv_transpose2d(x, self.kernel, stride=2)


class RepeatChannels(nn.Module):
    """Each channel `multiplied` times in a row, as a 1x1 convolution of zeros and ones."""

    kernel: Tensor

    def __init__(self, channels: int, times: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.eye(channels).repeat_interleave(times, 0)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C*times, H, W)."""
        return F.conv2d(x, self.kernel)


class ImageAttention(nn.Module):
    """Self-attention of one head over all positions of a map, some queries at a time: no more scores than MOST_SCORES."""

    def __init__(self, q: nn.Conv2d, k: nn.Conv2d, v: nn.Conv2d, out: nn.Conv2d, forms: ImageForms) -> None:
        """`q` with 1 / sqrt(C) in its tensors."""
        super().__init__()
        self.q, self.k, self.v, self.out, self.columns = q, k, v, out, forms.columns

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = (p(x).flatten(2) for p in (self.q, self.k, self.v))  # (B, C, N)
        positions = q.shape[2]
        step = max(1, min(positions, MOST_SCORES // positions))
        cuts = [(start, min(step, positions - start)) for start in range(0, positions, step)]
        mixed = self._columns(q, k, v, cuts) if self.columns else self._rows(q, k, v, cuts)
        out: Tensor = self.out(mixed.reshape(x.shape))
        return out

    @staticmethod
    def _columns(q: Tensor, k: Tensor, v: Tensor, cuts: list[tuple[int, int]]) -> Tensor:
        keys = k.transpose(1, 2)  # (B, N, C)
        parts = [torch.matmul(v, torch.matmul(keys, _cut(q, cut, 2, len(cuts))).softmax(1)) for cut in cuts]  # (B, C, n) each
        return _joined(parts, 2)

    @staticmethod
    def _rows(q: Tensor, k: Tensor, v: Tensor, cuts: list[tuple[int, int]]) -> Tensor:
        rows, values = q.transpose(1, 2), v.transpose(1, 2)  # (B, N, C) each
        parts = [torch.bmm(torch.bmm(_cut(rows, cut, 1, len(cuts)), k).softmax(2), values) for cut in cuts]  # (B, n, C) each
        return _joined(parts, 1).transpose(1, 2)


class LinearAttention(nn.Module):
    """Attention with ReLU in place of softmax, which needs no scores: v (k^T q) with the ones of k^T as its denominator.

    Each of `q`, `k` and `v` makes (B, heads*d, H, W). Keys are divided by their number, which cancels, so that half precision
    can hold the sums over a map; a denominator below its smallest normal number counts as that one.
    """

    def __init__(self, q: nn.Module, k: nn.Module, v: nn.Module, dim: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.dim = q, k, v, dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads*d, H, W)."""
        positions = x.shape[2] * x.shape[3]
        q, k, v = F.relu(self.q(x)), F.relu(self.k(x)) * (1.0 / positions), self.v(x)  # (B, heads*d, H, W)
        queries, keys, values = (t.reshape(-1, self.dim, positions) for t in (q, k, v))  # (B*heads, d, N)
        mixed = torch.bmm(torch.bmm(values, keys.transpose(1, 2)), queries)  # (B*heads, d, N)
        total = (k.mean((2, 3), keepdim=True) * float(positions)).reshape(-1, 1, self.dim)  # (B*heads, 1, d)
        mixed = mixed / torch.bmm(total, queries).clamp(min=LEAST_SQUARE)
        return mixed.reshape(x.shape[0], -1, x.shape[2], x.shape[3])


def _cut(x: Tensor, cut: tuple[int, int], dim: int, count: int) -> Tensor:
    """One slice; no operation where there is only one."""
    return x if count == 1 else x.narrow(dim, *cut)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _transposed(weight: Tensor, bias: Tensor | None, padding: int) -> nn.ConvTranspose2d:
    """A transposed convolution of stride 2 around tensors, weight (in, out, k, k)."""
    with without_storage():
        channels_in, channels_out, size = weight.shape[:3]
        layer = nn.ConvTranspose2d(channels_in, channels_out, size, stride=2, padding=padding, bias=bias is not None)
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _doubling(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """Of each axis: output 2i sees inputs i-1 (tap 0) and i (taps 1 and 2), output 2i+1 sees i (0 and 1) and i+1 (2)."""
    # rows: taps of the transposed kernel; columns: those of the convolution
    sums = conv.weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    weight = torch.einsum("ay,oiyx,bx->ioab", sums, conv.weight.detach(), sums)
    return _transposed(weight, conv.bias, 1)


def _shuffling(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """Output 2i+a of each axis sees inputs i-1, i, i+1 through the taps of its own channel: position a + 4 - 2t of tap t."""
    out, taps = conv.out_channels // 4, conv.weight.detach().flip(2, 3)  # tap t at 2 - t
    weight = taps.reshape(out, 2, 2, conv.in_channels, 3, 3).permute(3, 0, 4, 1, 5, 2)  # (in, out, tap, a, tap, b)
    bias = None if conv.bias is None else conv.bias.detach().reshape(out, 4)[:, 0].clone()
    return _transposed(weight.reshape(conv.in_channels, out, 6, 6), bias, 2)
