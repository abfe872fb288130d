"""Gates, rounds and modes, with a link that is a few lines; and links by name."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from snapgen_deploy.errors import BadInput, MeasurementFailed
from snapgen_deploy.latency.links import registry
from snapgen_deploy.latency.links.android import AndroidLink
from snapgen_deploy.latency.links.base import DeviceState, LinkJob, SampleBlock
from snapgen_deploy.latency.links.coreml_mac import CoreMLMacLink
from snapgen_deploy.latency.links.iphone import IPhoneLink
from snapgen_deploy.latency.links.session import Gates, composed, measure_on
from snapgen_deploy.latency.results import DeviceKey, Loads, RunProfile
from tests.latency.links.fake_adb import SERIAL, FakePhone
from tests.latency.links.fake_xcode import FakeXcode
from tests.latency.links.jobs import CALLS, make_job

COOL = DeviceState(0, 80.0, 30.0, False)
PROFILE = RunProfile("test", 64, 6.0, 30.0)


@dataclass
class TinyLink:
    """A device that takes `ms` for a picture."""

    ms: float = 100.0
    states: Callable[[int], DeviceState] = lambda _: COOL
    before: DeviceState = COOL
    after: DeviceState = COOL
    name: str = "tiny"
    never_run_on_hardware: bool = True
    asked: int = 0
    now: float = 0.0
    waits: list[float] = field(default_factory=list)
    restored: int = 0
    fails: str = ""

    def key(self, job: LinkJob) -> DeviceKey:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return {}

    def state(self) -> DeviceState:
        self.asked += 1
        return self.states(self.asked)

    def prepare(self, job: LinkJob) -> None: ...

    def load(self, job: LinkJob) -> Loads:
        return Loads(None, 1.0, None)

    def run(self, job: LinkJob, warmups: int, queries: int) -> SampleBlock:
        self.now += self.ms * (warmups + queries) / 1000
        return SampleBlock({"e2e": (self.ms,) * queries}, self.before, self.after)

    def memory(self, job: LinkJob) -> int | None:
        return None

    def restore(self) -> None:
        self.restored += 1
        if self.fails:
            raise MeasurementFailed(self.fails)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.fixture
def job(tmp_path: Path) -> LinkJob:
    return make_job(tmp_path)


def measure(link: TinyLink, job: LinkJob, mode: str = "burst", profile: RunProfile = PROFILE):  # type: ignore[no-untyped-def]
    return measure_on(link, job, profile, mode, wait=link.wait, clock=lambda: link.now)


def test_burst_ends_when_the_profile_is_met(job: LinkJob) -> None:
    link = TinyLink()
    rounds, loads, peak = measure(link, job)
    assert [len(r.samples["e2e"]) for r in rounds] == [4, 50, 50]
    assert len(link.waits) == 2  # a cool-down between rounds
    assert (loads.cold, peak, link.restored) == (1.0, None, 1)


def test_the_cap_counts_work_and_not_cool_downs(job: LinkJob) -> None:
    link = TinyLink(ms=2000.0)
    rounds, _, _ = measure(link, job)
    assert [len(r.samples["e2e"]) for r in rounds] == [4, 4, 4]  # 14 s each, with warm-ups


def test_sustained_lasts_five_minutes_without_gates(job: LinkJob) -> None:
    link = TinyLink(after=replace(COOL, thermal=3))
    rounds, _, _ = measure(link, job, "sustained")
    assert link.now >= 300
    assert link.asked == 1
    assert not link.waits
    assert all(r.valid and (r.state["throttled"], r.state["after.thermal"]) == ("yes", "3") for r in rounds)


@pytest.mark.parametrize(("name", "status", "valid"), [("tiny", 1, False), ("iphone", 1, True), ("iphone", 2, False)])
def test_what_throttled_means(job: LinkJob, name: str, status: int, valid: bool) -> None:
    link = TinyLink(name=name, after=replace(COOL, thermal=status))
    if valid:
        assert all(r.valid for r in measure(link, job)[0])
    else:
        with pytest.raises(MeasurementFailed, match="5 rounds in a row were not valid"):
            measure(link, job)
    assert link.restored == 1


@pytest.mark.parametrize(("before", "reason"), [({"battery_celsius": 45.0}, "45 C"), ({"battery_percent": 20.0}, "20 %")])
def test_a_round_that_began_outside_the_gates_does_not_count(job: LinkJob, before: dict[str, float], reason: str) -> None:
    link = TinyLink(before=replace(COOL, **before))
    with pytest.raises(MeasurementFailed, match=f"5 rounds in a row were not valid .*{reason}"):
        measure(link, job)
    rounds, _, _ = measure(link, job, mode="sustained")
    assert all(r.valid for r in rounds)


def test_a_gate_opens_after_a_while(job: LinkJob) -> None:
    hot = replace(COOL, battery_celsius=41.0)
    link = TinyLink(states=lambda asked: hot if asked <= 3 else COOL)
    rounds, _, _ = measure(link, job)
    assert link.waits[:3] == [10.0] * 3
    assert all(r.valid for r in rounds)


def test_a_gate_that_stays_shut(job: LinkJob) -> None:
    link = TinyLink(states=lambda _: replace(COOL, battery_percent=49.0))
    with pytest.raises(MeasurementFailed, match="after 15 minutes the battery is at 49 %, expected 50 % or more"):
        measure(link, job)
    assert sum(link.waits) == 900
    assert link.restored == 1


@pytest.mark.parametrize(
    ("state", "start", "open_"),
    [
        (COOL, None, True),
        (DeviceState(), None, True),
        (replace(COOL, thermal=1), None, False),
        (replace(COOL, low_power=True), None, False),
        (replace(COOL, battery_percent=50.0), None, True),
        (replace(COOL, battery_celsius=37.0), None, True),
        (replace(COOL, battery_celsius=37.1), None, False),
        (replace(COOL, battery_celsius=38.9), 37.0, True),
        (replace(COOL, battery_celsius=39.1), 37.0, False),
    ],
)
def test_gates(state: DeviceState, start: float | None, open_: bool) -> None:
    assert (Gates(37.0, 50, start).shut(state) is None) == open_


def test_both_errors_are_told(job: LinkJob) -> None:
    link = TinyLink(states=lambda _: replace(COOL, low_power=True), fails="could not be restored")
    with pytest.raises(MeasurementFailed, match="low power mode is on.*; could not be restored"):
        measure(link, job)
    with pytest.raises(MeasurementFailed, match="^could not be restored$"):
        measure(TinyLink(fails="could not be restored"), job)


def test_composed_pictures() -> None:
    samples = {"text_encoder": (1.0, 2.0), "student": tuple(map(float, range(8))), "decoder": (10.0, 20.0)}
    assert composed(samples, CALLS, 2) == (1.0 + 6.0 + 10.0, 2.0 + 22.0 + 20.0)
    with pytest.raises(MeasurementFailed, match="student: got 8 samples, expected 4 for each of 3"):
        composed(samples | {"text_encoder": (1.0,) * 3}, CALLS, 3)


def test_links_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {"adb": AndroidLink, "iphone": IPhoneLink, "mac": CoreMLMacLink}
    assert set(links) == set(registry.LINKS)
    assert isinstance(registry.open_link("adb", {}, FakePhone()), AndroidLink)
    assert isinstance(registry.open_link(f"adb:{SERIAL}", {"runner": "x"}, FakePhone()), AndroidLink)
    assert isinstance(registry.open_link("iphone", {"team": "ABCDE12345"}, FakeXcode()), IPhoneLink)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert isinstance(registry.open_link("mac", {}), CoreMLMacLink)
    said = re.match(r"The links (.*?) are", registry.NEVER_RUN)
    assert said is not None
    assert re.findall(r"\w+", said[1].replace(" and ", " ")) == [n for n, kind in links.items() if kind.never_run_on_hardware]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("iphon", {}, "no link 'iphon', did you mean iphone; give one of adb, iphone, mac"),
        ("zzz", {}, "no link 'zzz'; give one of"),
        ("adb:", {}, "names no device after the colon"),
        ("mac:mine", {}, "takes no 'mine'"),
        ("adb", {"runer": "x"}, "no option 'runer', did you mean runner"),
    ],
)
def test_bad_names(text: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        registry.open_link(text, options, FakePhone())
