"""The allocation of bits against brute force, against its own bound, and its refusals."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapgen_deploy.errors import BadInput
from snapgen_deploy.plan.mixed import levels_for
from snapgen_deploy.quantise import allocation
from snapgen_deploy.quantise.allocation import Candidate, allocate


def brute(layers: list[Candidate], bits: float) -> float:
    low, high = levels_for(bits)
    total = sum(c.weights for c in layers)
    found = [
        sum(c.errors[b] for c, b in zip(layers, choice, strict=True))
        for choice in itertools.product((low, high), repeat=len(layers))
        if sum(c.weights * b for c, b in zip(layers, choice, strict=True)) <= Fraction(str(bits)) * total
    ]
    return min(found)


LAYER = st.tuples(st.integers(1, 60), st.floats(0, 10), st.floats(0, 10))


def candidates(rows: list[tuple[int, float, float]], levels: tuple[int, int]) -> list[Candidate]:
    """Mostly, but not always, more bits are better."""
    return [Candidate(f"layer{i}", n, {levels[0]: a, levels[1]: b}) for i, (n, a, b) in enumerate(rows)]


@given(st.lists(LAYER, min_size=1, max_size=8), st.sampled_from([3.0, 3.3, 4.0, 4.3, 5.0, 6.7, 8.0]))
def test_as_good_as_trying_everything(rows: list[tuple[int, float, float]], bits: float) -> None:
    layers = candidates(rows, levels_for(bits))
    found = allocate(layers, bits)
    total = sum(c.weights for c in layers)
    assert sum(found.bits[c.name] * c.weights for c in layers) <= Fraction(str(bits)) * total
    assert found.average == pytest.approx(sum(found.bits[c.name] * c.weights for c in layers) / total)
    assert found.error == pytest.approx(brute(layers, bits), rel=1e-9, abs=1e-9)
    assert found.bound <= found.error + 1e-9


@given(st.lists(LAYER, min_size=1, max_size=8), st.sampled_from([4.3, 5.0]))
def test_rounded_up_sizes_keep_the_budget_and_the_bound(rows: list[tuple[int, float, float]], bits: float) -> None:
    layers = candidates(rows, (4, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "LARGEST_TABLE", 40)  # a few coarse units instead of hundreds
        found = allocate(layers, bits)
    assert found.average <= bits
    assert found.bound - 1e-9 <= brute(layers, bits) <= found.error + 1e-9


def test_at_full_scale_the_budget_is_filled_and_the_bound_is_close() -> None:
    rng = np.random.default_rng(0)
    sizes = [2048 * int(n) for n in rng.choice([4, 32, 1024, 2048, 6144, 8192], 420)]
    layers = [
        Candidate(str(i), n, {4: e, 8: e / 200}) for i, (n, e) in enumerate(zip(sizes, rng.gamma(0.3, 1, 420), strict=True))
    ]
    found = allocate(layers, 4.3)
    assert 4.2999 < found.average <= 4.3
    assert found.error <= found.bound * 1.001
    uneven = [Candidate(c.name, c.weights + i, c.errors) for i, c in enumerate(layers)]  # no common divisor: rounded up
    found = allocate(uneven, 4.3)
    assert 4.299 < found.average <= 4.3
    assert found.error <= found.bound * 1.01


def test_the_average_is_met_as_it_is_written() -> None:
    """In binary 4.3 is a little less than 43/10, which would leave out the layer that fits exactly."""
    layers = [Candidate("a", 3, {4: 9.0, 8: 0.0}), Candidate("b", 37, {4: 1.0, 8: 0.0})]
    assert allocate(layers, 4.3).bits == {"a": 8, "b": 4}


@pytest.mark.parametrize("bits", [2.9, 8.1, -4.0, float("nan"), float("inf")])
def test_averages_out_of_range_are_refused(bits: float) -> None:
    with pytest.raises(BadInput, match="--bits: got .*expected 3 to 8"):
        allocate([Candidate("a", 8, {3: 1.0, 4: 1.0, 8: 0.0})], bits)


def test_an_error_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(BadInput, match="sensitivity of b is not finite"):
        allocate([Candidate("a", 8, {4: 1.0, 8: 0.0}), Candidate("b", 8, {4: float("nan"), 8: 0.0})], 4.3)
