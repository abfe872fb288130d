"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and Box and Muller's transform (1958).

docs/noise.md defines the noise for every language.
"""

from __future__ import annotations

import math

import numpy as np

PHILOX = "philox4x32-10"  # its name in manifests
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # published constants, as the two below
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)


def philox4x32(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox on `counters` (n, 4), uint32, with a key of two 32-bit words: words (n, 4), uint32.

    >>> [f"{word:08x}" for word in philox4x32(np.zeros((1, 4), np.uint32), (0, 0))[0]]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    a, b, c, d = counters.astype(np.uint64).T
    first, second = key
    for _ in range(_ROUNDS):
        left, right = a * np.uint64(_MULTIPLIERS[0]), c * np.uint64(_MULTIPLIERS[1])
        a, b, c, d = (
            (right >> _HIGH) ^ b ^ np.uint64(first),
            right & _WORD,
            (left >> _HIGH) ^ d ^ np.uint64(second),
            left & _WORD,
        )
        first, second = (first + _WEYL[0]) & 0xFFFFFFFF, (second + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def philox_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers of `shape`, float32, in C order; `seed` is in 0 ... 2^64 - 1.

    Every operation is rounded to float32; log, cos and sin are taken in float64 first, where a platform's last bit does not
    show after the rounding but in about one of 2^28 numbers.
    """
    count = math.prod(shape)
    counters = np.zeros((-(-count // 4), 4), np.uint32)
    counters[:, 0] = np.arange(len(counters), dtype=np.uint32)
    words = philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32)) >> np.uint32(8)  # 24 bits, which float32 holds exactly
    radius = np.log((words[:, 0::2] + 1) * 2.0**-24).astype(np.float32) * np.float32(-2)
    radius = np.sqrt(radius)  # float32, correctly rounded everywhere
    angle = words[:, 1::2] * (2.0**-24 * 2.0 * math.pi)
    normal = np.empty((len(words), 4), np.float32)
    normal[:, 0::2] = radius * np.cos(angle).astype(np.float32)
    normal[:, 1::2] = radius * np.sin(angle).astype(np.float32)
    return normal.reshape(-1)[:count].reshape(shape)
