"""Operations that rearrange, join or repeat values (coremltools: tensor_transformation.py and parts of tensor_operation.py)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_deploy.export.mil.ops.registry import op


@op("identity", moves=True)
def identity(x: Tensor) -> Tensor:
    """x."""
    return x


@op("reshape", moves=True)
def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x in another shape; one -1 is inferred, 0 stands for x's size at that axis, counted from the last one.

    Up to iOS 16 a 0 demands equal ranks, where counting from either end is the same; further axes count as 1 (iOS 17).
    Where that leaves cells that an empty x does not have, the 0 is a size that the program computed.
    """
    missing = len(shape) - x.dim()
    sizes = [n if n else (x.shape[i - missing] if i >= missing else 1) for i, n in enumerate(shape)]
    return x.reshape(shape if x.numel() == 0 and math.prod(sizes) > 0 else sizes)


@op("reshape_like", moves=True)
def reshape_like(
    x: Tensor, ref_tensors: tuple[Tensor, ...], begins: tuple[int, ...], ends: tuple[int, ...], end_masks: tuple[bool, ...]
) -> Tensor:
    """x in the shape that the chosen axes of the reference tensors make together."""
    sizes: list[int] = []
    for ref, begin, end, masked in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes.extend(ref.shape[begin:] if masked else ref.shape[begin:end])
    return x.reshape(sizes)


@op("expand_dims", moves=True)
def expand_dims(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """New axes of size 1 at these positions of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@op("squeeze", moves=True)
def squeeze(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """x without these axes (all, when not given) as far as they have size 1."""
    return x.squeeze() if axes is None else x.squeeze(axes)


@op("transpose", moves=True)
def transpose(x: Tensor, perm: tuple[int, ...]) -> Tensor:
    """Axis i of the result is axis perm[i] of x."""
    return x.permute(perm)


@op("flatten2d", moves=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """The axes before `axis` as rows, the rest as columns."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("concat", moves=True)
def concat(values: tuple[Tensor, ...], axis: int, interleave: bool = False) -> Tensor:
    """Joined along `axis`, or element by element along it; scalars join into a vector."""
    if values[0].dim() == 0:
        values = tuple(v[None] for v in values)
    if not interleave:
        return torch.cat(values, axis)
    axis = axis % values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@op("stack", moves=True)
def stack(values: tuple[Tensor, ...], axis: int) -> Tensor:
    """Joined along a new axis."""
    return torch.stack(values, axis)


@op("split", moves=True)
def split(x: Tensor, axis: int, num_splits: int = 0, split_sizes: tuple[int, ...] = ()) -> tuple[Tensor, ...]:
    """Parts along `axis`: of these sizes, or `num_splits` equal ones."""
    if split_sizes:
        return tuple(x.split(split_sizes, axis))
    if num_splits < 1 or x.shape[axis] % num_splits:
        raise ValueError(f"{x.shape[axis]} cells do not divide into {num_splits} equal parts")
    return tuple(x.chunk(num_splits, axis))


@op("tile", moves=True)
def tile(x: Tensor, reps: tuple[int, ...]) -> Tensor:
    """x repeated `reps[i]` times along axis i."""
    if len(reps) != x.dim():
        raise ValueError(f"reps needs {x.dim()} numbers, got {len(reps)}")
    return x.repeat(reps)


@op("reverse", moves=True)
def reverse(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """x backwards along these axes (all, when not given)."""
    return x.flip(tuple(range(x.dim())) if axes is None else axes)


@op("reverse_sequence", moves=True)
def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """For sample i along `batch_axis`, the first lengths[i] cells along `seq_axis` backwards."""
    seq_axis, batch_axis = seq_axis % x.dim(), batch_axis % x.dim()
    moved = x.movedim((batch_axis, seq_axis), (0, 1))
    steps = torch.arange(moved.shape[1])[None]  # (1, length)
    counts = lengths.long()[:, None]  # (batch, 1)
    order = torch.where(steps < counts, counts - 1 - steps, steps)  # (batch, length)
    rows = torch.arange(moved.shape[0])[:, None]
    return moved[rows, order].movedim((0, 1), (batch_axis, seq_axis))


@op("pixel_shuffle", moves=True)
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """(n, C * f^2, H, W) -> (n, C, H * f, W * f); channels are the slowest part of the first axis."""
    return F.pixel_shuffle(x, upscale_factor)


@op("pixel_unshuffle", moves=True)
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """The reverse of `pixel_shuffle`."""
    return F.pixel_unshuffle(x, downscale_factor)


@op("depth_to_space", moves=True)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """(n, C * b^2, H, W) -> (n, C, H * b, W * b); channels are the fastest part of the first axis (as TensorFlow's)."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, block_size, block_size, c // block_size**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block_size**2, h * block_size, w * block_size)


@op("space_to_depth", moves=True)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """The reverse of `depth_to_space`."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block_size, block_size, w // block_size, block_size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block_size**2, h // block_size, w // block_size)


@op("space_to_batch", moves=True)
def space_to_batch(x: Tensor, block_shape: tuple[int, ...], paddings: tuple[int, ...]) -> Tensor:
    """Cells of each block go to the batch axis, the place within the block being its slowest part (as TensorFlow's)."""
    bh, bw = block_shape
    top, bottom, left, right = paddings
    x = F.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    return x.reshape(n, c, h // bh, bh, w // bw, bw).permute(3, 5, 0, 1, 2, 4).reshape(n * bh * bw, c, h // bh, w // bw)


@op("batch_to_space", moves=True)
def batch_to_space(x: Tensor, block_shape: tuple[int, ...], crops: tuple[int, ...]) -> Tensor:
    """The reverse of `space_to_batch`, cropped afterwards."""
    bh, bw = block_shape
    top, bottom, left, right = crops
    n, c, h, w = x.shape
    y = x.reshape(bh, bw, n // (bh * bw), c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n // (bh * bw), c, h * bh, w * bw)
    return y[:, :, top : h * bh - bottom, left : w * bw - right]
