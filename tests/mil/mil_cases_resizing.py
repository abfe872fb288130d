"""Cases for resizing, resampling and cropping; torch and numpy are the oracle."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from tests.mil.mil_cases_elementwise import real
from tests.mil.mil_harness import Case, mb, t


def _grid(size: int, count: int, mode: str) -> np.ndarray:
    """Sampling points, formula by formula from the documentation of resize_bilinear."""
    i = np.arange(count)
    if mode == "ALIGN_CORNERS" and count == 1:
        return np.array([(size - 1) / 2])
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = i * (size - 1) / max(count - 1, 1)
    elif mode == "DEFAULT":
        points = i * (size - size / count) / max(count - 1, 1)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / count
        points = 0.5 * delta + i * delta
    else:
        points = i * size / count + 0.5 * size / count - 0.5
    return np.minimum(size - 1, np.maximum(0, points))


def _resize(x: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    for axis, count in ((-2, height), (-1, width)):
        points = _grid(x.shape[axis], count, mode)
        low = np.floor(points).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        part = (points - low).reshape((-1, 1) if axis == -2 else (-1,))
        x = np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part
    return x.astype(np.float32)


_MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
_COORDS = real(2, 3, 5, 2, low=-1.6, high=1.6)


def _grid_sample(x: np.ndarray, c: np.ndarray, mode: str, padding: str, align: bool) -> torch.Tensor:
    return F.grid_sample(t(x), t(c), mode=mode, padding_mode=padding, align_corners=align)


def _resample(padding: str, torch_padding: str, method: str, align: bool) -> Case:
    return Case(
        f"resample__{padding}_{method}_{align}",
        {"x": real(2, 3, 4, 5), "c": _COORDS},
        lambda x, c: mb.resample(
            x=x,
            coordinates=c,
            sampling_mode=method,
            padding_mode=padding,
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=align,
        ),
        lambda x, c: _grid_sample(x, c, method, torch_padding, align),
    )


_MATRIX = np.array([[0.9, 0.2, 0.1, -0.3, 1.1, -0.2]], np.float32)
_BOXES = np.array([[0.5, 1.0, 3.0, 4.5], [1.0, 0.0, 6.0, 2.0]], np.float32)
_CENTRED = np.stack(  # the same boxes as centre and size, in fractions of a 6 x 7 image's last cell
    [
        (_BOXES[:, 0] + _BOXES[:, 2]) / 2 / 5,
        (_BOXES[:, 1] + _BOXES[:, 3]) / 2 / 6,
        (_BOXES[:, 2] - _BOXES[:, 0]) / 5,
        (_BOXES[:, 3] - _BOXES[:, 1]) / 6,
    ],
    1,
).astype(np.float32)


def _crops(x: np.ndarray, height: int, width: int, mode: str, pad: float) -> np.ndarray:
    """Box i (top, left, bottom, right) of image i; a box has bottom - top + 1 rows for the grid formulas."""
    out = np.zeros((2, x.shape[1], height, width), np.float32)
    for n, (top, left, bottom, right) in enumerate(_BOXES):
        rows = top + _real_grid(bottom - top + 1, height, mode)
        cols = left + _real_grid(right - left + 1, width, mode)
        for i, r in enumerate(rows):
            for j, c in enumerate(cols):
                if not (0 <= r <= x.shape[2] - 1 and 0 <= c <= x.shape[3] - 1):
                    out[n, :, i, j] = pad
                    continue
                y0, x0 = int(r), int(c)
                y1, x1 = min(y0 + 1, x.shape[2] - 1), min(x0 + 1, x.shape[3] - 1)
                top_row = x[n, :, y0, x0] * (1 - (c - x0)) + x[n, :, y0, x1] * (c - x0)
                low_row = x[n, :, y1, x0] * (1 - (c - x0)) + x[n, :, y1, x1] * (c - x0)
                out[n, :, i, j] = top_row * (1 - (r - y0)) + low_row * (r - y0)
    return out


def _real_grid(size: float, count: int, mode: str) -> np.ndarray:
    return _grid(size, count, mode)  # type: ignore[arg-type]


RESIZING = [
    *(
        Case(
            f"resize_bilinear__{mode.lower()}_{height}x{width}",
            {"x": real(1, 2, 4, 5)},
            lambda x, m=mode, h=height, w=width: mb.resize_bilinear(
                x=x, target_size_height=h, target_size_width=w, sampling_mode=m
            ),
            lambda x, m=mode, h=height, w=width: _resize(x, h, w, m),
        )
        for mode in _MODES
        for height, width in ((7, 9), (3, 2), (1, 5))
    ),
    Case(
        "upsample_bilinear__align",
        {"x": real(1, 2, 3, 4)},
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=True),
        lambda x: F.interpolate(t(x), (6, 12), mode="bilinear", align_corners=True),
    ),
    Case(
        "upsample_bilinear__half",
        {"x": real(1, 2, 3, 4)},
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2.5, scale_factor_width=1.6, align_corners=False),
        lambda x: F.interpolate(
            t(x), scale_factor=(2.5, 1.6), mode="bilinear", align_corners=False, recompute_scale_factor=True
        ),
    ),
    Case(
        "upsample_bilinear__plain",
        {"x": real(1, 2, 3, 4)},
        lambda x: mb.upsample_bilinear(
            x=x, scale_factor_height=2, scale_factor_width=2, align_corners=False, half_pixel_centers=False
        ),
        lambda x: _resize(x, 6, 8, "DEFAULT"),
        ios=16,
    ),
    Case(
        "upsample_nearest_neighbor",
        {"x": real(1, 2, 3, 4)},
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        lambda x: x.repeat(2, 2).repeat(3, 3),
    ),
    Case(
        "upsample_nearest_neighbor__fraction",
        {"x": real(1, 2, 4, 4)},
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=1.5, scale_factor_width=0.5),
        lambda x: F.interpolate(t(x), (6, 2), mode="nearest"),
    ),
    Case(
        "resize_nearest_neighbor",
        {"x": real(1, 2, 5, 7)},
        lambda x: mb.resize_nearest_neighbor(x=x, target_size_height=8, target_size_width=3),
        lambda x: F.interpolate(t(x), (8, 3), mode="nearest"),
    ),
    Case(
        "resize__linear",
        {"x": real(2, 3, 4)},
        lambda x: mb.resize(
            x=x, shape=np.array([9, 0, 7], np.int32), resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"
        ),
        lambda x: _resize(x, 3, 7, "UNALIGN_CORNERS"),
        ios=17,
    ),
    Case(
        "resize__nearest",
        {"x": real(2, 3, 4)},
        lambda x: mb.resize(
            x=x, shape=np.array([5, 6], np.int32), resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"
        ),
        lambda x: F.interpolate(t(x)[None], (5, 6), mode="nearest")[0],
        ios=17,
    ),
    Case(
        "crop",
        {"x": real(1, 2, 6, 7)},
        lambda x: mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]),
        lambda x: x[:, :, 1:4, :4],
    ),
    *(
        _resample(padding, torch_padding, method, align)
        for padding, torch_padding, align in (
            ("constant", "zeros", True),
            ("constant", "zeros", False),
            ("border", "border", False),
            ("reflection", "reflection", True),
            ("symmetric", "reflection", False),
        )
        for method in ("bilinear", "nearest")
    ),
    Case(
        "affine",
        {"x": real(1, 2, 4, 5)},
        lambda x: mb.affine(
            x=x,
            transform_matrix=_MATRIX,
            output_height=3,
            output_width=6,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        ),
        lambda x: _grid_sample(
            x, F.affine_grid(t(_MATRIX.reshape(1, 2, 3)), [1, 2, 3, 6], align_corners=True).numpy(), "bilinear", "zeros", True
        ),
    ),
    *(
        Case(
            f"crop_resize__{mode.lower()}",
            {"x": real(2, 3, 6, 7)},
            lambda x, m=mode: mb.crop_resize(
                x=x,
                boxes=_BOXES,
                box_indices=np.array([0, 1], np.int32),
                target_height=3,
                target_width=4,
                sampling_mode=m,
                pad_value=9.0,
            ),
            lambda x, m=mode: _crops(x, 3, 4, m, 9.0),
            ios=17,
        )
        for mode in _MODES
    ),
    Case(
        "crop_resize__indexed_roi",
        {"x": real(1, 3, 6, 7)},
        lambda x: mb.crop_resize(
            x=x,
            roi=np.concatenate([[[0], [0]], _BOXES[:, [1, 0, 3, 2]]], 1).astype(np.float32).reshape(2, 1, 5, 1, 1),
            target_height=3,
            target_width=4,
            box_coordinate_mode="CORNERS_WIDTH_FIRST",
            sampling_mode="ALIGN_CORNERS",
        ),
        lambda x: _crops(x.repeat(2, 0), 3, 4, "ALIGN_CORNERS", 0.0)[:, None],
    ),
    Case(
        "crop_resize__roi_of_every_image",
        {"x": real(2, 3, 6, 7)},
        lambda x: mb.crop_resize(
            x=x,
            roi=_CENTRED.reshape(2, 1, 4, 1, 1),
            target_height=2,
            target_width=3,
            normalized_coordinates=True,
            box_coordinate_mode="CENTER_SIZE_HEIGHT_FIRST",
            sampling_mode="STRICT_ALIGN_CORNERS",
        ),
        lambda x: np.stack([_crops(x[[i, i]], 2, 3, "STRICT_ALIGN_CORNERS", 0.0) for i in range(2)], 1),
        tolerance=1e-4,
    ),
]
