"""Long lists of problems in one line."""

from __future__ import annotations

from collections.abc import Sequence

MOST_LISTED = 20


def listed(problems: Sequence[str]) -> str:
    """The first `MOST_LISTED` problems joined by semicolons, and how many more there are.

    >>> listed(["a", "b"])
    'a; b'
    """
    more = len(problems) - MOST_LISTED
    return "; ".join(problems[:MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")
