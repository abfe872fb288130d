"""The link adb against a phone that fails in the ways that phones do; fixed performance mode never stays on."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from snapgen_deploy.errors import BadInput, MeasurementFailed
from snapgen_deploy.latency.links import android
from snapgen_deploy.latency.links.android import AndroidLink, AndroidOptions, android_state
from snapgen_deploy.latency.links.android_runners import parse_log
from snapgen_deploy.latency.links.base import LinkJob
from snapgen_deploy.latency.links.session import measure_on
from snapgen_deploy.latency.links.shell import Completed
from snapgen_deploy.latency.results import RUN_PROFILES
from tests.latency.links.fake_adb import MS, SERIAL, FakePhone
from tests.latency.links.jobs import make_job


@pytest.fixture
def job(tmp_path: Path) -> LinkJob:
    return make_job(tmp_path)


def connect(phone: FakePhone, tmp_path: Path, serial: str | None = None, **options: str) -> AndroidLink:
    runner = tmp_path / "executor_runner"
    runner.write_bytes(b"ELF" * 5000)
    return AndroidLink(serial, AndroidOptions(**{"runner": str(runner)} | options), phone)


def measure(link: AndroidLink, phone: FakePhone, job: LinkJob, mode: str = "burst"):  # type: ignore[no-untyped-def]
    return measure_on(link, job, RUN_PROFILES["rapid"], mode, wait=phone.wait, clock=phone.clock)


def test_whole_measurement(tmp_path: Path, job: LinkJob) -> None:
    phone = FakePhone()
    link = connect(phone, tmp_path)
    rounds, loads, peak = measure(link, phone, job)
    assert all(r.valid for r in rounds)
    assert len(rounds) > 1
    assert set(rounds[0].samples) == {"e2e", "text_encoder", "student", "decoder"}
    picture = MS["text_encoder"] + 4 * MS["student"] + MS["decoder"]
    assert rounds[0].samples["e2e"] == pytest.approx([picture] * len(rounds[0].samples["e2e"]))
    assert len(rounds[0].samples["student"]) == 4 * len(rounds[0].samples["e2e"])
    assert sum(len(r.samples["e2e"]) for r in rounds) >= 64
    assert sum(sum(r.samples["e2e"]) for r in rounds) >= 6000
    assert rounds[0].state["before.cpu7_khz"] == "2630400"
    assert loads.first_ever == loads.cold == pytest.approx(sum(40.5 + len(role) for role in job.components))
    assert loads.warm is None
    assert peak == 3 * 20480 * 1024
    assert not phone.fixed
    assert not phone.files
    assert any("set-fixed-performance-mode-enabled true" in c for c in phone.commands)


def test_key_and_environment(tmp_path: Path, job: LinkJob) -> None:
    phone = FakePhone()
    key = connect(phone, tmp_path, runner_version="1.4.1").key(job)
    assert (key.soc, key.backend, key.threads, key.power_mode) == ("SM7550", "executorch:xnnpack", 2, "fixed-performance")
    assert key.runtime_version == "executor_runner 1.4.1"
    assert connect(phone, tmp_path, fixed_performance="off").key(job).power_mode == "default"
    assert re.search(r"sha256:\w{12}$", connect(phone, tmp_path).key(job).runtime_version)
    assert connect(phone, tmp_path).environment()["model"] == "Phone 7"


def test_prepare_turns_the_mode_on_and_restore_off_twice(tmp_path: Path, job: LinkJob) -> None:
    phone = FakePhone()
    link = connect(phone, tmp_path)
    link.prepare(job)
    assert phone.fixed
    assert sum(name.endswith(".pte") for name in phone.files) == 3
    link.restore()
    assert not phone.fixed
    before = len(phone.commands)
    link.restore()
    assert len(phone.commands) == before


def test_state(tmp_path: Path) -> None:
    state = connect(FakePhone(celsius=36.5, level=49, low_power="1"), tmp_path).state()
    assert (state.thermal, state.battery_percent, state.battery_celsius, state.low_power) == (0, 49.0, 36.5, True)
    assert state.notes == {"cpu0_khz": "1804800", "cpu7_khz": "2630400", "battery_status": "charging"}
    old = android_state("Can't find service: thermalservice", "  level: 7\n  temperature: -15\n", "null", "")
    assert (old.thermal, old.battery_celsius, old.low_power) == (None, -1.5, False)


LISTINGS = [
    ("", None, "adb sees no phone"),
    (f"{SERIAL}  unauthorized usb:1-1 transport_id:2", None, "is unauthorized.*accept the question"),
    (f"{SERIAL}  offline usb:1-1 transport_id:2", None, "is offline.*reconnect"),
    (f"{SERIAL}  device usb:1-1\nemulator-5554  device product:sdk", None, "sees 2 phones .*adb:SERIAL"),
    (f"{SERIAL}  device usb:1-1", "OTHER", "knows no phone 'OTHER', it sees: R58M123ABC"),
]


@pytest.mark.parametrize(("listing", "wanted", "message"), LISTINGS)
def test_phones_that_are_not_ready(tmp_path: Path, listing: str, wanted: str | None, message: str) -> None:
    with pytest.raises(MeasurementFailed, match=message):
        connect(FakePhone(listing=listing), tmp_path, wanted)


def test_one_of_two_phones_by_serial(tmp_path: Path) -> None:
    listing = f"* daemon started successfully\n{SERIAL}  device usb:1-1\nemulator-5554  device product:sdk"
    assert connect(FakePhone(listing=listing), tmp_path, SERIAL).adb.serial == SERIAL


FAILURES = [
    (FakePhone(runner="mean"), "prints only a mean.*1.3 or later"),
    (FakePhone(runner="1.2"), "prints only a mean.*unknown command line flag"),
    (FakePhone(drop=3), "logcat holds .* no load line.*logcat -G 4M"),
    (FakePhone(has_fixed_mode=False), "no fixed performance mode.*fixed_performance=off"),
    (FakePhone(free_kib=70_000), r"MB of storage free.*needs"),
    (FakePhone(garbage="^df"), "`df` on the phone printed"),
    (FakePhone(garbage="dumpsys thermalservice"), "Thermal Status"),
    (FakePhone(garbage="dumpsys battery"), "level: N"),
    (FakePhone(garbage="settings get"), "low_power"),
    (FakePhone(garbage="logcat -d"), "logcat holds 0 of"),
    (FakePhone(garbage="VmHWM"), "/proc reports nothing"),
    (FakePhone(low_power="1"), "low power mode is on"),
    (FakePhone(level=20), "battery is at 20 %"),
]


@pytest.mark.parametrize(("phone", "message"), FAILURES, ids=[m[:24] for _, m in FAILURES])
def test_failures_leave_nothing_behind(tmp_path: Path, job: LinkJob, phone: FakePhone, message: str) -> None:
    if phone.free_kib == 70_000:
        phone.free_kib = 60_000  # less than is to stay free
    with pytest.raises(MeasurementFailed, match=message) as caught:
        measure(connect(phone, tmp_path), phone, job)
    assert "\n" not in str(caught.value)
    assert not phone.fixed
    assert not phone.files


def test_storage_that_fills_up_while_copying(tmp_path: Path, job: LinkJob, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = FakePhone(free_kib=10)
    monkeypatch.setattr(android, "SPARE", -1 << 30)
    with pytest.raises(MeasurementFailed, match="storage is full.*No space left on device"):
        measure(connect(phone, tmp_path), phone, job)
    assert not phone.fixed
    assert not phone.files


@pytest.mark.parametrize("at", [" push ", "enabled true", "exec ", "dumpsys battery", "grep VmHWM"])
def test_unplugged_midway(tmp_path: Path, job: LinkJob, at: str) -> None:
    phone = FakePhone(unplug_at=at, unplug_after=2 if at in ("exec ", " push ") else 1)
    link = connect(phone, tmp_path)
    by_hand = f"adb -s {SERIAL} shell '.*rm -rf /data/local/tmp/snapgen-deploy/"
    with pytest.raises(MeasurementFailed, match=f"is gone.*when the phone is back run: {by_hand}") as caught:
        measure(link, phone, job)
    if at != " push ":
        assert "fixed performance mode could not be turned off again" in str(caught.value)
        assert "set-fixed-performance-mode-enabled false" in str(caught.value)
    phone.plugged, phone.unplug_at = True, ""
    link.restore()  # a second try, with the phone back
    assert not phone.fixed
    assert not phone.files


def test_throttling_makes_a_round_invalid_and_cools_down(tmp_path: Path, job: LinkJob) -> None:
    phone = FakePhone(heat=0.02, throttles_at=38.0)
    rounds, _, _ = measure(connect(phone, tmp_path), phone, job)
    invalid = [r for r in rounds if not r.valid]
    assert invalid
    assert "thermal status 2" in invalid[0].reason
    assert invalid[0].state["after.thermal"] == "2"
    assert all(r.state["before.thermal"] == "0" for r in rounds)
    assert sum(len(r.samples["e2e"]) for r in rounds if r.valid) >= 64
    assert not phone.fixed


def test_sustained_keeps_throttled_rounds(tmp_path: Path, job: LinkJob) -> None:
    phone = FakePhone(heat=0.002, throttles_at=36.0)
    rounds, _, _ = measure(connect(phone, tmp_path), phone, job, "sustained")
    assert all(r.valid for r in rounds)
    assert {r.state["throttled"] for r in rounds} == {"yes", "no"}
    assert float(rounds[-1].state["started_s"]) > 280
    assert not phone.fixed


def test_interrupt_from_the_keyboard_restores(tmp_path: Path, job: LinkJob) -> None:
    phone = FakePhone()

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_on(connect(phone, tmp_path), job, RUN_PROFILES["rapid"], "burst", wait=interrupt, clock=phone.clock)
    assert not phone.fixed


def test_crash_of_the_runner_quotes_its_log(tmp_path: Path, job: LinkJob) -> None:
    class Crashing(FakePhone):
        def _run(self, line: str) -> Completed:
            self._say("Loading of method forward failed with status 0x32")
            return Completed(134, f"pid={self.pid}\n", "Aborted\n")

    phone = Crashing()
    with pytest.raises(MeasurementFailed, match="status 134: Loading of method forward failed"):
        measure(connect(phone, tmp_path), phone, job)
    assert not phone.fixed


def test_log_must_hold_every_iteration_once() -> None:
    lines = ["Model loaded in 3.5 ms.", "Iteration 1 of 3: 1.0 ms", "Iteration 3 of 3: 2.0 ms"]
    with pytest.raises(MeasurementFailed, match="2 of 3 iteration lines and the load line"):
        parse_log(lines, 3)
    assert parse_log([*lines, "Iteration 2 of 3: 1.5 ms"], 3).samples == (1.0, 1.5, 2.0)


def onnx_job(tmp_path: Path) -> LinkJob:
    import onnx

    job = make_job(tmp_path, "onnx:cpu", ".onnx")
    ports = [
        onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3]),
        onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT32, [4]),
    ]
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", ports, [out])
    for path in job.components.values():
        onnx.save(onnx.helper.make_model(graph), path)
    return job


def test_onnx(tmp_path: Path) -> None:
    phone, job = FakePhone(), onnx_job(tmp_path)
    binary = tmp_path / "onnxruntime_perf_test"
    binary.write_bytes(b"ELF")
    link = connect(phone, tmp_path, perf_test=str(binary), libraries=str(binary))
    link.prepare(job)
    assert sum(name.endswith("test_data_set_0/input_1.pb") for name in phone.files) == 3
    block = link.run(job, 2, 3)
    assert block.samples["student"] == pytest.approx([20.0] * 12)
    assert link.load(job).cold == pytest.approx(sum(float(f"0.0{len(r)}") * 1000 for r in job.components))
    phone._run_onnx = lambda line, role: Completed(0, "Session creation time cost: 0.1 s\n")  # type: ignore[method-assign]
    phone.results = "Min Latency: 0.01 s\n"
    with pytest.raises(MeasurementFailed, match="0 raw samples, expected 30"):
        link.run(job, 2, 28)
    link.restore()
    assert not phone.fixed


def test_inputs_as_onnx_tensors(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    from snapgen_deploy.latency.links.android_runners import OnnxEngine

    (x, _), (n, name) = OnnxEngine(tmp_path / "perf").inputs(onnx_job(tmp_path), "student", tmp_path)
    tensor = onnx.TensorProto.FromString(n.read_bytes())
    assert (tensor.name, name) == ("n", "test_data_set_0/input_1.pb")
    assert numpy_helper.to_array(tensor).tolist() == [0, 1, 2, 3]
    assert numpy_helper.to_array(onnx.TensorProto.FromString(x.read_bytes())).shape == (2, 3)


def test_bad_options(tmp_path: Path, job: LinkJob) -> None:
    with pytest.raises(BadInput, match="expected 'on' or 'off'"):
        connect(FakePhone(), tmp_path, fixed_performance="maybe")
    with pytest.raises(BadInput, match="--link-option runner=FILE"):
        connect(FakePhone(), tmp_path, runner="nowhere").prepare(job)
    phone = FakePhone()
    with pytest.raises(BadInput, match="expected executorch or onnx"):
        connect(phone, tmp_path).prepare(replace(job, target="coreml"))
    assert not phone.fixed


def test_memory_script_in_a_real_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that samples /proc, run by this host's sh with a runner that takes a while."""

    class Local(FakePhone):
        def _push(self, local: str, remote: str) -> Completed:
            Path(remote).write_bytes(Path(local).read_bytes())
            return Completed(0, "")

        def _shell(self, line: str) -> Completed:
            if not line.startswith(("rm ", "chmod ", "cd ")):
                return super()._shell(line)
            done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
            return Completed(done.returncode, done.stdout, done.stderr)

    monkeypatch.setattr(android, "ROOT", str(tmp_path / "phone"))
    (tmp_path / "job").mkdir()
    job = make_job(tmp_path / "job")
    runner = tmp_path / "slow_runner"
    runner.write_text("#!/bin/sh\nsleep 0.2\n")
    link = connect(Local(), tmp_path, runner=str(runner))
    link.prepare(job)
    peak = link.memory(job)
    assert peak is not None
    assert 100_000 < peak < 1e9
    link.restore()
    assert not list((tmp_path / "phone").iterdir())
