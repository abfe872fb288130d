"""How an update with a bundle reaches its users in stages, and what to watch meanwhile: proposals, which a manifest records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST_PICTURES = 50  # for a verdict
SLOWER = 1.2  # at most, beside the release before
_FAILURES = 0.02  # of pictures, without those of the user's own doing
_HOT = 0.1  # of pictures
HOT = ("serious", "critical")
_PHASES = "https://developer.apple.com/help/app-store-connect/update-your-app/release-a-version-update-in-phases"


@dataclass(frozen=True)
class Stages:
    """Shares of the users, one after the other, each for so many days."""

    shares: tuple[float, ...]
    days: int
    source: str


_CHOSEN = Stages((0.01, 0.05, 0.2, 0.5, 1.0), 2, "our choice; Google Play's staged rollout takes any shares")
_APPLE = Stages((0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0), 1, _PHASES)  # fixed by the store
_STAGES: Mapping[str, Stages] = {"iOS": _APPLE, "iPadOS": _APPLE}


def rollout(os: str, memory_budget: int | None, estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `rollout` of a manifest.

    Args:
        os: Of the device.
        memory_budget: Bytes that the app may use there; None: memory is not watched.
        estimates: Of the manifest, the slowest time a picture of each target among them.
    """
    stages = _STAGES.get(os, _CHOSEN)
    slowest = {one["target"]: one["high_ms"] for one in estimates if one.get("high_ms") is not None}
    return {
        "stages": [{"share": share, "days": stages.days} for share in stages.shares],
        "source": stages.source,
        "least_pictures": LEAST_PICTURES,
        "watch": {
            "failures": {"field": "ok", "statistic": "share of pictures that failed", "most": _FAILURES},
            "latency": {"field": "ms.all", "statistic": "median", "most": slowest, "most_ratio": SLOWER},
            **({} if memory_budget is None else {"memory": {"field": "memory", "statistic": "largest", "most": memory_budget}}),
            "thermal": {"field": "thermal", "statistic": f"share of {' and '.join(HOT)}", "most": _HOT},
        },
    }
