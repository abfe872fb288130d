"""A second export of one plan: from the cache, verified again, equal to the first but for its record of the run."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from snapgen_deploy.bundle.reader import SUMS, check_hashes, open_bundle
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.onnx.target import Onnx
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.job import checked
from snapgen_deploy.job.cache import export_cache_root
from snapgen_deploy.plan import plan
from tests.cli.conftest import in_this_process, invoke


@pytest.fixture
def ran(monkeypatch):
    """Names of the child processes that an export started; their work is done in this process."""
    names = []
    in_this_process(monkeypatch, names)
    return names


@pytest.fixture(scope="module")
def first(checkpoint, tmp_path_factory):
    """A first export, which filled a cache: its result, its bundle, and the cache's place."""
    place = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        in_this_process(patch)
        done = export(checkpoint, place / "a")
        assert done.exit_code == 0, done.output
        return done, place / "a" / "tiny-test-server", export_cache_root()


@pytest.fixture
def filled(first):
    """This test's cache holds what the first export stored."""
    shutil.copytree(first[2], export_cache_root())


def export(checkpoint, place, *more):
    return invoke(
        "export", "--device", "server", "--width", "tiny", "--checkpoint", checkpoint, "-o", place, "--threads", 1, *more
    )


def entries():
    return sorted(export_cache_root().iterdir()) if export_cache_root().exists() else []


def test_the_second_export_is_cached_verified_and_equal(checkpoint, tmp_path, ran, first, filled):
    assert "from the cache" not in first[0].stdout
    assert len(entries()) == 3
    second = export(checkpoint, tmp_path)
    assert second.exit_code == 0, second.output
    assert ran == ["reference", "onnx:cpu check"]
    assert "3 of 3 components came from the cache; their gates ran again" in second.stdout
    bundles = [open_bundle(path) for path in (first[1], tmp_path / "tiny-test-server")]
    assert bundles[0].manifest == bundles[1].manifest
    assert (bundles[0].path / SUMS).read_bytes() == (bundles[1].path / SUMS).read_bytes()
    check_hashes(bundles[1])
    runs = [bundle.run() for bundle in bundles]
    assert [run["cached"] for run in runs] == [False, True]
    assert runs[1]["export_peak_bytes"] == runs[0]["export_peak_bytes"] == 7


@pytest.mark.usefixtures("converted_anew")
def test_what_converters_write_on_their_way_lies_beside_the_bundle(checkpoint, tmp_path, ran, monkeypatch):
    real, places = Onnx.export, []

    def seen(*arguments):
        places.append(Path(tempfile.mkdtemp()))  # as a library would, that leaves it behind
        return real(*arguments)

    monkeypatch.setattr(Onnx, "export", seen)
    before = tempfile.gettempdir()
    done = export(checkpoint, tmp_path, "--no-cache")
    assert done.exit_code == 0, done.output
    assert len(places) == 3
    assert {p.parent.parent for p in places} == {tmp_path}
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-test-server"]  # and it went with the run
    assert tempfile.gettempdir() == before


@pytest.mark.parametrize(("device", "width"), [("iphone16pm", "small"), ("server", "tiny")])  # others convert these as well
def test_resume_takes_up_a_run_that_was_killed_without_it(checkpoint, tmp_path, ran, monkeypatch, device, width):
    """A server's files are moved into a layout."""
    out, aside = tmp_path / "out", tmp_path / "as it was killed"
    plain = ("--target", "onnx", "--width", width, "--checkpoint", checkpoint, "-o", out, "--threads", 1, "--no-cache")

    def killed(*_, **__):
        shutil.copytree(out, aside)
        raise BadInput("ends here")

    with monkeypatch.context() as patch:
        patch.setattr(checked, "check_sizes", killed)
        assert invoke("export", "--device", device, *plain).exit_code == 2
    assert len(ran) == 1 + 3 + 1
    ran.clear()
    assert not out.exists()  # nothing is left of a run that failed
    aside.rename(out)
    done = invoke("export", "--device", device, *plain, "--resume")
    assert done.exit_code == 0, done.output
    assert ran == ["reference", "onnx:cpu check"]
    assert [p.name for p in out.iterdir()] == [f"tiny-test-{device}"]
    assert not list((out / f"tiny-test-{device}").glob(".*"))


def test_a_full_disk_says_nothing_of_an_entry(checkpoint, tmp_path, ran, filled, monkeypatch):
    def full(source, to):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = entries()
    with monkeypatch.context() as patch:
        patch.setattr("snapgen_deploy.job.cache.shutil.copyfile", full)
        done = export(checkpoint, tmp_path)
    assert done.exit_code == 2, done.output
    assert "is full; free space" in " ".join(done.stderr.split())
    assert entries() == before


def test_a_damaged_entry_is_exported_again(checkpoint, tmp_path, ran, filled):
    victim = next(p for p in export_cache_root().rglob("student.onnx"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    done = export(checkpoint, tmp_path, "--json")
    assert done.exit_code == 0, done.output
    assert ran == ["reference", "onnx:cpu student", "onnx:cpu check"]
    data = json.loads(done.stdout)
    assert data["run"]["targets"]["onnx:cpu"]["cached"] == {"text_encoder": True, "student": False, "decoder": True}
    assert "was removed" in data["notes"][0]
    assert len(entries()) == 3


def test_no_cache_neither_reads_nor_writes(checkpoint, tmp_path, ran):
    assert export(checkpoint, tmp_path / "a", "--no-cache").exit_code == 0
    assert entries() == []


@pytest.fixture
def strict(monkeypatch):
    """No export passes its gates."""
    fp32 = PRECISIONS["fp32"]
    monkeypatch.setattr(plan, "PRECISIONS", {"fp32": replace(fp32, limits=replace(fp32.limits, error=1e-30))})


def test_what_failed_its_gates_is_not_kept(checkpoint, tmp_path, ran, strict):
    assert export(checkpoint, tmp_path).exit_code == 1
    assert entries() == []


def test_what_fails_its_gates_later_is_dropped(checkpoint, tmp_path, ran, strict, filled):
    assert len(entries()) == 3
    assert export(checkpoint, tmp_path).exit_code == 1
    assert entries() == []


def test_a_checkpoint_that_changes_under_the_export_is_refused(checkpoint, tmp_path, ran, monkeypatch):
    copy = tmp_path / "c.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    check = checked.check_sizes

    def touched(*arguments, **more):
        copy.write_bytes(checkpoint.read_bytes())
        return check(*arguments, **more)

    monkeypatch.setattr(checked, "check_sizes", touched)
    done = export(copy, tmp_path / "a")
    assert done.exit_code == 2
    assert "was changed while it was exported" in done.stderr
    assert entries() == []
    assert not (tmp_path / "a").exists()


def test_an_interrupted_run_goes_on_although_a_layout_had_moved_its_files(checkpoint, tmp_path, ran, first, monkeypatch):
    def broken(*_, **__):
        raise BadInput("interrupted")

    options = ("--resume", "--no-cache")
    with monkeypatch.context() as patch:
        patch.setattr(checked, "check_sizes", broken)
        assert export(checkpoint, tmp_path, *options).exit_code == 2
    ran.clear()
    done = export(checkpoint, tmp_path, *options)
    assert done.exit_code == 0, done.output
    assert ran == ["reference", "onnx:cpu check"]
    assert (tmp_path / "tiny-test-server" / SUMS).read_bytes() == (first[1] / SUMS).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-test-server"]


def test_a_bad_limit_is_one_line(checkpoint, tmp_path):
    done = export(checkpoint, tmp_path, "--cache-limit", "huge")
    assert done.exit_code == 2
    assert "--cache-limit: got 'huge'" in done.stderr
