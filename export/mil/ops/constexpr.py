"""Decompression of stored weights (coremltools: iOS16/constexpr_ops.py, iOS18/compression.py).

These run once, on arrays as stored, when a program is opened. Arithmetic is in float32; in device mode the result is then
rounded to the declared type.
"""

from __future__ import annotations

import math

import numpy as np

from snapgen_deploy.export.mil.ops.registry import op
from snapgen_deploy.export.mil.saved.blob import unpack_bits


def _real(x: np.ndarray) -> np.ndarray:
    real: np.ndarray = x.astype(np.float32)
    return real


def _plain(x: np.ndarray) -> np.ndarray:
    """Real values in float32, integers (a palette may hold quantised values) as they are."""
    return x if x.dtype.kind in "iu" else _real(x)


def _per_block(x: np.ndarray, blocks: tuple[int, ...]) -> np.ndarray:
    """x (d0, d1, ...) viewed as (blocks0, d0 / blocks0, blocks1, ...), so that per-block values broadcast against it."""
    shape: list[int] = []
    for size, count in zip(x.shape, blocks, strict=True):
        if size % count:
            raise ValueError(f"{size} values do not divide into {count} blocks (shape {x.shape}, blocks {blocks})")
        shape += [count, size // count]
    return x.reshape(shape)


def _block_values(x: np.ndarray) -> np.ndarray:
    """x (b0, b1, ...) as (b0, 1, b1, 1, ...)."""
    return x.reshape([n for size in x.shape for n in (size, 1)])


def shift_scale(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    """scale * (data - offset), one scale and offset per block; block sizes follow from the shapes."""
    values = _per_block(_real(data), scale.shape)
    if offset is not None:
        values = values - _block_values(_real(offset))
    scaled: np.ndarray = (values * _block_values(_real(scale))).reshape(data.shape)
    return scaled


def look_up(indices: np.ndarray, lut: np.ndarray, vector_axis: int | None) -> np.ndarray:
    """Palette values; lut (g0, g1, ..., palettes, vector) has one palette per block of `indices`.

    A vector lies along `vector_axis` of the result, in place of its index.
    """
    groups, (palettes, length) = lut.shape[:-2], lut.shape[-2:]
    first = (np.arange(math.prod(groups), dtype=np.int32) * palettes).reshape(groups)
    places = (_per_block(indices.astype(np.int32), groups) + _block_values(first)).reshape(indices.shape)
    table = _plain(lut)
    if length == 1:
        values: np.ndarray = table.reshape(-1)[places]
        return values
    if vector_axis is None:
        raise ValueError("vectors of palette values need vector_axis")
    axis = vector_axis % indices.ndim
    vectors: np.ndarray = np.moveaxis(table.reshape(-1, length)[places], -1, axis + 1)
    shape = list(indices.shape)
    shape[axis] *= length
    return vectors.reshape(shape)


def spread(nonzero: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values at the set places of `mask`, in row-major order, zeros elsewhere."""
    chosen = mask != 0
    if int(chosen.sum()) != nonzero.size:
        raise ValueError(f"the mask has {int(chosen.sum())} places, {nonzero.size} values are stored")
    dense = np.zeros(mask.shape, nonzero.dtype)
    dense[chosen] = nonzero.reshape(-1)
    return dense


@op("constexpr_affine_dequantize")
def constexpr_affine_dequantize(quantized_data: np.ndarray, zero_point: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    """scale * (data - zero point), both scalar or one per cell of `axis`."""

    def along(x: np.ndarray) -> np.ndarray:
        shape = [1] * quantized_data.ndim
        shape[axis] = -1
        return _real(x) if x.ndim == 0 else _real(x).reshape(shape)

    dense: np.ndarray = (_real(quantized_data) - along(zero_point)) * along(scale)
    return dense


@op("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None) -> np.ndarray:
    """scale * (data - offset) per block."""
    return shift_scale(data, scale, offset)


@op("constexpr_cast")
def constexpr_cast(source_val: np.ndarray, output_dtype: str) -> np.ndarray:
    """fp16 to fp32."""
    return _real(source_val)


@op("constexpr_lut_to_dense")
def constexpr_lut_to_dense(
    indices: np.ndarray, lut: np.ndarray, shape: tuple[int, ...] | None = None, vector_axis: int | None = None
) -> np.ndarray:
    """Palette values: iOS 16 with `shape` and packed indices for one palette, iOS 18 with a palette per block."""
    if shape is None:
        return look_up(indices, lut, vector_axis)
    bits = int(math.log2(lut.size))
    unpacked = unpack_bits(indices, bits, math.prod(shape))
    dense: np.ndarray = _plain(lut)[unpacked].reshape(shape)
    return dense


@op("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(nonzero_data: np.ndarray, mask: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Values at the places of a bit mask, packed (iOS 16, with `shape`) or not (iOS 18)."""
    if shape is not None:
        mask = unpack_bits(mask, 1, math.prod(shape)).reshape(shape)
    return spread(_plain(nonzero_data), mask)


@op("constexpr_lut_to_sparse")
def constexpr_lut_to_sparse(
    indices_mask: np.ndarray, indices_nonzero_data: np.ndarray, lut: np.ndarray, vector_axis: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mask and values for `constexpr_sparse_to_dense`; a vector takes as many places as it is long."""
    dense = look_up(spread(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1 and vector_axis is not None:
        mask = np.repeat(mask, lut.shape[-1], vector_axis)
    return mask, dense[mask != 0]


@op("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: np.ndarray, nonzero_data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mask and values for `constexpr_sparse_to_dense`, scaled by the block that each place is in."""
    return data_mask, shift_scale(spread(nonzero_data, data_mask), scale, offset)[data_mask != 0]
