"""A Mac with Xcode and a phone: xcodebuild, devicectl, coremlcompiler and xcresulttool as far as the link calls them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapgen_deploy.latency.links.shell import Completed

UDID = "00008140-001A2B3C4D5E6F70"
MS = {"text_encoder": 2.0, "student": 8.0, "decoder": 3.0}
FAILED = "Testing failed:\n\t{why}\n\n** TEST EXECUTE FAILED **\n"


def device(udid: str = UDID, **changed: str) -> dict[str, Any]:
    """One entry of `devicectl list devices`, by its three groups of properties."""
    said = {"tunnelState": "disconnected", "pairingState": "paired", "developerModeStatus": "enabled"} | changed
    return {
        "identifier": "6F1B0C1E-0000-4000-8000-000000000001",
        "connectionProperties": {"pairingState": said["pairingState"], "tunnelState": said["tunnelState"]},
        "deviceProperties": {
            "name": "My iPhone",
            "osVersionNumber": "18.3",
            "osBuildUpdate": "22D63",
            "developerModeStatus": said["developerModeStatus"],
        },
        "hardwareProperties": {"platform": "iOS", "reality": "physical", "udid": udid, "productType": "iPhone17,2"},
    }


@dataclass
class FakeXcode:
    devices: Any = field(default_factory=lambda: [device()])
    missing: bool = False  # Xcode itself
    build_error: str = ""
    test_error: str = ""  # from the test named in fails_at on
    fails_at: str = "testPictures"
    garbage: bool = False
    attachments: bool = True  # Xcode 16 and later
    heat: int = 0  # pictures until the phone gets hot; 0: never
    pictures: int = 0
    installed: bool = False
    uninstall_error: str = ""
    loads: int = 0
    result: dict[str, Any] = field(default_factory=dict)
    projects: list[Path] = field(default_factory=list)

    def __call__(self, argv: Sequence[str], timeout: float) -> Completed:
        words = [word for word in argv if word != "env" and not word.startswith("TEST_RUNNER_")]
        if self.missing:
            directory = "active developer directory '/Library/Developer/CommandLineTools' is a command line tools instance"
            return Completed(1, "", f"xcode-select: error: tool '{words[-1]}' requires Xcode, but {directory}\n")
        if words[:3] == ["xcrun", "devicectl", "list"]:
            listing = "not json" if self.devices is None else json.dumps({"result": {"devices": self.devices}})
            Path(words[words.index("--json-output") + 1]).write_text(listing)
            return Completed(0, "")
        if words[:3] == ["xcrun", "devicectl", "device"]:
            return self._uninstall()
        if words[:2] == ["xcrun", "coremlcompiler"]:
            (Path(words[4]) / f"{Path(words[3]).stem}.mlmodelc").mkdir()
            return Completed(0, "")
        if words[:2] == ["xcrun", "xcresulttool"]:
            return self._export(Path(words[words.index("--output-path") + 1]))
        if words == ["xcodebuild", "-version"]:
            return Completed(0, "Xcode 16.2\nBuild version 16C5032a\n")
        assert words[words.index("-destination") + 1] == f"id={UDID}"
        if words[1] == "build-for-testing":
            return self._build(words)
        assert words[1] == "test-without-building"
        variables = dict(word.removeprefix("TEST_RUNNER_").split("=") for word in argv if word.startswith("TEST_RUNNER_"))
        return self._test(words[-1].rpartition("/")[2], {name: int(value) for name, value in variables.items()})

    def _build(self, words: list[str]) -> Completed:
        if self.build_error:
            return Completed(65, f"error: {self.build_error}\n** TEST BUILD FAILED **\n")
        assert "DEVELOPMENT_TEAM=ABCDE12345" in words
        assert "RUNNER_BUNDLE_ID=dev.snapgen.runner.abcde12345" in words
        project = Path(words[words.index("-project") + 1])
        self.projects.append(project)
        for needed in ("Runner/RunnerApp.swift", "RunnerTests/RunnerTests.swift", "Runner/Bench/student.mlmodelc"):
            assert (project.parent / needed).exists()
        assert (project / "xcshareddata/xcschemes/Runner.xcscheme").is_file()
        return Completed(0, "** TEST BUILD SUCCEEDED **\n")

    def _test(self, name: str, variables: dict[str, int]) -> Completed:
        if self.test_error and name == self.fails_at:
            return Completed(65, FAILED.format(why=self.test_error))
        self.installed = True
        before = self._state()
        said = self._said(name, variables)
        self.result = {"before": before, "after": self._state()} | said
        line = "???" if self.garbage else f"SNAPGEN-RESULT {json.dumps(self.result)}"
        return Completed(0, f"Test Case '-[RunnerTests {name}]' started.\n{line}\n** TEST EXECUTE SUCCEEDED **\n")

    def _said(self, name: str, variables: dict[str, int]) -> dict[str, Any]:
        if name == "testLoad":
            self.loads += 1
            return {"load_ms": [900.0 if self.loads == 1 else 90.0, 60.0]}
        if name == "testMemory":
            return {"peak_bytes": 300_000_000}
        if name == "testState":
            return {}
        queries = variables["SNAPGEN_QUERIES"]
        self.pictures += queries + variables["SNAPGEN_WARMUPS"]
        calls = {"text_encoder": 1, "student": 4, "decoder": 1}
        samples = {role: [MS[role]] * (queries * n) for role, n in calls.items()}
        return {"samples": samples | {"e2e": [37.5] * queries}}

    def _state(self) -> dict[str, Any]:
        hot = bool(self.heat) and self.pictures >= self.heat
        return {"thermal": 2 if hot else 0, "battery_percent": 80.0, "low_power": False}

    def _export(self, folder: Path) -> Completed:
        if not self.attachments:
            return Completed(64, "", "Error: Unknown subcommand 'export'\n")
        folder.mkdir()
        exported = "0E1F2A3B-0000-4000-8000-000000000002.json"
        attachment = {"exportedFileName": exported, "suggestedHumanReadableName": "snapgen-result_0_0E1F2A3B.json"}
        manifest = [{"testIdentifier": "RunnerTests/testPictures()", "attachments": [attachment]}]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / exported).write_text("???" if self.garbage else json.dumps(self.result))
        return Completed(0, "")

    def _uninstall(self) -> Completed:
        if self.uninstall_error:
            return Completed(1, "", f"ERROR: {self.uninstall_error}\n")
        if not self.installed:
            return Completed(1, "", "ERROR: The application is not installed (com.apple.dt.CoreDeviceError error 3002)\n")
        self.installed = False
        return Completed(0, "App uninstalled.\n")
