"""Resizing and resampling of the last axes (coremltools: image_resizing.py of iOS15, iOS16 and iOS17)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from snapgen_deploy.export.mil.ops.registry import op

_Grid = Callable[[Tensor, float, int], Tensor]
"""Points in [0, size - 1] for `count` results: (0 ... count - 1, size, count) -> points, before clamping."""


def _aligned(i: Tensor, size: float, count: int) -> Tensor:
    return i * ((size - 1) / (count - 1)) if count > 1 else torch.zeros_like(i)


def _centred(i: Tensor, size: float, count: int) -> Tensor:
    return _aligned(i, size, count) if count > 1 else torch.full_like(i, (size - 1) / 2)


def _offset(i: Tensor, size: float, count: int) -> Tensor:
    return (i + 0.5) * (max(1.0, size - 1) / count)


GRIDS: dict[str, _Grid] = {
    "STRICT_ALIGN_CORNERS": _aligned,
    "ALIGN_CORNERS": _centred,
    "DEFAULT": lambda i, size, count: i * (size / count),
    "OFFSET_CORNERS": _offset,
    "UNALIGN_CORNERS": lambda i, size, count: (i + 0.5) * (size / count) - 0.5,
}
"""The sampling modes, as the documentation of `resize_bilinear` defines them."""


def _points(size: float, count: int, mode: str) -> Tensor:
    if mode not in GRIDS:
        raise ValueError(f"sampling mode {mode!r} is unknown; expected {', '.join(GRIDS)}")
    return GRIDS[mode](torch.arange(count, dtype=torch.float32), size, count).clamp(0, max(0.0, size - 1))


def _linear(x: Tensor, axis: int, count: int, mode: str) -> Tensor:
    """x with `count` linearly interpolated cells along `axis`."""
    size = x.shape[axis]
    if size == count and mode != "OFFSET_CORNERS":
        return x
    points = _points(size, count, mode)
    low = points.floor().long()
    part = (points - low).reshape(-1, *(1,) * (x.dim() - 1 - axis % x.dim()))
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=size - 1)), part)


def _nearest(x: Tensor, axis: int, count: int, mode: str) -> Tensor:
    """x with `count` cells along `axis`: rounded down in DEFAULT mode (as TensorFlow's), else to the nearest."""
    if x.shape[axis] == count and mode != "OFFSET_CORNERS":
        return x
    if mode == "DEFAULT":  # in integers: i * size / count in float32 may fall below an integer
        return x.index_select(axis, torch.arange(count) * x.shape[axis] // count)
    return x.index_select(axis, (_points(x.shape[axis], count, mode) + 0.5).floor().long())


def _bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    if mode in ("UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS") and x.numel():
        flat = x.reshape(1, math.prod(x.shape[:-2]), *x.shape[-2:])
        resized = F.interpolate(flat, (height, width), mode="bilinear", align_corners=mode == "STRICT_ALIGN_CORNERS")
        return resized.reshape(*x.shape[:-2], height, width)
    return _linear(_linear(x, -2, height, mode), -1, width, mode)


def _scaled(x: Tensor, height: float, width: float) -> tuple[int, int]:
    return math.floor(x.shape[-2] * height), math.floor(x.shape[-1] * width)


@op("upsample_nearest_neighbor", moves=True)
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0) -> Tensor:
    """Cells repeated; sizes are rounded down."""
    height, width = _scaled(x, scale_factor_height, scale_factor_width)
    if height % x.shape[-2] == 0 and width % x.shape[-1] == 0:
        rows, cols = height // x.shape[-2], width // x.shape[-1]
        cells = x[..., :, None, :, None].expand(*x.shape[:-1], rows, x.shape[-1], cols)
        return cells.reshape(*x.shape[:-2], height, width)
    return _nearest(_nearest(x, -2, height, "DEFAULT"), -1, width, "DEFAULT")


@op("resize_nearest_neighbor", moves=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """The cell at floor(i * size / target)."""
    return _nearest(_nearest(x, -2, target_size_height, "DEFAULT"), -1, target_size_width, "DEFAULT")


@op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Linear interpolation; the effective scale is that of the rounded-down sizes."""
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise ValueError("align_corners and half_pixel_centers exclude each other")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _bilinear(x, *_scaled(x, scale_factor_height, scale_factor_width), mode)


@op("resize_bilinear")
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Linear interpolation at the grid of `sampling_mode`."""
    return _bilinear(x, target_size_height, target_size_width, sampling_mode)


@op("resize")
def resize(
    x: Tensor,
    shape: tuple[int, ...],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last `resized_dims` axes get the last sizes of `shape`; 0 keeps an axis as it is."""
    methods = {"LINEAR": _linear, "NEAREST_NEIGHBOR": _nearest}
    if interpolation_mode not in methods:
        raise ValueError(f"interpolation mode {interpolation_mode!r} is unknown")
    wanted = shape[len(shape) - resized_dims :]
    y = x if x.is_floating_point() or interpolation_mode != "LINEAR" else x.float()
    for axis, count in zip(range(-resized_dims, 0), wanted, strict=True):
        y = methods[interpolation_mode](y, axis, count or x.shape[axis], sampling_mode)
    return y


# Resampling at arbitrary places


def _fold(index: Tensor, size: int, mode: str) -> Tensor:
    """Indices outside an axis brought inside by a padding mode."""
    if mode == "border" or size == 1:
        return index.clamp(0, size - 1)
    if mode == "symmetric":  # edge cells are repeated: period 2 * size
        index = torch.remainder(index, 2 * size)
        return torch.where(index >= size, 2 * size - 1 - index, index)
    index = torch.remainder(index, 2 * (size - 1))
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def _pick(x: Tensor, rows: Tensor, cols: Tensor, mode: str, value: float) -> Tensor:
    """x (n, C, H, W) at integer rows and cols (n, h, w) -> (n, C, h, w)."""
    height, width = x.shape[-2:]
    if mode == "constant":
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        rows, cols = rows.clamp(0, height - 1), cols.clamp(0, width - 1)
    else:
        rows, cols = _fold(rows, height, mode), _fold(cols, width, mode)
    flat = (rows * width + cols).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    picked = x.flatten(2).gather(2, flat).reshape(*x.shape[:2], *rows.shape[1:])
    return torch.where(inside[:, None], picked, value) if mode == "constant" else picked


def sample(x: Tensor, rows: Tensor, cols: Tensor, method: str, mode: str, value: float) -> Tensor:
    """x (n, C, H, W) at real rows and cols (n, h, w), bilinear or nearest (halves to even)."""
    if mode not in ("constant", "border", "reflection", "symmetric"):
        raise ValueError(f"padding mode {mode!r} is unknown")
    if method == "nearest":
        return _pick(x, rows.round().long(), cols.round().long(), mode, value)
    if method != "bilinear":
        raise ValueError(f"sampling mode {method!r} is unknown")
    top, left = rows.floor(), cols.floor()
    down, right = (rows - top)[:, None], (cols - left)[:, None]
    r, c = top.long(), left.long()
    upper = torch.lerp(_pick(x, r, c, mode, value), _pick(x, r, c + 1, mode, value), right)
    lower = torch.lerp(_pick(x, r + 1, c, mode, value), _pick(x, r + 1, c + 1, mode, value), right)
    return torch.lerp(upper, lower, down)


def _pixels(coordinate: Tensor, size: int, mode: str, align: bool) -> Tensor:
    """Coordinates of a mode as cell positions 0 ... size - 1."""
    if mode == "unnormalized":
        return coordinate
    if mode == "normalized_minus_one_to_one":
        coordinate = (coordinate + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise ValueError(f"coordinates mode {mode!r} is unknown")
    return coordinate * (size - 1) if align else coordinate * size - 0.5


@op("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    *,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x (B, C, H, W) at coordinates (B, h, w, 2), given as (column, row)."""
    places = coordinates.float()
    cols = _pixels(places[..., 0], x.shape[-1], coordinates_mode, align_corners)
    rows = _pixels(places[..., 1], x.shape[-2], coordinates_mode, align_corners)
    return sample(x, rows, cols, sampling_mode, padding_mode, padding_value)


@op("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    *,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x sampled at column a0 x + a1 y + a2 and row b0 x + b1 y + b2 for each normalised place (x, y) of the result."""
    if coordinates_mode != "normalized_minus_one_to_one" or not align_corners:
        raise ValueError(f"coordinates {coordinates_mode!r} with align_corners {align_corners} are not defined")
    y = torch.linspace(-1, 1, output_height)[None, :, None]
    z = torch.linspace(-1, 1, output_width)[None, None, :]
    m = transform_matrix.expand(x.shape[0], 6)[:, :, None, None]
    cols = _pixels(m[:, 0] * z + m[:, 1] * y + m[:, 2], x.shape[-1], coordinates_mode, align_corners)
    rows = _pixels(m[:, 3] * z + m[:, 4] * y + m[:, 5], x.shape[-2], coordinates_mode, align_corners)
    return sample(x, rows, cols, sampling_mode, padding_mode, padding_value)


@op("crop_resize")
def crop_resize(
    x: Tensor,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
    *,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes of x (B, C, H, W), each resized bilinearly with `resize_bilinear`'s grids.

    Up to iOS 16 `roi` (N, 1, 4 or 5, 1, 1): N boxes of every image -> (N, B, C, h, w), or with an image index in front of
    each box -> (N, 1, C, h, w). From iOS 17 `boxes` (N, 4) and `box_indices` (N,) -> (N, C, h, w).
    """
    if roi is not None:
        table = roi.flatten(1).float()
        every = table.shape[1] == 4
        count = x.shape[0] if every else 1
        images = torch.arange(count).repeat(len(table)) if every else table[:, 0].long()
        corners = table.repeat_interleave(count, 0) if every else table[:, 1:]
    elif boxes is not None:
        images = torch.arange(len(boxes)) if box_indices is None else box_indices.long()
        corners = boxes.float()
    else:
        raise ValueError("neither roi nor boxes given")
    height, width = x.shape[-2:]
    top, left, bottom, right = _corners(corners, box_coordinate_mode)
    scale_y, scale_x = ((height - 1), (width - 1)) if normalized_coordinates else (1, 1)
    rows = _box_grid(top * scale_y * spatial_scale, bottom * scale_y * spatial_scale, target_height, sampling_mode)
    cols = _box_grid(left * scale_x * spatial_scale, right * scale_x * spatial_scale, target_width, sampling_mode)
    shape = (len(corners), target_height, target_width)
    rows, cols = rows[:, :, None].expand(shape), cols[:, None, :].expand(shape)
    outside = (rows < 0) | (rows > height - 1) | (cols < 0) | (cols > width - 1)
    sampled = sample(x[images], rows, cols, "bilinear", "border", 0.0)
    result = torch.where(outside[:, None], pad_value, sampled)
    return result if roi is None else result.reshape(len(roi), count, *result.shape[1:])


def _corners(boxes: Tensor, mode: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, bottom, right of each box."""
    a, b, c, d = boxes.unbind(1)
    if mode.endswith("WIDTH_FIRST"):
        a, b, c, d = b, a, d, c
    if mode.startswith("CORNERS"):
        return a, b, c, d
    if not mode.startswith("CENTER_SIZE"):
        raise ValueError(f"box coordinate mode {mode!r} is unknown")
    return a - c / 2, b - d / 2, a + c / 2, b + d / 2


def _box_grid(start: Tensor, end: Tensor, count: int, mode: str) -> Tensor:
    """Sampling points (N, count) from start to end; an axis of `end - start + 1` cells placed at `start`."""
    grids = [s + _points(float(e - s) + 1, count, mode) for s, e in zip(start, end, strict=True)]
    return torch.stack(grids) if grids else start.new_zeros(0, count)
