import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapgen_deploy.bundle.reader import files_under
from snapgen_deploy.checkpoint import open_checkpoint, save_checkpoint
from snapgen_deploy.checkpoint.unchanged import refuse_changed
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact, Description
from snapgen_deploy.job import cache as module
from snapgen_deploy.job.cache import ExportCache, export_cache_root, export_key, tool_versions
from snapgen_deploy.job.records import Exported
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.system import source
from snapgen_deploy.system.files import ABANDONED, stamps
from snapgen_deploy.system.source import package_root, source_sha256
from tests.checkpoint.cases import tiny_config, tiny_model

TARGET = "executorch:xnnpack"


def exported(directory: Path, size: int = 1000) -> Exported:
    (directory / "student.mlpackage" / "Data").mkdir(parents=True, exist_ok=True)
    files = (directory / "student.mlpackage" / "Data" / "weights", directory / "student.json")
    for path in files:
        path.write_bytes(os.urandom(size // 2))
    artifact = Artifact(TARGET, "student", directory / "student.mlpackage", files)
    return Exported(artifact, Description(size, {"add": 2}, notes=("a note",)), {"tool": "1"}, 12345)


def store(cache: ExportCache, key: str, directory: Path, size: int = 1000) -> Exported:
    made = exported(directory, size)
    aside = cache.prepare(directory, made)
    assert aside is not None
    cache.commit(key, aside)
    return made


@pytest.fixture
def cache(tmp_path):
    return ExportCache(tmp_path / "cache", 10_000_000)


def test_what_was_stored_comes_back_equal_and_marked(cache, tmp_path):
    made = store(cache, "k", tmp_path / "first")
    assert cache.has("k")
    found = cache.take("k", TARGET, "student", tmp_path / "second")
    assert found is not None
    assert (found.cached, made.cached) == (True, False)
    assert (found.description, found.versions, found.peak_bytes) == (made.description, made.versions, made.peak_bytes)
    assert found.artifact.path == tmp_path / "second" / "student.mlpackage"
    assert [p.read_bytes() for p in found.artifact.files] == [p.read_bytes() for p in made.artifact.files]
    assert files_under(tmp_path / "second") == sorted(found.artifact.files)
    assert [p.name for p in cache.root.iterdir()] == ["k"]


@pytest.mark.parametrize("victim", ["student.json", "student.mlpackage/Data/weights", ".executorch-xnnpack-student.done"])
@pytest.mark.parametrize("damage", ["change", "remove", "truncate", "no text"])
def test_a_damaged_entry_is_thrown_away(cache, tmp_path, victim, damage):
    store(cache, "k", tmp_path / "first")
    path = cache.root / "k" / victim
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "no text":
        path.write_bytes(b"\xff" + data)
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "change" else data[:10])
    assert cache.take("k", TARGET, "student", tmp_path / "second") is None
    assert not cache.has("k")
    assert "was removed" in cache.notes[0]
    assert not (tmp_path / "second").exists() or files_under(tmp_path / "second") == []


def test_the_least_recently_used_goes_first(tmp_path):
    cache = ExportCache(tmp_path / "cache", 10_000)
    for i, key in enumerate("ab"):
        store(cache, key, tmp_path / key, 4000)
        os.utime(cache.root / key / module.SEAL, (i + 1, i + 1))
    assert cache.take("a", TARGET, "student", tmp_path / "again") is not None
    store(cache, "c", tmp_path / "c", 4000)
    assert [cache.has(k) for k in "abc"] == [True, False, True]
    assert cache.prepare(tmp_path / "d", exported(tmp_path / "d", 20_000)) is None


def test_what_a_crashed_process_left_is_removed_and_what_a_living_one_writes_is_not(cache, tmp_path):
    store(cache, "k", tmp_path / "first")
    for name, age in ((".new-old", 2 * ABANDONED), (".new-young", 0)):
        (cache.root / name).mkdir()
        stamp = (cache.root / name).stat().st_mtime - age
        os.utime(cache.root / name, (stamp, stamp))
    cache.evict()
    assert sorted(p.name for p in cache.root.iterdir()) == [".new-young", "k"]


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ExportCache(tmp_path / "file" / "cache")
    assert cache.prepare(tmp_path / "first", exported(tmp_path / "first")) is None
    assert "cannot be written" in cache.notes[0]


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert export_cache_root() == tmp_path / "snapgen-deploy" / "exports"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert export_cache_root() == Path.home() / ".cache" / "snapgen-deploy" / "exports"


def test_the_key_knows_all_that_decides_the_files(tmp_path, monkeypatch):
    state = tiny_model()[1]
    save_checkpoint(state, tiny_config(), tmp_path / "a.safetensors")
    changed = dict(state)
    name = next(n for n in changed if n.endswith("bias"))
    changed[name] = changed[name] + 1
    save_checkpoint(changed, tiny_config(), tmp_path / "b.safetensors")
    opened = open_checkpoint(tmp_path / "a.safetensors")
    other = open_checkpoint(tmp_path / "b.safetensors")
    plan = make_plan(opened.config, load_profile("server"), width="tiny", resolution=(64, 64))
    target = plan.targets[0]
    first = export_key(opened, plan, target, "student")
    keys = [
        first,
        export_key(other, plan, target, "student"),
        export_key(opened, plan, target, "decoder"),
        export_key(opened, replace(plan, width="small"), target, "student"),
        export_key(opened, replace(plan, resolution=(128, 64), latent=(4, 16, 8)), target, "student"),
    ]
    fields = {"target": "x", "variant": "x", "precision": "x", "layout": "x", "form": "x", "options": (("opset", "9"),)}
    keys += [export_key(opened, plan, replace(target, **{name: value}), "student") for name, value in fields.items()]
    monkeypatch.setattr(module, "source_sha256", lambda: "other source")
    keys.append(export_key(opened, plan, target, "student"))
    monkeypatch.undo()
    monkeypatch.setattr(module, "tool_versions", lambda: (("torch", "9"),))
    keys.append(export_key(opened, plan, target, "student"))
    monkeypatch.undo()
    assert len(set(keys)) == len(keys)
    assert export_key(open_checkpoint(tmp_path / "a.safetensors"), plan, target, "student") == first
    narrow = replace(plan, width="small", device="other", reasons=())
    assert export_key(opened, narrow, target, "decoder") == keys[2]  # the decoder is the same at every width
    drawn = [export_key(opened, p, target, "decoder", "what a student drew") for p in (plan, narrow)]
    assert len({*drawn, *keys}) == len(keys) + 2  # but not what it was calibrated on


def test_source_and_tools_are_really_read():
    assert dict(tool_versions())["torch"].startswith("2.")
    assert (package_root() / "export" / "onnx" / "target.py").is_file()


def test_the_hash_of_the_source_is_that_of_every_python_file(tmp_path, monkeypatch):
    root, room = tmp_path / "package", tmp_path / "room"
    for folder in (root / "own", room / "inner"):
        folder.mkdir(parents=True)
    (root / "linked").symlink_to(room)  # as in a working tree
    (root / "own" / "a.py").write_text("a = 1")
    (room / "inner" / "b.py").write_text("b = 1")
    (room / "notes.txt").write_text("n")
    monkeypatch.setattr(source, "package_root", lambda: root)
    fresh = source_sha256.__wrapped__  # a run asks once
    whole, own, linked = fresh(), fresh("own"), fresh("linked")
    assert len({whole, own, linked, fresh("own", "linked")}) == 3  # the last is the whole
    (room / "notes.txt").write_text("m")
    assert fresh() == whole
    (room / "inner" / "b.py").write_text("b = 2")
    assert (fresh() == whole, fresh("own") == own, fresh("linked") == linked) == (False, True, False)
    (room / "inner" / "b.py").rename(room / "inner" / "c.py")
    assert fresh("linked") != linked


def test_a_file_that_is_written_again_has_another_stamp(tmp_path):
    path = tmp_path / "f"
    path.write_text("a")
    os.utime(path, (1, 1))
    before = stamps([path])
    path.write_text("b")
    assert stamps([path]) != before


def test_a_checkpoint_that_is_gone_was_changed(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"1")
    checkpoint = SimpleNamespace(path=file, files=(file,))
    before = stamps((file,))
    refuse_changed(checkpoint, before)
    file.unlink()
    with pytest.raises(BadInput, match="was changed while it was exported"):
        refuse_changed(checkpoint, before)
