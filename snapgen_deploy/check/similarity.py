"""Structural similarity of two pictures (SSIM).

Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
Transactions on Image Processing 13(4), 2004: a Gaussian window of 11 x 11 pixels with standard deviation 1.5, K1 = 0.01,
K2 = 0.03. Implemented here to avoid a dependency on scikit-image for these few lines. Windows and border match its
`structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SIGMA, TRUNCATE = 1.5, 3.5  # the window reaches 3.5 standard deviations: 5 pixels each way
BORDER = 5  # pixels this close to the edge are not counted: their window leaves the picture
K1, K2 = 0.01, 0.03
RANGE = 1.0  # pixels are shifted to 0 ... 1, since the formula needs values of at least 0


def ssim(got: np.ndarray, expected: np.ndarray) -> float:
    """Mean SSIM over channels and pixels of two pictures (1, C, H, W) in -1 ... 1, both clamped; 1 if they are equal.

    NaN if a value of either picture is not finite.

    Raises:
        ValueError: if the shapes differ, or a side has fewer than 11 pixels.
    """
    if got.shape != expected.shape or min(got.shape[-2:]) <= 2 * BORDER:
        raise ValueError(f"got pictures {got.shape} and {expected.shape}, expected equal shapes of at least 11 x 11 pixels")
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return float("nan")
    x, y = ((np.clip(p[0].astype(np.float64), -1, 1) + 1) / 2 for p in (got, expected))
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    common = _window(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + c1) * (2 * common + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    inner = (above / below)[:, BORDER:-BORDER, BORDER:-BORDER]
    return float(inner.mean())


def _window(x: np.ndarray) -> np.ndarray:
    """Gaussian means of (C, H, W) over H and W."""
    smooth: np.ndarray = ndimage.gaussian_filter(x, (0, SIGMA, SIGMA), truncate=TRUNCATE)
    return smooth
