"""iPhones through Xcode: `xcodebuild` runs the tests of a small app on the phone, `devicectl` finds the phone.

The app (folder iphone_runner, plain files) is an Xcode project and not a Swift package, because tests without a host app do
not run on a phone. Its folder `Bench` gets the components, compiled on this Mac, the input files and a list of both. It times
whole pictures on the phone and returns JSON, as an attachment of the test (`xcresulttool`, Xcode 16 and later) and as a line
that begins with MARKER. Each round is a separate test run: two rounds are about ten seconds and a load apart, in sustained mode
too. The phone must be paired, unlocked and in developer mode, and a team must sign the app.
The error texts in ERRORS are taken from Xcode and reports of its users; none was seen on a real phone.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput, MeasurementFailed
from snapgen_deploy.latency.links.base import DeviceState, LinkJob, SampleBlock
from snapgen_deploy.latency.links.coreml_mac import check_units, package_inputs, read_inputs
from snapgen_deploy.latency.links.shell import QUICK, SLOW, Known, Shell, checked, restoring, run_command
from snapgen_deploy.latency.results import DeviceKey, Loads

TEMPLATE = Path(__file__).parent / "iphone_runner"
MARKER = "SNAPGEN-RESULT "
ERRORS: Known = (
    (
        r"unable to find utility|requires Xcode|not a developer tool|xcode-select: error",
        "Xcode is not there, expected a full one: install it and run `sudo xcode-select -s /Applications/Xcode.app`",
    ),
    (
        r"(device|phone)\S* (is|was) (passcode )?locked|could not be, unlocked|unlock .* to continue|DeviceLocked",
        "the phone is locked: unlock it, keep the screen on and measure again",
    ),
    (
        r"requires a development team|no profiles for|no account for team|no signing certificate|provisioning profile",
        "the runner cannot be signed: sign in to Xcode and give your team with --link-option team=ID",
    ),
    (r"developer mode", "the phone is not in developer mode: turn it on in Settings, Privacy & Security"),
    (
        r"not enough (free |storage )?space|insufficient (free )?(storage|space)|no space left|not enough storage",
        "storage is full: free space on the phone and on this Mac, or measure a smaller bundle",
    ),
    (
        r"lost connection|connection .*(interrupted|invalidated|lost)|was disconnected|unable to find a (device|destination)",
        "the phone is gone, expected it to stay connected: plug it in, unlock it and measure again",
    ),
)


@dataclass(frozen=True)
class IPhoneOptions:
    """Options of the link, as text."""

    team: str = ""  # ten letters and digits of an Apple developer team
    bundle_id: str = ""  # bundle id of the runner; default: made from the team
    compute_units: str = "all"


@dataclass(frozen=True)
class Phone:
    """A phone as devicectl describes it."""

    udid: str
    name: str
    model: str  # e.g. iPhone17,2
    version: str
    build: str


def find_phone(shell: Shell, wanted: str | None = None) -> Phone:
    """Find the phone with the UDID, identifier or name `wanted`, or the only one.

    Raises:
        MeasurementFailed: if there is none, several match, or it is not reachable, paired and in developer mode.
    """
    with tempfile.TemporaryDirectory() as scratch:
        listing = Path(scratch) / "devices.json"
        checked(shell, ["xcrun", "devicectl", "list", "devices", "--json-output", str(listing)], QUICK, ERRORS)
        try:
            devices = json.loads(listing.read_text(encoding="utf-8"))["result"]["devices"]
            phones = [
                d for d in devices if _of(d, "hardware", "platform") == "iOS" and _of(d, "hardware", "reality") != "simulated"
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise MeasurementFailed(
                "`xcrun devicectl list devices` did not write a list of devices; update Xcode to 15 or later"
            ) from None
    names = {_of(d, "hardware", "udid"): d for d in phones}
    chosen = [d for u, d in names.items() if wanted is None or wanted in (u, d.get("identifier"), _of(d, "device", "name"))]
    if not chosen:
        seen = ", ".join(names) or "none"
        raise MeasurementFailed(f"found no phone{f' {wanted!r}' if wanted else ''}, this Mac sees: {seen}; connect and pair it")
    ready = [d for d in chosen if _of(d, "connection", "tunnelState") != "unavailable"]
    if not ready:
        raise MeasurementFailed(
            f"{_of(chosen[0], 'device', 'name')} is paired but not reachable; connect it by USB and unlock it"
        )
    if len(ready) > 1:
        udids = ", ".join(_of(d, "hardware", "udid") for d in ready)
        raise MeasurementFailed(f"this Mac sees {len(ready)} phones ({udids}), expected one; say which: iphone:UDID")
    return _phone(ready[0])


def _phone(device: Mapping[str, Any]) -> Phone:
    name = _of(device, "device", "name")
    if _of(device, "connection", "pairingState") != "paired":
        raise MeasurementFailed(f"{name} is not paired with this Mac; connect it by USB and tap Trust")
    if _of(device, "device", "developerModeStatus") == "disabled":
        raise MeasurementFailed(f"{name} is not in developer mode; turn it on in Settings, Privacy & Security")
    udid, model = _of(device, "hardware", "udid"), _of(device, "hardware", "productType")
    return Phone(udid, name, model, _of(device, "device", "osVersionNumber"), _of(device, "device", "osBuildUpdate"))


def _of(device: Mapping[str, Any], group: str, key: str) -> str:
    return str(device.get(f"{group}Properties", {}).get(key, ""))


class IPhoneLink:
    """A phone that Xcode can use. Whole pictures, and each call in them, are timed on the phone."""

    name = "iphone"
    e2e_is = "measured"
    never_run_on_hardware = True

    def __init__(self, udid: str | None, options: IPhoneOptions, shell: Shell = run_command) -> None:
        if not re.fullmatch(r"[A-Z0-9]{10}", options.team):
            raise BadInput(
                f"iphone needs a signing team, got '{options.team}', expected ten capitals and digits; give "
                "--link-option team=ID"
            )
        self.units = check_units(options.compute_units)
        self.bundle_id = options.bundle_id or f"dev.snapgen.runner.{options.team.lower()}"
        self.team, self._shell = options.team, shell
        self.phone = find_phone(shell, udid)
        self._work: tempfile.TemporaryDirectory[str] | None = None  # folder of the project, once written
        self._installed = self._fresh = False
        self._runs = 0

    def key(self, job: LinkJob) -> DeviceKey:
        """Model, build of iOS (which includes Core ML) and compute units. Power mode is only part of the state."""
        runtime = f"Core ML of iOS {self.phone.version}, {self.units}"
        return DeviceKey(self.phone.model, self.phone.build, job.target, runtime, job.precision, job.threads, "default")

    def environment(self) -> Mapping[str, str]:
        """The phone's model and iOS version, without its name, and the version of Xcode."""
        xcode = " ".join(checked(self._shell, ["xcodebuild", "-version"], QUICK, ERRORS).out.split())
        return {"model": self.phone.model, "ios": self.phone.version, "xcode": xcode, "compute_units": self.units}

    def state(self) -> DeviceState:
        """Read the state in a separate test run, since only an app on the phone can. Takes about ten seconds."""
        return _state(self._test("testState").get("after"))

    def prepare(self, job: LinkJob) -> None:
        """Write the project, compile the components, build, and remove an older runner with its caches."""
        if job.target.partition(":")[0] != "coreml":
            raise BadInput(f"iphone cannot run the target '{job.target}', expected coreml; choose it with --target")
        with restoring(self.restore, only_on_failure=True):
            self._work = tempfile.TemporaryDirectory(prefix="snapgen-iphone-", ignore_cleanup_errors=True)
            project = Path(self._work.name) / "project"
            shutil.copytree(TEMPLATE, project)
            self._write_bench(job, project / "Runner" / "Bench")
            argv = ["xcodebuild", "build-for-testing", *self._common(), "-allowProvisioningUpdates"]
            checked(self._shell, [*argv, f"DEVELOPMENT_TEAM={self.team}", f"RUNNER_BUNDLE_ID={self.bundle_id}"], SLOW, ERRORS)
            self._uninstall()
            self._installed = self._fresh = True

    def load(self, job: LinkJob) -> Loads:
        """First-ever: in the first run after installation. Cold and warm: in the second run."""
        first = self._loads() if self._fresh else None
        again = self._loads()
        return Loads(first[0] if first else None, again[0], again[1])

    def run(self, job: LinkJob, warmups: int, queries: int) -> SampleBlock:
        """Run one test that loads, draws `warmups` untimed and then `queries` timed pictures."""
        result = self._test("testPictures", SNAPGEN_WARMUPS=warmups, SNAPGEN_QUERIES=queries)
        expected = {"e2e": queries} | {str(role): queries * job.calls[role] for role in job.components}
        samples = {name: _numbers(values) for name, values in result.get("samples", {}).items()}
        if {name: len(values) for name, values in samples.items()} != expected:
            raise MeasurementFailed(f"the phone sent other samples than the expected {expected}; measure again")
        return SampleBlock(samples, _state(result.get("before")), _state(result.get("after")))

    def memory(self, job: LinkJob) -> int | None:
        """Largest phys_footprint, in bytes, of a process that draws two pictures. Jetsam's limits apply to this figure."""
        peak = self._test("testMemory").get("peak_bytes")
        if not isinstance(peak, int) or peak <= 0:
            raise MeasurementFailed(f"the phone sent a peak of {peak!r} bytes, expected a positive number; measure again")
        return peak

    def restore(self) -> None:
        """Remove the runner from the phone and its project from this Mac."""
        if self._work is not None:
            self._work.cleanup()
            self._work = None
        if self._installed:
            try:
                self._uninstall()
            except MeasurementFailed as error:
                raise MeasurementFailed(f"the app Runner stays on the phone ({error}); delete it by hand") from None
            self._installed = self._fresh = False

    def _write_bench(self, job: LinkJob, bench: Path) -> None:
        """Write compiled components, raw inputs and plan.json, which RunnerTests.swift reads."""
        bench.mkdir()
        components = []
        for role, package in job.components.items():
            ports = package_inputs(package)
            read_inputs(ports, job.inputs[role])
            checked(self._shell, ["xcrun", "coremlcompiler", "compile", str(package), str(bench)], SLOW, ERRORS)
            (bench / f"{package.stem}.mlmodelc").rename(bench / f"{role}.mlmodelc")
            inputs = []
            for i, (port, path) in enumerate(zip(ports, job.inputs[role], strict=True)):
                shutil.copyfile(path, bench / f"{role}_{i}.bin")
                inputs.append({"name": port.name, "file": f"{role}_{i}.bin", "dtype": port.dtype, "shape": port.shape})
            components.append({"role": role, "model": f"{role}.mlmodelc", "calls": job.calls[role], "inputs": inputs})
        plan = {"computeUnits": self.units, "components": components}
        (bench / "plan.json").write_text(json.dumps(plan, indent=1), encoding="utf-8")

    def _built(self) -> Path:
        if self._work is None:
            raise MeasurementFailed("the runner is not built, expected `prepare` first; start the measurement again")
        return Path(self._work.name)

    def _common(self) -> Sequence[str]:
        project, derived = str(self._built() / "project" / "Runner.xcodeproj"), str(self._built() / "derived")
        return "-project", project, "-scheme", "Runner", "-destination", f"id={self.phone.udid}", "-derivedDataPath", derived

    def _test(self, name: str, **environment: int) -> dict[str, Any]:
        """Run one test on the phone and read its result."""
        work = self._built()
        self._runs += 1
        bundle, out = work / f"{self._runs}.xcresult", work / f"{self._runs}"
        variables = [f"TEST_RUNNER_{key}={value}" for key, value in environment.items()]  # xcodebuild passes these to the test
        argv = ["env", *variables, "xcodebuild", "test-without-building", *self._common(), "-resultBundlePath", str(bundle)]
        done = checked(self._shell, [*argv, f"-only-testing:RunnerTests/RunnerTests/{name}"], SLOW, ERRORS)
        exported = ["xcrun", "xcresulttool", "export", "attachments", "--path", str(bundle), "--output-path", str(out)]
        self._shell(exported, SLOW)  # fails with an older Xcode; then the marked line is used
        return _result(out, done.out, name)

    def _loads(self) -> tuple[float, ...]:
        self._fresh = False
        times = _numbers(self._test("testLoad").get("load_ms", ()))
        if len(times) != 2:
            raise MeasurementFailed(f"the phone sent {len(times)} load times, expected 2; measure again")
        return times

    def _uninstall(self) -> None:
        argv = ["xcrun", "devicectl", "device", "uninstall", "app", "--device", self.phone.udid, self.bundle_id]
        done = self._shell(argv, QUICK * 2)
        if done.code != 0 and not re.search(r"not installed|no such app|could not find|not found", done.text, re.IGNORECASE):
            checked(lambda _argv, _timeout: done, argv, QUICK, ERRORS)


def _result(attachments: Path, out: str, name: str) -> dict[str, Any]:
    """The JSON result of a test: from its attachment, else from the marked line."""
    texts = [p.read_text(encoding="utf-8") for p in sorted(attachments.glob("*.json")) if p.name != "manifest.json"]
    texts += [line.partition(MARKER)[2] for line in out.splitlines() if MARKER in line]
    for text in texts:
        try:
            data = json.loads(text)
        except ValueError:
            continue
        if isinstance(data, dict) and "after" in data:
            return data
    raise MeasurementFailed(
        f"{name} ran on the phone but reported no readable result; see its log in Xcode, then measure again"
    )


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(v, (int, float)) and v > 0 and math.isfinite(v) for v in values
    ):
        raise MeasurementFailed("the phone sent times that are not positive numbers; measure again")
    return tuple(float(v) for v in values)


def _state(data: Any) -> DeviceState:
    """Parse the state in the runner's JSON. iOS does not report the battery's temperature."""
    try:
        percent = data["battery_percent"]
        return DeviceState(int(data["thermal"]), None if percent is None else float(percent), None, bool(data["low_power"]))
    except (KeyError, TypeError, ValueError):
        raise MeasurementFailed(f"the phone sent the state {data!r}, expected thermal, battery_percent and low_power") from None
