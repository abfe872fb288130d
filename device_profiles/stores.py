"""Size limits of the stores, by operating system, as their help pages state them (read 2026-11-29)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_APPLE = "https://developer.apple.com/help/app-store-connect/reference"
_PLAY = "https://support.google.com/googleplay/android-developer/answer/9859372"


@dataclass(frozen=True)
class Way:
    """One way to bring files to a device. Google's limits are of compressed files; weights hardly get smaller."""

    name: str  # follows "fits"
    most: int  # bytes of everything that goes this way
    most_each: int  # bytes of one part that cannot be divided
    source: str


# From the simplest to the largest.
_APP_STORE = (
    Way("the app itself", 4_000_000_000, 4_000_000_000, f"{_APPLE}/on-demand-resources-size-limits"),
    Way("Apple-hosted asset packs", 200_000_000_000, 200_000_000_000, f"{_APPLE}/apple-hosted-asset-pack-size-limits"),
)
STORES: Mapping[str, tuple[Way, ...]] = {
    "iOS": _APP_STORE,
    "iPadOS": _APP_STORE,
    "Android": (
        Way("Google Play's base module", 200_000_000, 200_000_000, _PLAY),
        Way("one asset pack of Google Play", 1_500_000_000, 1_500_000_000, _PLAY),
        Way("several asset packs of Google Play", 4_000_000_000, 1_500_000_000, _PLAY),
    ),
}


@dataclass(frozen=True)
class Delivery:
    """How files can be brought to a device."""

    bytes: int
    way: Way  # the simplest that takes them, else the largest
    fits: bool


def delivery(os: str, parts: Mapping[str, int]) -> Delivery | None:
    """The simplest way for parts of so many bytes, each of which stays whole; None if the system has no store here.

    >>> delivery("Android", {"student": 1_000_000_000}).way.name
    'one asset pack of Google Play'
    """
    ways, total, largest = STORES.get(os, ()), sum(parts.values()), max(parts.values(), default=0)
    if not ways:
        return None
    found = next((way for way in ways if total <= way.most and largest <= way.most_each), None)
    return Delivery(total, found or ways[-1], found is not None)
