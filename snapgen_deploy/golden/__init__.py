"""Golden vectors: inputs and outputs that a team's own code wrote, to hold the reference and every exported file against."""

from snapgen_deploy.golden.recorder import Recorder
from snapgen_deploy.golden.vectors import GoldenCases, GoldenPicture, GoldenVectors, open_golden

__all__ = ["GoldenCases", "GoldenPicture", "GoldenVectors", "Recorder", "open_golden"]
