"""The link mac against fakes of pmset and of coremltools' classes."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from snapgen_deploy.errors import BadInput, MeasurementFailed
from snapgen_deploy.latency.links.base import LinkJob
from snapgen_deploy.latency.links.coreml_mac import CoreMLMacLink, MacOptions, mac_placement, mac_state, package_inputs
from snapgen_deploy.latency.links.session import measure_on
from snapgen_deploy.latency.links.shell import Completed
from snapgen_deploy.latency.results import RunProfile
from snapgen_deploy.system.child import ChildDied
from tests.latency.links import fake_coremltools
from tests.latency.links.jobs import make_job

QUIET = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
BATT = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=22282339)	95%; charged; 0:00 remaining present: true
"""
ANSWERS = {
    "pmset -g therm": QUIET,
    "pmset -g batt": BATT,
    "pmset -g": "System-wide power settings:\nCurrently in use:\n lowpowermode         0\n sleep                1\n",
    "sysctl -n machdep.cpu.brand_string": "Apple M3\n",
    "sysctl -n hw.model": "Mac15,12\n",
    "sw_vers -buildVersion": "24D60\n",
    "sw_vers -productVersion": "15.3\n",
}


def mac(argv: Sequence[str], timeout: float) -> Completed:
    return Completed(0, ANSWERS[" ".join(argv)])


def here(what: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    return function(*arguments), 1 << 28


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> fake_coremltools.Benchmarks:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    return fake_coremltools.install(monkeypatch)


@pytest.fixture
def job(tmp_path: Path) -> LinkJob:
    return make_job(tmp_path, "coreml", ".mlpackage")


def test_whole_measurement(log: fake_coremltools.Benchmarks, job: LinkJob) -> None:
    link = CoreMLMacLink(MacOptions(), mac, here)
    rounds, loads, peak = measure_on(link, job, RunProfile("test", 8, 0.01), "burst", wait=lambda _: None)
    assert set(rounds[0].samples["student"]) == {8.0}
    assert set(rounds[0].samples["e2e"]) == {2.0 + 4 * 8.0 + 3.0}
    assert log.calls[:6] == ["text_encoder", *["student"] * 4, "decoder"]
    assert (loads.first_ever, loads.cold, loads.warm) == (None, 300.0, 150.0)
    assert peak == 1 << 28
    told = link.environment()["placement_student"]
    assert told == "1 on the cpu, 3 on the neural engine; 90.0 % of the cost on the neural engine; 2 switches (planned)"
    key = link.key(job)
    assert (key.soc, key.os_build, key.power_mode) == ("Apple M3", "24D60", "AC")
    assert key.runtime_version.endswith(", all")


def test_off_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(MeasurementFailed, match=r"which this system \(Linux\) lacks; run it on a Mac"):
        CoreMLMacLink(MacOptions(), mac)


def test_failures_in_one_line(log: fake_coremltools.Benchmarks, job: LinkJob, tmp_path: Path) -> None:
    link = CoreMLMacLink(MacOptions(), mac, here)
    log.fails = "Error in declaring network.\nmore lines"
    with pytest.raises(MeasurementFailed, match="mac: pictures: Core ML failed: Error in declaring network.; open") as caught:
        link.run(job, 0, 1)
    assert "\n" not in str(caught.value)

    def killed(*_: Any) -> tuple[Any, int]:
        raise ChildDied("mac: load: the process was ended by SIGKILL")

    with pytest.raises(MeasurementFailed, match="SIGKILL"):
        CoreMLMacLink(MacOptions(), mac, killed).load(job)
    with pytest.raises(BadInput, match="expected coreml"):
        link.prepare(make_job(tmp_path))
    with pytest.raises(BadInput, match="expected one of all, cpu_only"):
        CoreMLMacLink(MacOptions("gpu"), mac)
    job.inputs["student"][0].write_bytes(b"1234")
    with pytest.raises(MeasurementFailed, match="holds 1 numbers, x takes 6"):
        link.prepare(job)
    with pytest.raises(MeasurementFailed, match="input x has type 65552, expected float32 or int32"):
        package_inputs(tmp_path / "half.mlpackage")


def test_of_a_package_of_several_sizes_the_default_one_counts(log: fake_coremltools.Benchmarks) -> None:
    one, several = "one.mlpackage", f"{fake_coremltools.SEVERAL}.mlpackage"
    assert [p.name for p in package_inputs(Path(several))] == ["x", "n"]
    assert mac_placement(several, "all") == mac_placement(one, "all")


def test_states_of_pmset() -> None:
    hot = mac_state("CPU_Speed_Limit \t= 70\n", " 42%; discharging", " lowpowermode  1")
    assert (hot.thermal, hot.battery_percent, hot.low_power) == (1, 42.0, True)
    desktop = mac_state(QUIET, "Now drawing from 'AC Power'\n", "")
    assert (desktop.thermal, desktop.battery_percent, desktop.low_power) == (0, None, None)
    assert mac_state("Thermal Warning Level = 2", "", "").thermal == 2


def test_the_fake_has_the_shape_of_the_real_classes() -> None:
    """Names, parameters and coroutines, in the installed coremltools."""
    perf = pytest.importorskip("coremltools.models.ml_program.experimental.perf_utils")
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    real, fake = perf.MLModelBenchmarker, fake_coremltools.benchmarker(fake_coremltools.Benchmarks())
    for name in ("benchmark_load", "benchmark_predict"):
        assert inspect.iscoroutinefunction(getattr(real, name))
        assert list(inspect.signature(getattr(real, name)).parameters) == list(
            inspect.signature(getattr(fake, name)).parameters
        )
    assert {"path", "compute_units"} <= set(inspect.signature(MLComputePlan.load_from_path).parameters)
    assert {u.name for u in fake_coremltools.ComputeUnit} == {u.name for u in ct.ComputeUnit}
    fields = ct.proto.Model_pb2.ModelDescription.DESCRIPTOR.fields_by_name
    assert {"input", "functions", "defaultFunctionName"} <= set(fields)
    assert "skip_model_load" in inspect.signature(ct.models.MLModel.__init__).parameters
    kinds = ct.proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
    assert (kinds.Value("FLOAT32"), kinds.Value("INT32"), kinds.Value("FLOAT16")) == (65568, 131104, 65552)
