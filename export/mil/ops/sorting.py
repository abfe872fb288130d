"""Sorting and choosing (coremltools: topk, argsort of iOS15, iOS16 and iOS17, non_maximum_suppression)."""

from __future__ import annotations

import torch
from torch import Tensor

from snapgen_deploy.export.mil.ops.registry import op
from snapgen_deploy.export.mil.saved.types import ValueType


@op("argsort")
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Indices that sort x along `axis`; equal values keep their order."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


@op("topk")
def topk(
    x: Tensor,
    declared: tuple[ValueType, ...],
    *,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The k largest (ascending: smallest) values along `axis` in order, and where they are; k = -1 takes all.

    Of equal values the first comes first, which torch.topk does not promise; hence a stable sort.
    """
    count = x.shape[axis] if k == -1 else k
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    values, indices = values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
    return (values, indices) if return_indices else values


@op("non_maximum_suppression")
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float,
    max_boxes: int,
    opset: int,
    score_threshold: float = float("-inf"),
    per_class_suppression: bool = False,
) -> tuple[Tensor, ...]:
    """Greedy suppression of boxes (x, y, width, height; centre) that overlap a better one by more than `iou_threshold`.

    Up to iOS 16 boxes (n, B, 4), scores (n, B, K) and a fourth result with counts; from iOS 17 boxes (n, 4, B), scores
    (n, K, B) and three results. Unused places hold zeros, and -1 in the indices.
    """
    last = opset >= 7
    if last:
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
    n, _, classes = scores.shape
    kept_boxes, kept_scores = boxes.new_zeros(n, max_boxes, 4), scores.new_zeros(n, max_boxes, classes)
    kept = torch.full((n, max_boxes), -1, dtype=torch.int32)
    counts = torch.zeros(n, dtype=torch.int32)
    for i in range(n):
        chosen = _suppress(boxes[i], scores[i], iou_threshold, score_threshold, max_boxes, per_class_suppression)
        kept_boxes[i, : len(chosen)], kept_scores[i, : len(chosen)] = boxes[i, chosen], scores[i, chosen]
        kept[i, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
        counts[i] = len(chosen)
    if last:
        return kept_boxes.transpose(1, 2), kept_scores.transpose(1, 2), kept
    return kept_boxes, kept_scores, kept, counts


def _suppress(boxes: Tensor, scores: Tensor, overlap: float, least: float, most: int, per_class: bool) -> list[int]:
    best, labels = scores.max(1)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    areas = boxes[:, 2] * boxes[:, 3]
    chosen: list[int] = []
    for candidate in torch.argsort(best, descending=True, stable=True).tolist():
        if len(chosen) == most or not float(best[candidate]) >= least:
            break
        rivals = [c for c in chosen if not per_class or labels[c] == labels[candidate]]
        if rivals:
            sides = (torch.minimum(high[rivals], high[candidate]) - torch.maximum(low[rivals], low[candidate])).clamp(min=0)
            shared = sides[:, 0] * sides[:, 1]
            if bool((shared / (areas[rivals] + areas[candidate] - shared) > overlap).any()):
                continue
        chosen.append(candidate)
    return chosen
