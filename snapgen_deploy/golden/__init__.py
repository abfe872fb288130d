"""Golden vectors: inputs and outputs that a team's own code wrote, to hold the reference and every exported file against."""

from snapgen_deploy.extras import TO_EXPORT, need

need(TO_EXPORT, __name__)  # before torch is imported, whose absence would be all that is said

from snapgen_deploy.golden.recorder import Recorder  # noqa: E402
from snapgen_deploy.golden.vectors import GoldenCases, GoldenPicture, GoldenVectors, open_golden  # noqa: E402

__all__ = ["GoldenCases", "GoldenPicture", "GoldenVectors", "Recorder", "open_golden"]
