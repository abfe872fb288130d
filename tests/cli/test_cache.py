"""A second export of one plan: from the cache, verified again, equal to the first but for its record of the run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from snapgen_deploy import exporter, plan
from snapgen_deploy.bundle import SUMS, check_hashes, open_bundle
from snapgen_deploy.cache import default_root
from snapgen_deploy.device_profiles import PRECISIONS
from tests.cli.conftest import invoke


@pytest.fixture
def ran(monkeypatch):
    """Names of the child processes that an export started; their work is done in this process."""
    names = []

    def here(what, function, *arguments):
        names.append(what)
        return function(*arguments), 7

    monkeypatch.setattr(exporter, "run_in_child", here)
    return names


def export(checkpoint, place, *more):
    return invoke(
        "export", "--device", "server", "--width", "tiny", "--checkpoint", checkpoint, "-o", place, "--threads", 1, *more
    )


def entries():
    return sorted(default_root().iterdir()) if default_root().exists() else []


def test_the_second_export_is_cached_verified_and_equal(checkpoint, tmp_path, ran):
    first = export(checkpoint, tmp_path / "a")
    assert first.exit_code == 0, first.output
    assert "from the cache" not in first.stdout
    assert len(entries()) == 3
    before = len(ran)
    second = export(checkpoint, tmp_path / "b")
    assert second.exit_code == 0, second.output
    assert ran[before:] == ["reference", "onnx:cpu check"]
    assert "3 of 3 components came from the cache; their gates ran again" in second.stdout
    bundles = [open_bundle(tmp_path / name / "tiny-test-server") for name in "ab"]
    assert bundles[0].manifest == bundles[1].manifest
    assert (bundles[0].path / SUMS).read_bytes() == (bundles[1].path / SUMS).read_bytes()
    check_hashes(bundles[1])
    runs = [bundle.run() for bundle in bundles]
    assert [run["cached"] for run in runs] == [False, True]
    assert runs[1]["export_peak_bytes"] == runs[0]["export_peak_bytes"] == 7


def test_a_damaged_entry_is_exported_again(checkpoint, tmp_path, ran):
    assert export(checkpoint, tmp_path / "a").exit_code == 0
    victim = next(p for p in default_root().rglob("student.onnx"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    before = len(ran)
    done = export(checkpoint, tmp_path / "b", "--json")
    assert done.exit_code == 0, done.output
    assert ran[before:] == ["reference", "onnx:cpu student", "onnx:cpu check"]
    data = json.loads(done.stdout)
    assert data["run"]["targets"]["onnx:cpu"]["cached"] == {"text_encoder": True, "student": False, "decoder": True}
    assert "thrown away" in data["notes"][0]
    assert len(entries()) == 3


def test_no_cache_neither_reads_nor_writes(checkpoint, tmp_path, ran):
    assert export(checkpoint, tmp_path / "a", "--no-cache").exit_code == 0
    assert entries() == []


def test_what_failed_its_gates_is_not_kept(checkpoint, tmp_path, ran, monkeypatch):
    fp32 = PRECISIONS["fp32"]
    strict = {"fp32": replace(fp32, limits=replace(fp32.limits, error=1e-30))}
    monkeypatch.setattr(plan, "PRECISIONS", strict)
    assert export(checkpoint, tmp_path / "a").exit_code == 1
    assert entries() == []
    monkeypatch.setattr(plan, "PRECISIONS", PRECISIONS)
    assert export(checkpoint, tmp_path / "a").exit_code == 0
    assert len(entries()) == 3
    monkeypatch.setattr(plan, "PRECISIONS", strict)
    assert export(checkpoint, tmp_path / "b").exit_code == 1
    assert entries() == []


def test_a_checkpoint_that_changes_under_the_export_is_refused(checkpoint, tmp_path, ran, monkeypatch):
    copy = tmp_path / "c.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    check = exporter.check_sizes

    def touched(*arguments):
        copy.write_bytes(checkpoint.read_bytes())
        return check(*arguments)

    monkeypatch.setattr(exporter, "check_sizes", touched)
    done = export(copy, tmp_path / "a")
    assert done.exit_code == 2
    assert "was changed while it was exported" in done.stderr
    assert entries() == []
    assert list((tmp_path / "a").iterdir()) == []


def test_a_bad_limit_is_one_line(checkpoint, tmp_path):
    done = export(checkpoint, tmp_path, "--cache-limit", "huge")
    assert done.exit_code == 2
    assert "--cache-limit: got 'huge'" in done.stderr
