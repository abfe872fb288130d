"""More cases of `mil_cases_ranks.VECTORS`: operations on maps whose number, 0 included, only the run tells."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.mil.mil_cases_ranks import RoundTrip, column, ones
from tests.mil.mil_harness import mb


def _map(m: Any) -> Any:
    """m as n maps of 2 channels, 2 rows and 3 columns, all alike."""
    return mb.tile(x=mb.expand_dims(x=m, axes=[1, 2]), reps=[1, 2, 2, 1])


def _maps(m: np.ndarray) -> np.ndarray:
    return np.tile(m[:, None, None], (1, 2, 2, 1))


BATCHES: dict[str, RoundTrip] = {
    "avg_pool": (
        lambda v, m, i: mb.avg_pool(x=_map(m), kernel_sizes=[2, 1], strides=[2, 1], pad_type="valid"),
        lambda v, m, i: _maps(m)[:, :, :1],
    ),
    "batch_norm": (
        lambda v, m, i: mb.batch_norm(x=_map(m), mean=np.zeros(2, np.float32), variance=np.ones(2, np.float32), epsilon=0.0),
        lambda v, m, i: _maps(m),
    ),
    "conv_transpose": (
        lambda v, m, i: mb.conv_transpose(x=_map(m), weight=np.full((2, 1, 1, 1), 0.5, np.float32)),
        lambda v, m, i: _maps(m)[:, :1],
    ),
    "crop": (
        lambda v, m, i: mb.crop(x=_map(m), crop_height=[1, 0], crop_width=[0, 1]),
        lambda v, m, i: _maps(m)[:, :, 1:, :2],
    ),
    "depth_to_space": (
        lambda v, m, i: mb.depth_to_space(x=mb.concat(values=[_map(m)] * 2, axis=1), block_size=2),
        lambda v, m, i: np.repeat(np.repeat(_maps(m)[:, :1], 2, 2), 2, 3),
    ),
    "einsum": (
        lambda v, m, i: mb.einsum(values=[_map(m), np.ones((1, 3, 2, 4), np.float32)], equation="nchw,nwhu->nchu"),
        lambda v, m, i: np.repeat(_maps(m).sum(-1, keepdims=True), 4, -1),
    ),
    "instance_norm": (
        lambda v, m, i: mb.instance_norm(x=_map(m), epsilon=1.0),
        lambda v, m, i: (_maps(m) - _maps(m).mean((2, 3), keepdims=True)) / np.sqrt(_maps(m).var((2, 3), keepdims=True) + 1),
    ),
    "l2_norm": (
        lambda v, m, i: mb.l2_norm(x=_map(m), epsilon=1.0),
        lambda v, m, i: _maps(m) / np.sqrt((_maps(m) ** 2).sum((1, 2, 3), keepdims=True) + 1),
    ),
    "local_response_norm": (
        lambda v, m, i: mb.local_response_norm(x=_map(m), size=1, alpha=0.0, beta=1.0, k=2.0),
        lambda v, m, i: _maps(m) / 2,
    ),
    "max_pool": (
        lambda v, m, i: mb.max_pool(x=_map(m), kernel_sizes=[2, 3], pad_type="valid"),
        lambda v, m, i: _maps(m)[:, :, :1, 2:],
    ),
    "pixel_shuffle": (
        lambda v, m, i: mb.pixel_shuffle(x=mb.concat(values=[_map(m)] * 2, axis=1), upscale_factor=2),
        lambda v, m, i: np.repeat(np.repeat(_maps(m)[:, :1], 2, 2), 2, 3),
    ),
    "quantize": (
        lambda v, m, i: mb.dequantize(
            input=mb.quantize(input=m, scale=np.float32(0.5), output_dtype="int8"), scale=np.float32(0.5)
        ),
        lambda v, m, i: np.round(m / 0.5) * 0.5,
    ),
    "resample": (
        lambda v, m, i: mb.resample(
            x=_map(m),
            coordinates=mb.mul(
                x=mb.slice_by_index(
                    x=_map(m), begin=[0, 0, 0, 0], end=[0, 2, 2, 2], begin_mask=[True] * 4, end_mask=[True, True, True, False]
                ),
                y=np.float32(0),
            ),
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="unnormalized",
            align_corners=True,
        ),
        lambda v, m, i: np.tile(_maps(m)[:, :, :1, :1], (1, 1, 2, 2)),
    ),
    "resize_nearest_neighbor": (
        lambda v, m, i: mb.resize_nearest_neighbor(x=_map(m), target_size_height=4, target_size_width=3),
        lambda v, m, i: np.repeat(_maps(m), 2, 2),
    ),
    "reverse_sequence": (
        lambda v, m, i: mb.reverse_sequence(x=m, lengths=mb.add(x=ones(i), y=np.int32(1)), seq_axis=1, batch_axis=0),
        lambda v, m, i: m[:, [1, 0, 2]],
    ),
    "scatter_along_axis": (
        lambda v, m, i: mb.scatter_along_axis(data=m, indices=column(ones(i)), updates=column(v), axis=1, mode="update"),
        lambda v, m, i: np.stack([m[:, 0], v, m[:, 2]], 1),
    ),
    "upsample_nearest_neighbor": (
        lambda v, m, i: mb.upsample_nearest_neighbor(x=_map(m), scale_factor_height=2.0, scale_factor_width=1.5),
        lambda v, m, i: np.repeat(_maps(m), 2, 2)[..., [0, 0, 1, 2]],
    ),
}
