"""Operations that were seen to leave the Neural Engine, each with where that was seen.

Nobody outside Apple knows the whole list, and it changes with chip and system: an entry is a hint with a source, and the
compute plan of a Mac or a device (`placement`) is the judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CATALOG = "https://github.com/sbryngelson/ANEForge/blob/main/docs/op-catalog.md"
RF_DETR = "https://github.com/roboflow/rf-detr/pull/1495"
HOLLANCE = "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md"
TOPK = "https://github.com/apple/coreai-torch/issues/66"

_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("recurrent layers", ("gru", "lstm", "rnn")),
    ("control flow", ("cond", "while_loop")),
    ("lists", ("make_list", "list_gather", "list_length", "list_read", "list_scatter", "list_write")),
    ("random numbers", ("random_bernoulli", "random_categorical", "random_normal", "random_uniform")),
    ("sorting", ("topk", "argsort", "non_maximum_suppression")),
    ("trigonometry", ("acos", "acosh", "asin", "asinh", "atanh", "cosh", "sinh", "tan")),
    ("logic", ("logical_and", "logical_or", "logical_xor")),
    ("shapes at run time", ("shape", "non_zero", "range_1d", "sliding_windows")),
    ("no kernel", ("mod", "reduce_prod", "band_part", "one_hot", "reverse_sequence", "cumsum", "classify")),
)
OFF_ENGINE: Mapping[str, str] = MappingProxyType({op: why for why, ops in _GROUPS for op in ops})
"""Operation type -> the group that says why."""

GATHERS = frozenset({"gather", "gather_along_axis", "gather_nd"})
SCATTERS = frozenset({"scatter", "scatter_along_axis", "scatter_nd"})

MAX_KERNEL_WIDTH = 15
"""Widest kernel that the engine's compiler took. Source: ANEForge, docs/developer/op-quirks.md (convolution family)."""
