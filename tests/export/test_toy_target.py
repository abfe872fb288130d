"""A new target is one module and one line of the registry: every command takes it, and no other file knows of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.check import verify
from snapgen_deploy.export import registry
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.job import checked, convert, drawn
from snapgen_deploy.latency.compare.duel import mode_for
from snapgen_deploy.latency.measure import host
from snapgen_deploy.latency.results import RUN_PROFILES, RunProfile
from tests.cli.conftest import checkpoint, in_this_process, invoke
from tests.cli.test_bad_input import one_line

__all__ = ["checkpoint"]  # the fixture

LINE = ("toy", "tests.export.toy_target:SPEC")
PROFILE = """
id = "toybox"
name = "Toy box"
kind = "server"
soc = "x86-64"
source = "this test"
[os]
name = "Linux"
minimum = "any"
[figures]
[budget]
memory = { value = 2, unit = "GB", status = "chosen", source = "this test" }
[[targets]]
target = "toy"
precision = "fp32"
layout = "token"
[targets.options]
author = "us"
"""


@pytest.fixture(scope="module")
def registered():
    """The one line, while the tests of this file run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.TARGETS, *LINE)
        in_this_process(patch, modules=(drawn, convert, checked, verify))
        yield patch


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "toybox.toml"
    path.write_text(PROFILE)
    return path


@pytest.fixture(scope="module")
def toy_bundle(registered, profile: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles")
    chosen = ("--device", profile, "--checkpoint", checkpoint, "--width", "tiny", "--threads", 1, "--no-cache", "--fidelity")
    done = invoke("export", *chosen, "--fidelity-samples", 4, "-o", out)
    assert done.exit_code == 0, done.output
    return out / "tiny-test-toybox"


def as_json(*arguments: object) -> dict:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.usefixtures("registered")
def test_devices_and_plan(profile: Path, checkpoint: Path) -> None:
    assert [t["target"] for t in as_json("devices", profile)["devices"][0]["targets"]] == ["toy"]
    offered = as_json("devices", "--precisions")["precisions"]
    assert {name for name, p in offered.items() if "toy" in p["targets"]} == {"fp32", "fp16"}
    plan = as_json("export", "--device", profile, "--checkpoint", checkpoint, "--precision", "fp16", "--dry-run")
    assert [(t["key"], t["precision"], t["options"]) for t in plan["targets"]] == [("toy", "fp16", {"author": "us"})]
    assert plan["export_memory"]["targets"]["toy"]["student"] > 600_000_000
    one_line(invoke("export", "--device", profile, "--precision", "int4", "--dry-run"), "toy has no precision 'int4'")
    one_line(
        invoke("export", "--device", profile, "--target", "toy", "--resolution", 64, "--resolution", 128, "--dry-run"),
        "target toy cannot be exported: it holds one picture size (a file holds one program)",
    )
    # A profile that does not name it can still be asked for it.
    other = as_json("export", "--device", "server", "--target", "toy", "--dry-run", "--overwrite")
    assert (other["targets"][0]["key"], other["targets"][0]["precision"]) == ("toy", "fp32")
    assert "toy is not among the targets of server: whether it runs there is not known" in other["reasons"]


def test_the_export_passes_every_gate_and_the_manifest_says_what_is_there(toy_bundle: Path) -> None:
    bundle = open_bundle(toy_bundle)
    assert bundle.targets == ("toy",)
    target = bundle.manifest["targets"]["toy"]
    assert {role: c["path"] for role, c in target["components"].items()} == {
        role: f"toy/{role}.pt2" for role in ("text_encoder", "student", "decoder")
    }
    assert set(target["versions"]) == {"torch"}
    assert target["components"]["student"]["weight_dtypes"] == {"float32": len(target["components"]["student"]["weights"])}
    gates = {(g["component"], g["name"]): g for g in bundle.manifest["gates"]}
    unscored = ("pipeline", "fidelity_score_change")
    assert {where for where, g in gates.items() if g["verdict"] != "passed"} == {unscored}
    assert all(g["target"] == "toy" for g in gates.values())
    limits = PRECISIONS["fp32"].limits
    for role in target["components"]:
        assert gates[role, "relative_error"]["value"] <= limits.error
    assert gates["pipeline", "psnr"]["value"] >= limits.psnr
    assert gates["pipeline", "fidelity_mean_psnr"]["value"] >= limits.mean_psnr
    assert (toy_bundle / "preview.png").is_file()


def test_verify_and_generate(toy_bundle: Path, tmp_path: Path) -> None:
    found = as_json("verify", toy_bundle, "--threads", 1)
    ran = [g for g in found["gates"] if g["verdict"] != "not_run"]
    assert {(g["component"], g["name"], g["verdict"]) for g in ran} >= {
        ("student", "relative_error", "passed"),
        ("decoder", "relative_error", "passed"),
        ("text_encoder", "relative_error", "passed"),
        ("pipeline", "psnr", "passed"),
    }
    picture = tmp_path / "a.png"
    done = invoke("generate", toy_bundle, "--prompt", "a red ring", "--output", picture, "--threads", 1)
    assert done.exit_code == 0, done.output
    assert picture.is_file()


def test_doctor_looks_inside(toy_bundle: Path) -> None:
    found = as_json("doctor", toy_bundle, "--layers")["components"]
    assert set(found) == {f"{role} (toy)" for role in ("text_encoder", "student", "decoder")}
    assert all(c["verdict"] == "passed" and c["looked_at"] > 0 for c in found.values())
    alone = as_json("doctor", toy_bundle / "toy" / "student.pt2", "--layers")["components"]
    assert alone["student.pt2"]["verdict"] == "passed"
    one_line(invoke("doctor", toy_bundle), "holds no Core ML package: its targets are toy")
    one_line(invoke("doctor", toy_bundle / "toy" / "student.pt2"), "has nothing for the Neural Engine")


def test_bench_times_it_here(toy_bundle: Path, registered: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch, modules=(host,))
        patch.setitem(RUN_PROFILES, "rapid", RunProfile("rapid", 8, 0.01))
        patch.setattr(host, "DRIFT", math.inf)  # of a machine that does other work
        for name in ("_BURST_PAUSE", "_ROUND_SECONDS"):
            patch.setattr(host, name, 0.0)
        patch.setattr(host, "LOADS", 1)
        found = as_json("bench", toy_bundle, "--threads", 1)
    assert found["key"]["backend"] == "toy"
    assert found["key"]["runtime_version"] == open_bundle(toy_bundle).manifest["targets"]["toy"]["versions"]["torch"]
    assert found["summary"]["e2e"]["n"] >= 8
    assert found["summary"]["student"]["p50"] > 0
    assert mode_for("toy", "auto") == "interleaved"
    one_line(invoke("bench", toy_bundle, "--link", "adb"), "adb runs executorch:xnnpack", "holds toy")


@pytest.mark.usefixtures("registered")
def test_estimate_has_no_basis_and_says_so(profile: Path) -> None:
    done = invoke("estimate", "--device", profile, "--preset", "shapes")
    assert done.exit_code == 3
    assert "no basis for toy on Toy box" in done.output


def test_without_its_line_it_is_unknown(toy_bundle: Path, registered: pytest.MonkeyPatch, profile: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(registry.TARGETS, "toy")
        one_line(invoke("devices", profile), "targets[0].target: got 'toy', expected one of coreml")
        for command in (("bench", toy_bundle), ("verify", toy_bundle), ("doctor", toy_bundle, "--layers")):
            one_line(invoke(*command), "manifest.json: targets: got 'toy', expected one of coreml")
