"""Scores how well pictures match their prompts: shares of entirely right objects and prompts, with 95 % intervals.

Surplus objects count as wrong: objects = sum of right / sum of max(required, found).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from examples.shapes.detector import Verdict, judge
from examples.shapes.prompts import parse
from examples.shapes.scenes import Picture
from snapgen_deploy.system.quantiles import bootstrap_interval

RESAMPLES = 2000


def score_pictures(prompts: Sequence[str], pictures: Sequence[Picture]) -> dict[str, object]:
    """Score pictures, uint8 (128, 128, 3): {prompts, objects, objects_interval, entirely, entirely_interval, background}.

    The intervals are percentile bootstraps over prompts, since the objects of one picture are not independent.
    """
    return summarise([judge(np.asarray(p), parse(text)) for text, p in zip(prompts, pictures, strict=True)])


def right_and_counted(prompts: Sequence[str], pictures: Sequence[Picture]) -> list[tuple[int, int]]:
    """For each picture, the numbers of entirely right and of counted objects; a scorer for `export --scorer`."""
    verdicts = [judge(np.asarray(p), parse(text)) for text, p in zip(prompts, pictures, strict=True)]
    return [(sum(v.objects), max(len(v.objects), v.found)) for v in verdicts]


def summarise(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """The shares over all pictures."""
    right = np.array([sum(v.objects) for v in verdicts], float)
    counted = np.array([max(len(v.objects), v.found) for v in verdicts], float)
    whole = np.array([v.entirely for v in verdicts], float)
    ones = np.ones(len(verdicts))
    draws = np.random.default_rng(0).integers(len(verdicts), size=(RESAMPLES, len(verdicts)))
    return {
        "prompts": len(verdicts),
        "objects": round(float(right.sum() / counted.sum()), 4),
        "objects_interval": _interval(right, counted, draws),
        "entirely": round(float(whole.mean()), 4),
        "entirely_interval": _interval(whole, ones, draws),
        "background": round(float(np.mean([v.background for v in verdicts])), 4),
    }


def _interval(above: np.ndarray, below: np.ndarray, draws: np.ndarray) -> list[float]:
    shares = above[draws].sum(1) / below[draws].sum(1)
    return [round(q, 4) for q in bootstrap_interval(shares)]
