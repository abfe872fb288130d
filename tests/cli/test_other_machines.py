"""`verify --on`: gates of files that another machine runs."""

import json
import threading
from dataclasses import dataclass, replace

import pytest

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.check import gates, verify
from snapgen_deploy.check.verify import rerun_gates
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.system.progress import no_progress
from tests.cli.conftest import in_this_process, invoke


@dataclass
class Wrong:
    """A machine that computes as this one does, but for the factor that its name has."""

    key: str
    name: str = "arm64"

    def unavailable(self, spec):
        assert spec.name in ("onnx", "executorch")
        return

    def open(self, path, *, threads, entry=""):
        factor = float(self.key.partition(":")[2])
        if not factor:
            raise BadInput(f"{path.name} on {self.key}: cannot be loaded")
        run = target_of("executorch" if path.suffix == ".pte" else "onnx")[0].open(path, threads=threads, entry=entry)
        return lambda inputs: {name: value * factor for name, value in run(inputs).items()}


def test_gates_say_which_machine_ran_the_files(bundle, monkeypatch):
    in_this_process(monkeypatch, modules=(verify,))
    monkeypatch.setattr(gates, "machine_of", Wrong)
    opened = open_bundle(bundle)
    found = rerun_gates(opened, 1, no_progress, on=["arm64:1", "arm64:1.01"])
    ran = [g for g in found if g.target == "onnx:cpu"]
    assert {g.on: g.verdict for g in ran if g.component == "student"} == {"arm64:1": "passed", "arm64:1.01": "failed"}
    assert [g.as_dict()["on"] for g in ran[:1]] == ["arm64:1"]
    assert {g.name for g in ran} == {"relative_error", "psnr", "median_psnr"}  # placement is this machine's
    program = {g.on: g.verdict for g in found if g.target == "executorch:xnnpack" and g.component == "student"}
    assert program == {"arm64:1": "passed", "arm64:1.01": "failed"}
    idle = [g for g in found if g.target == "coreml"]
    assert {g.verdict for g in idle} == {"not_run"}
    assert {g.detail for g in idle} == {"arm64 here runs no files of coreml"}


def test_a_file_that_a_machine_does_not_load_fails_its_gates(bundle, monkeypatch):
    in_this_process(monkeypatch, modules=(verify,))
    monkeypatch.setattr(gates, "machine_of", Wrong)
    found = rerun_gates(open_bundle(bundle), 1, no_progress, on=["arm64:0"])
    refused = [g for g in found if g.target == "executorch:xnnpack"]
    assert {(g.component, g.name) for g in refused} == {
        *((role, "relative_error") for role in ("text_encoder", "student", "decoder")),
        ("pipeline", "psnr"), ("pipeline", "median_psnr"),
    }  # fmt: skip
    assert {(g.verdict, g.value, g.on) for g in refused} == {("failed", None, "arm64:0")}
    assert all(g.detail.endswith(".pte on arm64:0: cannot be loaded") for g in refused)


def test_without_a_setup_they_are_not_run(bundle, monkeypatch):
    in_this_process(monkeypatch, modules=(verify,))
    done = invoke("verify", bundle, "--on", "arm64", "--on", "arm64:cortex-a76", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["gates"]
    assert {(g["verdict"], g["on"]) for g in found} == {("not_run", "arm64:cortex-a76")}
    assert "arm64: it is not set up; run `snapgen-deploy setup arm64`" in {g["detail"] for g in found}
    refused = invoke("verify", bundle, "--on", "arm64:m1")
    assert refused.exit_code == 2
    assert "no processor 'm1'" in refused.stderr


def test_recorded_gates_of_another_machine_are_left_without_it(bundle, monkeypatch):
    in_this_process(monkeypatch, modules=(verify,))
    monkeypatch.setattr(verify, "check_sizes", lambda saved, vectors, on_progress: {})
    opened = open_bundle(bundle)
    there = [g | {"on": "arm64:max"} for g in opened.manifest["gates"] if g["name"] == "psnr"]
    opened = replace(opened, manifest=opened.manifest | {"gates": [*opened.manifest["gates"], *there]})
    found = rerun_gates(opened, 1, no_progress)
    assert len(found) == len(there) > 0
    assert all(g.detail.startswith("it needs another machine, --on arm64:max; at export: passed with") for g in found)


@pytest.mark.parametrize(("needed", "threads", "at_a_time"), [(10**6, 1, 3), (10**10, 4, 1)], ids=["small", "large"])
def test_checks_run_side_by_side_where_memory_allows(bundle, monkeypatch, needed, threads, at_a_time):
    """Small ones at the same time, each with its part of four threads; large ones one by one, each with all of them."""
    opened = open_bundle(bundle)
    together, given = threading.Barrier(at_a_time), []

    def child(what, check, saved, vectors, on_progress):
        given.extend(files.threads for files in saved.values())
        together.wait(timeout=30)  # broken where fewer run at a time
        return {}, 0

    monkeypatch.setattr(verify, "run_in_child", child)
    monkeypatch.setattr(verify, "check_bytes", lambda *_: needed)
    monkeypatch.setattr(verify, "refuse_other_values", lambda *_: None)
    rerun_gates(opened, 4, no_progress)
    assert given == [threads] * len(opened.targets)
