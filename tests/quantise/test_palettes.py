"""Palettes: near the best there is, the same every time, and quick enough for a large layer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from snapgen_deploy.quantise.palettes import encode, fit_palette, snap

RNG = np.random.default_rng(3)


def loss(values: np.ndarray, palette: np.ndarray) -> float:
    return float(((values - snap(values, palette)).astype(np.float64) ** 2).sum())


def best_loss(values: np.ndarray, clusters: int) -> float:
    """Of all partitions of the sorted values into intervals."""
    v = np.sort(values.astype(np.float64))
    cuts = itertools.combinations(range(1, len(v)), clusters - 1)
    return min(sum(float(((part - part.mean()) ** 2).sum()) for part in np.split(v, c)) for c in cuts)


@pytest.mark.parametrize("clusters", [1, 2, 3, 4])
def test_best_of_all_partitions_on_small_tensors(clusters: int) -> None:
    for case in range(6):
        values = (np.random.default_rng(case).standard_normal(14) * (1 + case)).astype(np.float32)
        assert loss(values, fit_palette(values, clusters)) <= best_loss(values, clusters) * (1 + 1e-3)  # fp16 entries


@pytest.mark.parametrize(("clusters", "least"), [(4, 9.30), (8, 14.62), (16, 20.22), (256, 43.9)])
def test_normal_weights_reach_what_lloyd_and_max_tabulated(clusters: int, least: float) -> None:
    """Signal to noise in dB of the best quantiser of normal values (Max, 1960: 9.30, 14.62, 20.22); -0.1 for the sample."""
    values = RNG.standard_normal((600, 500)).astype(np.float32)
    found = 10 * np.log10(float((values.astype(np.float64) ** 2).sum()) / loss(values, fit_palette(values, clusters)))
    assert found > least - 0.1


def test_entries_are_fp16_numbers_sorted_and_bounded() -> None:
    palette = fit_palette(RNG.standard_normal(5000).astype(np.float32), 256)
    assert len(palette) <= 256
    assert (np.diff(palette) > 0).all()
    assert np.array_equal(palette, palette.astype(np.float16).astype(np.float32))


def test_few_distinct_values_are_kept_exactly() -> None:
    values = RNG.choice(np.array([-1.5, 0.25, 0.5, 3.0], np.float32), (8, 9))
    palette = fit_palette(values, 16)
    assert palette.tolist() == [-1.5, 0.25, 0.5, 3.0]
    assert np.array_equal(snap(values, palette), values)
    assert np.array_equal(snap(np.zeros((3, 3), np.float32), fit_palette(np.zeros((3, 3), np.float32), 16)), np.zeros((3, 3)))


def test_every_weight_gets_its_nearest_entry() -> None:
    values = RNG.standard_normal((40, 30)).astype(np.float32)
    palette = fit_palette(values, 16)
    nearest = np.abs(values[..., None] - palette).argmin(-1)
    assert np.array_equal(encode(values, palette), nearest)
    assert encode(values, palette).dtype == np.uint8


def test_a_histogram_of_a_large_tensor_is_as_good_as_its_values() -> None:
    values = (RNG.standard_normal(70000) * np.exp(0.5 * RNG.standard_normal(70000))).astype(np.float32)
    palette = fit_palette(values, 16)  # beyond HISTOGRAM values
    moved = palette.astype(np.float64)
    for _ in range(500):  # plain Lloyd from there, on the values themselves
        codes = np.searchsorted((moved[1:] + moved[:-1]) / 2, values)
        moved = np.bincount(codes, values, len(moved)) / np.bincount(codes, minlength=len(moved))
    assert loss(values, palette) <= loss(values, moved.astype(np.float32)) * 1.001


@pytest.mark.parametrize("weights", [np.array([]), np.array([1.0, np.nan]), np.array([np.inf, 1.0])])
def test_what_has_no_palette_is_refused(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected 1 or more and finite"):
        fit_palette(weights, 4)
