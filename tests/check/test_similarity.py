from __future__ import annotations

import math

import numpy as np
import pytest

from snapgen_deploy.check.similarity import ssim


def slowly(x: np.ndarray, y: np.ndarray) -> float:
    """The paper's formula pixel by pixel, with the window written out."""
    reach = np.arange(-5, 6)
    line = np.exp(-(reach**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    x, y, c1, c2 = (x + 1) / 2, (y + 1) / 2, 0.01**2, 0.03**2
    found = []
    for a, b in zip(x[0], y[0], strict=True):
        for row in range(5, a.shape[0] - 5):
            for col in range(5, a.shape[1] - 5):
                p, q = (m[row - 5 : row + 6, col - 5 : col + 6] for m in (a, b))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                both = (window * (p - mp) * (q - mq)).sum()
                found.append((2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(found))


@pytest.mark.parametrize("noise", [0.01, 0.3, 2.0])
def test_formula_of_the_paper(noise):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1, 3, 17, 20))
    y = np.clip(x + noise * rng.standard_normal(x.shape), -1, 1)
    assert ssim(y, x) == pytest.approx(slowly(y, x), abs=1e-9)


def test_ends_of_the_scale():
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, 16, 16)).astype(np.float32)
    assert ssim(x, x) == pytest.approx(1)
    assert ssim(-x, x) < 0
    assert ssim(np.full_like(x, 7.0), np.ones_like(x)) == pytest.approx(1)  # both clamp to white
    for number in (math.nan, math.inf):
        broken = x.copy()
        broken[0, 1, 8, 8] = number
        assert math.isnan(ssim(broken, np.ones_like(x)))
    with pytest.raises(ValueError, match="equal shapes"):
        ssim(x[..., :15], x)
