"""The fidelity gate as a stage of an export: what it costs where the target does not run on this computer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapgen_deploy.check.fidelity import Fidelity
from snapgen_deploy.checkpoint import CheckpointPlace
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.drawing.prompts import Sample
from snapgen_deploy.export.onnx.target import Onnx
from snapgen_deploy.job import checked, drawn
from snapgen_deploy.job.request import Request
from snapgen_deploy.job.state import ExportJob
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.system.files import stamps
from snapgen_deploy.system.progress import no_progress, silent
from snapgen_deploy.system.side_by_side import Room


@pytest.fixture
def job(tmp_path: Path) -> ExportJob:
    place = CheckpointPlace(None)
    opened = place.open()
    plan = make_plan(opened.config, load_profile("server"), width="tiny", targets=["onnx"], precision="int8-dynamic")
    fidelity = Fidelity(tuple(Sample("a red ring", seed) for seed in range(100)), None)
    request = Request(place, tuple(stamps(opened.files)), tmp_path, fidelity.samples[:1], threads=1, fidelity=fidelity)
    stage: Any = SimpleNamespace(root=tmp_path, scratch=tmp_path / "scratch")
    given: dict[str, Any] = {"stage": stage, "progress": no_progress, "counting": silent, "room": Room(1, 0), "predicted": {}}
    return ExportJob(request, plan, opened, {}, **given)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the processes that would have been started; each is told to have taken 7 bytes."""
    names: list[str] = []

    def noted(what: str, *_: object, **__: object) -> tuple[None, int]:
        names.append(what)
        return None, 7

    for module in (drawn, checked):
        monkeypatch.setattr(module, "run_in_child", noted)
    return names


def test_the_reference_draws_where_the_target_runs(job: ExportJob, started: list[str]) -> None:
    assert drawn.draw_for_fidelity(job) == 7
    assert started == ["fidelity reference"]


def test_a_target_that_does_not_run_here_costs_nothing(
    job: ExportJob, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Onnx, "unavailable", lambda self, variant: "not on this computer")
    assert drawn.draw_for_fidelity(job) == 0
    found = checked.judge_fidelity(job, job.plan.targets[0], {})
    assert [(g.name, g.verdict, g.detail) for g in found.gates] == [("fidelity_psnr", "not_run", "not on this computer")]
    assert (found.record, found.peak_bytes) == ({}, 0)
    assert started == []
