"""The settings of a mixed-precision recipe, as plain data: part of the plan, and of cache keys."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from snapgen_deploy.errors import BadInput

FEWEST_PROMPTS = 16  # different ones: with fewer, tuning would overfit to their words
FEWEST_PICTURES, MOST_PICTURES = 16, 100_000
MOST_ITERATIONS = 1_000_000


@dataclass(frozen=True)
class MixedSettings:
    """Average `bits` per weight, and tuning for `iterations` on `pictures` trajectories that cycle through the prompts.

    Without prompts (the checkpoint cannot read them) every picture has random text of its own.
    """

    bits: float
    iterations: int
    pictures: int
    prompts: tuple[str, ...]

    @property
    def prompts_sha256(self) -> str:
        """Hash of the prompts, a line each."""
        return hashlib.sha256("".join(f"{p}\n" for p in self.prompts).encode()).hexdigest()

    def as_key(self) -> str:
        """JSON text that is the same for equal settings."""
        return json.dumps(asdict(self), sort_keys=True)


def mixed_settings(
    *, bits: float, iterations: int, pictures: int, prompts: Sequence[str], reads_prompts: bool, source: str
) -> MixedSettings:
    """Checked settings; `source` says in messages where the prompts are from.

    Raises:
        BadInput: if a number is out of its range, or there are fewer than `FEWEST_PROMPTS` different prompts.
    """
    if not math.isfinite(bits):
        raise BadInput(f"--bits: got {bits}, expected a number such as 4.3")
    levels_for(bits)
    if not 0 <= iterations <= MOST_ITERATIONS:
        raise BadInput(f"--tune-iterations: got {iterations}, expected 0 to {MOST_ITERATIONS}")
    if not FEWEST_PICTURES <= pictures <= MOST_PICTURES:
        raise BadInput(f"--calibration-pictures: got {pictures}, expected {FEWEST_PICTURES} to {MOST_PICTURES}")
    different = tuple(dict.fromkeys(prompts)) if reads_prompts else ()
    if reads_prompts and len(different) < FEWEST_PROMPTS:
        raise BadInput(
            f"mixed precision needs {FEWEST_PROMPTS} or more different calibration prompts, {source} has {len(different)}; "
            "give a file with one a line: --calibration FILE"
        )
    return MixedSettings(bits, iterations, pictures, different[:pictures])


LEVELS = ((3, 4), (4, 8))  # pairs of bits per layer; a fractional average mixes the two of a pair


def levels_for(bits: float) -> tuple[int, int]:
    """The two numbers of bits that layers are stored in to reach an average.

    >>> levels_for(4.3)
    (4, 8)

    Raises:
        BadInput: if the average is out of range.
    """
    low, high = LEVELS[0][0], LEVELS[-1][1]
    if not low <= bits <= high:  # also catches not-a-number
        raise BadInput(f"--bits: got {bits:g}, expected {low} to {high}, such as 4.3")
    return next(pair for pair in reversed(LEVELS) if bits >= pair[0])
