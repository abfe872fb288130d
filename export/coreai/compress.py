"""Core AI programs in fewer bits: the weight passes of Apple's optimisation package, `coreai-opt`, on a converted fp16 program.

They compress constants of convolutions, products, gathers and transposes (`LAYERS`). They skip constants of transposed
convolutions, and those whose channels do not divide into groups, with a warning: `coreai_weights.skipped` lists them.
Palettes come from k-means in one dimension, which `coreai-opt` compiles on first use: it needs a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from snapgen_deploy.export.coreml.compress import BLOCK, GROUP, LEAST_VALUES, Exact, Linear, Palette

LAYERS = ("conv2d", "batch_matmul", "broadcasting_batch_matmul", "gather_nd", "transpose")  # coreai-opt 0.4.0, without prefixes

_How = Exact | Palette | Linear
PRECISIONS: Mapping[str, _How] = MappingProxyType(
    {
        "fp16": Exact("fp16"),
        "fp32": Exact("fp32"),
        **{f"palette{bits}": Palette(bits) for bits in (8, 6, 4)},
        **{f"palette{bits}-grouped": Palette(bits, GROUP) for bits in (8, 6, 4)},
        "int8": Linear(8, BLOCK),
        "int4": Linear(4, BLOCK),
    }
)


def compress(program: Any, how: _How) -> Any:
    """The program with its layers' weights in fewer bits, changed in place; a no-op for `Exact`.

    The same program gives the same weights: one worker, one thread, a fixed seed.
    """
    if isinstance(how, Exact):
        return program
    from coreai_opt.coreai_utils import CompressionGranularity, DType, palettize_weights, quantize_weights
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # the sums of k-means depend on how they are split
        if isinstance(how, Palette):
            grouped = how.group is not None
            return palettize_weights(
                program,
                lut_dtype=None,
                n_bits=how.bits,
                granularity=CompressionGranularity.PER_GROUPED_CHANNEL if grouped else CompressionGranularity.PER_TENSOR,
                group_size=how.group or GROUP,
                weight_num_threshold=LEAST_VALUES,
                num_kmeans_workers=1,
                enable_fast_kmeans_mode=False,  # it rounds weights to four decimals, whatever their scale
                in_place=True,
            )
        return quantize_weights(
            program,
            DType.INT8 if how.bits == 8 else DType.INT4,
            granularity=CompressionGranularity.PER_CHANNEL if how.block is None else CompressionGranularity.PER_BLOCK,
            block_size=how.block or BLOCK,
            weight_num_threshold=LEAST_VALUES,
            in_place=True,
        )
