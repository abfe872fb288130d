"""Plots: drawn, the same bytes every time, and what their numbers come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from snapgen_deploy.errors import BadInput
from snapgen_deploy.latency.estimate.plots import minute_medians, plot_measurement, timeline
from snapgen_deploy.latency.results import Round
from tests.report.report_cases import make_measurement


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("mode", ["burst", "sustained"])
def test_the_same_measurement_gives_the_same_bytes(tmp_path: Path, suffix: str, mode: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        plot_measurement(make_measurement("$odd_{name$ %", mode=mode), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix == ".png":
        with Image.open(paths[0]) as image:
            assert image.size == (1200, 1170 if mode == "sustained" else 780)
            assert "Software" not in image.info


def test_rounds_begin_when_they_say_so() -> None:
    points = timeline(make_measurement(rounds=3))
    assert next(p.seconds for p in points if p.round == 1) == 30.0
    silent = replace(make_measurement(), rounds=(Round({"e2e": (100.0, 300.0)}), Round({"e2e": (50.0,)}, False, "drifted")))
    assert [(p.seconds, p.ms, p.round, p.valid) for p in timeline(silent)] == [
        (0.0, 100.0, 0, True),
        (0.1, 300.0, 0, True),
        (0.4, 50.0, 1, False),
    ]


def test_medians_of_minutes_leave_out_discarded_rounds() -> None:
    rounds = (
        Round({"e2e": (10.0, 12.0, 11.0)}, state={"started_s": "0"}),
        Round({"e2e": (99.0,)}, False, "drifted", state={"started_s": "61"}),
        Round({"e2e": (20.0,)}, state={"started_s": "125.5"}),
    )
    assert minute_medians(replace(make_measurement(), rounds=rounds)) == ((0, 11.0), (2, 20.0))


def test_without_whole_pictures_the_first_component_is_drawn(tmp_path: Path) -> None:
    rounds = tuple(Round({"student": (5.0, 6.0, 5.5)}) for _ in range(3))
    plot_measurement(replace(make_measurement(mode="sustained"), rounds=rounds), tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected a name that ends with .png"):
        plot_measurement(make_measurement(), tmp_path / "p.jpeg")
    with pytest.raises(BadInput, match="cannot be written"):
        plot_measurement(make_measurement(), tmp_path / "nowhere" / "p.png")
    with pytest.raises(BadInput, match="no valid sample"):
        plot_measurement(replace(make_measurement(), rounds=(Round({"e2e": (9.0,)}, False, "drifted"),)), tmp_path / "p.png")
