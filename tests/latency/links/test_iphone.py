"""The link iphone against a Mac with Xcode that fails in the ways that phones do; the runner is always removed again."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from snapgen_deploy.errors import BadInput, MeasurementFailed
from snapgen_deploy.latency.links.base import LinkJob
from snapgen_deploy.latency.links.iphone import TEMPLATE, IPhoneLink, IPhoneOptions
from snapgen_deploy.latency.links.session import measure_on
from snapgen_deploy.latency.results import RunProfile
from tests.latency.links import fake_coremltools
from tests.latency.links.fake_xcode import UDID, FakeXcode, device
from tests.latency.links.jobs import make_job

PROFILE = RunProfile("test", 8, 0.01)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LinkJob:
    fake_coremltools.install(monkeypatch)
    return make_job(tmp_path, "coreml", ".mlpackage")


def connect(xcode: FakeXcode, wanted: str | None = None, **options: str) -> IPhoneLink:
    return IPhoneLink(wanted, IPhoneOptions(**{"team": "ABCDE12345"} | options), xcode)


def measure(xcode: FakeXcode, job: LinkJob, mode: str = "burst"):  # type: ignore[no-untyped-def]
    return measure_on(connect(xcode), job, PROFILE, mode, wait=lambda _: None)


@pytest.mark.parametrize("attachments", [True, False], ids=["attachment", "marked line"])
def test_whole_measurement(job: LinkJob, attachments: bool) -> None:
    xcode = FakeXcode(attachments=attachments)
    rounds, loads, peak = measure(xcode, job)
    assert set(rounds[0].samples["e2e"]) == {37.5}  # as measured, not composed
    assert len(rounds[0].samples["student"]) == 4 * len(rounds[0].samples["e2e"])
    assert (loads.first_ever, loads.cold, loads.warm) == (900.0, 90.0, 60.0)
    assert peak == 300_000_000
    assert rounds[0].state["before.thermal"] == "0"
    assert not xcode.installed
    assert not xcode.projects[0].exists()


def test_plan_that_the_runner_reads(job: LinkJob) -> None:
    xcode = FakeXcode()
    link = connect(xcode, compute_units="cpu_and_ne")
    link.prepare(job)
    bench = xcode.projects[0].parent / "Runner" / "Bench"
    plan = json.loads((bench / "plan.json").read_text())
    assert plan["computeUnits"] == "cpu_and_ne"
    assert [(c["role"], c["calls"]) for c in plan["components"]] == [("text_encoder", 1), ("student", 4), ("decoder", 1)]
    assert plan["components"][1]["inputs"][1] == {"name": "n", "file": "student_1.bin", "dtype": "int32", "shape": [4]}
    assert (bench / "student_1.bin").read_bytes() == job.inputs["student"][1].read_bytes()
    link.restore()
    link.restore()
    assert not xcode.projects[0].exists()


def test_key_and_environment(job: LinkJob) -> None:
    link = connect(FakeXcode())
    key = link.key(job)
    assert (key.soc, key.os_build, key.runtime_version) == ("iPhone17,2", "22D63", "Core ML of iOS 18.3, all")
    assert link.environment()["xcode"] == "Xcode 16.2 Build version 16C5032a"


PHONES: list[tuple[Any, str | None, str]] = [
    ([], None, "found no phone, this Mac sees: none"),
    ([device()], "OTHER", f"found no phone 'OTHER', this Mac sees: {UDID}"),
    ([device(tunnelState="unavailable")], None, "paired but not reachable"),
    ([device(pairingState="unpaired")], None, "not paired.*tap Trust"),
    ([device(developerModeStatus="disabled")], None, "not in developer mode"),
    ([device(), device("00008140-0000000000000002")], None, "sees 2 phones .*iphone:UDID"),
    (None, None, "did not write a list of devices"),
]


@pytest.mark.parametrize(("devices", "wanted", "message"), PHONES)
def test_phones_that_are_not_ready(devices: Any, wanted: str | None, message: str) -> None:
    with pytest.raises(MeasurementFailed, match=message):
        connect(FakeXcode(devices=devices), wanted)


def test_one_of_two_phones_by_udid() -> None:
    xcode = FakeXcode(devices=[device(), device("00008140-0000000000000002")])
    assert connect(xcode, UDID).phone.udid == UDID


FAILURES = [
    (FakeXcode(build_error='Signing for "Runner" requires a development team. Select a development team.'), "cannot be signed"),
    (FakeXcode(build_error="No profiles for 'dev.snapgen.runner' were found"), "cannot be signed.*team=ID"),
    (FakeXcode(build_error="cannot find 'MLModel' in scope"), "ended with status 65"),
    (FakeXcode(test_error="Unlock My iPhone to Continue"), "phone is locked"),
    (FakeXcode(test_error="The device is passcode locked", fails_at="testState"), "phone is locked"),
    (FakeXcode(test_error="There is not enough storage space on the device", fails_at="testLoad"), "storage is full"),
    (FakeXcode(test_error="Lost connection to the device", fails_at="testMemory"), "phone is gone"),
    (FakeXcode(test_error="Early unexpected exit, operation never finished bootstrapping"), "ended with status 65"),
    (FakeXcode(garbage=True), "reported no readable result"),
    (FakeXcode(heat=1), "thermal status is 2"),
]


@pytest.mark.parametrize(("xcode", "message"), FAILURES, ids=[m[:20] for _, m in FAILURES])
def test_failures_leave_nothing_behind(job: LinkJob, xcode: FakeXcode, message: str) -> None:
    with pytest.raises(MeasurementFailed, match=message) as caught:
        measure(xcode, job)
    assert "\n" not in str(caught.value)
    assert not xcode.installed
    assert not any(project.exists() for project in xcode.projects)


def test_no_xcode_and_no_team(job: LinkJob) -> None:
    with pytest.raises(MeasurementFailed, match="Xcode is not there.*xcode-select -s"):
        connect(FakeXcode(missing=True))
    with pytest.raises(BadInput, match="needs a signing team, got ''"):
        connect(FakeXcode(), team="")
    with pytest.raises(BadInput, match="expected coreml"):
        connect(FakeXcode()).prepare(LinkJob("onnx:cpu", "fp32", 1, {}, {}, {}, {}))


def test_gone_midway_says_that_the_app_stays(job: LinkJob) -> None:
    xcode = FakeXcode(test_error="Lost connection to the device")
    link = connect(xcode)
    link.prepare(job)
    xcode.uninstall_error = "The connection was interrupted."
    with pytest.raises(MeasurementFailed, match="app Runner stays on the phone.*delete it by hand"):
        link.restore()
    xcode.uninstall_error = ""
    link.restore()


def test_other_samples_than_asked_for(job: LinkJob, monkeypatch: pytest.MonkeyPatch) -> None:
    xcode = FakeXcode()
    link = connect(xcode)
    link.prepare(job)
    answers: list[dict[str, Any]] = [
        {"samples": {"e2e": [1.0]}},
        {"samples": {"e2e": ["fast"]}},
        {"samples": {"e2e": [-1.0]}},
    ]
    for answer in answers:
        monkeypatch.setattr(xcode, "_said", lambda name, variables, answer=answer: answer)
        with pytest.raises(MeasurementFailed, match="other samples|not positive numbers"):
            link.run(job, 1, 2)
    monkeypatch.setattr(xcode, "_said", lambda name, variables: {"peak_bytes": 0, "load_ms": [1.0]})
    with pytest.raises(MeasurementFailed, match="peak of 0 bytes"):
        link.memory(job)
    with pytest.raises(MeasurementFailed, match="1 load times"):
        link.load(job)
    link.restore()


def test_every_identifier_of_the_project_is_defined() -> None:
    text = (TEMPLATE / "Runner.xcodeproj" / "project.pbxproj").read_text()
    defined = set(re.findall(r"^\t\t([0-9A-F]{24})(?: /\*[^*]*\*/)? = \{", text, re.M))
    assert len(defined) == 26
    assert set(re.findall(r"\b[0-9A-F]{24}\b", text)) == defined
    assert text.count("{") == text.count("}")
    assert text.count("(") - text.count("$(") == text.count(")") - text.count("$(")
    for name in re.findall(r"sourcecode\.swift; path = (\w+\.swift)", text):
        assert list(TEMPLATE.glob(f"*/{name}"))
    scheme = ET.parse(TEMPLATE / "Runner.xcodeproj/xcshareddata/xcschemes/Runner.xcscheme").getroot()
    assert {r.attrib["BlueprintIdentifier"] for r in scheme.iter("BuildableReference")} <= defined


def test_swift_and_python_agree() -> None:
    swift = (TEMPLATE / "RunnerTests" / "RunnerTests.swift").read_text()
    for name in ("testState", "testLoad", "testPictures", "testMemory"):
        assert f"func {name}()" in swift
    for word in ("SNAPGEN-RESULT ", "SNAPGEN_WARMUPS", "SNAPGEN_QUERIES", '"peak_bytes"', '"load_ms"', '"battery_percent"'):
        assert word in swift
    assert swift.count("{") == swift.count("}")
