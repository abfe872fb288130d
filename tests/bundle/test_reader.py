import errno
import json
import os
from pathlib import Path

import pytest

from snapgen_deploy.bundle.draw import WantedPicture, draw
from snapgen_deploy.bundle.reader import MANIFEST, RUN, SUMS, Bundle, check_hashes, open_bundle, write_manifest
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.export.base import Artifact, Description
from snapgen_deploy.job.records import Exported, read_record, remove_unowned, write_record
from snapgen_deploy.job.staging import check_place, staging
from snapgen_deploy.models.noise import PHILOX
from snapgen_deploy.system.files import ABANDONED, exchange_names
from tests.manifests import component, files_of, least_manifest

TARGETS = {"onnx:cpu": {"student": component("onnx/student.onnx")}}


def build(final, text="hello", **options):
    options = {"overwrite": False, "resume": False} | options
    with staging(final, "key", **options) as stage:
        (stage.root / "onnx").mkdir(exist_ok=True)
        (stage.root / "onnx" / "student.onnx").write_text(text)
        (stage.root / "onnx" / "student.onnx").chmod(0o600)
        write_manifest(stage.root, least_manifest(TARGETS, files=files_of(stage.root)))
        stage.publish(options["overwrite"])
    return final


def left(directory):
    return sorted(p.name for p in directory.iterdir())


def test_publish_leaves_the_bundle_and_nothing_else(tmp_path):
    final = build(tmp_path / "out" / "shapes-phone")
    assert {p.stat().st_mode & 0o777 for p in final.rglob("*") if p.is_file()} == {0o644}
    assert left(final.parent) == ["shapes-phone"]
    check_hashes(open_bundle(final))


def test_sha256sums_is_what_coreutils_reads(tmp_path):
    import subprocess

    final = build(tmp_path / "b")
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=final, capture_output=True, text=True, check=True)
    assert "manifest.json: OK" in done.stdout
    assert "onnx/student.onnx: OK" in done.stdout


def test_same_content_gives_the_same_bytes(tmp_path):
    first, second = build(tmp_path / "a"), build(tmp_path / "b")
    assert (first / SUMS).read_bytes() == (second / SUMS).read_bytes()
    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()


def test_a_bundle_is_found_by_its_manifest_and_a_folder_of_bundles_names_them(tmp_path):
    final = build(tmp_path / "bundles" / "shapes-phone")
    assert open_bundle(final / MANIFEST) == open_bundle(final)
    with pytest.raises(BadInput, match=f"bundles is not a bundle: the bundle inside it is {final}; give that"):
        open_bundle(tmp_path / "bundles")
    others = [build(tmp_path / "bundles" / name) for name in ("a", "b", "c")]
    with pytest.raises(BadInput, match=f"inside it are {', '.join(map(str, others))} and 1 more; give one of them"):
        open_bundle(tmp_path / "bundles")
    for path, said in (("none", "there is no such folder"), ("bundles/a/onnx/student.onnx", "it is a file; give the folder")):
        with pytest.raises(BadInput, match=said):
            open_bundle(tmp_path / path)


@pytest.mark.parametrize("prompt", ["", " \t"])
def test_nothing_is_drawn_of_an_empty_prompt(tmp_path, prompt):
    with pytest.raises(BadInput, match="--prompt: got an empty text, expected what to draw"):
        draw(open_bundle(build(tmp_path / "b")), "onnx:cpu", [WantedPicture(prompt, 0)], 1)


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), staging(tmp_path / "b", "key", overwrite=False, resume=False) as stage:
        (stage.root / "half").write_text("x")
        raise RuntimeError
    assert left(tmp_path) == []


def test_there_already(tmp_path):
    build(tmp_path / "b", "old")
    with pytest.raises(BadInput, match="already there; pass --overwrite"):
        build(tmp_path / "b", "new")
    build(tmp_path / "b", "new", overwrite=True)
    assert (tmp_path / "b" / "onnx" / "student.onnx").read_text() == "new"
    assert left(tmp_path) == ["b"]


def test_a_failed_overwrite_keeps_the_old_bundle(tmp_path):
    build(tmp_path / "b", "old")
    with pytest.raises(RuntimeError), staging(tmp_path / "b", "key", overwrite=True, resume=False) as stage:
        (stage.root / "half").write_text("x")
        raise RuntimeError
    check_hashes(open_bundle(tmp_path / "b"))
    assert left(tmp_path) == ["b"]


def test_resume_takes_up_the_same_plan_only(tmp_path):
    with pytest.raises(RuntimeError), staging(tmp_path / "b", "key", overwrite=False, resume=True) as stage:
        (stage.root / "part").write_text("x")
        raise RuntimeError
    with pytest.raises(RuntimeError), staging(tmp_path / "b", "other", overwrite=False, resume=True) as stage:
        assert not (stage.root / "part").exists()
        raise RuntimeError
    with staging(tmp_path / "b", "key", overwrite=False, resume=True) as stage:
        assert (stage.root / "part").read_text() == "x"
        write_manifest(stage.root, least_manifest(TARGETS, files=files_of(stage.root)))
        stage.publish(overwrite=False)
    check_hashes(open_bundle(tmp_path / "b"))


def test_what_a_killed_process_left_is_no_part_of_the_bundle(tmp_path):
    root = tmp_path / "stage"
    files = [
        root / "onnx-cpu" / "student.onnx",
        root / "onnx-cpu" / "tmpabc" / "plain" / "student.onnx",
        root / "manifest.json",
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    artifact = Artifact("onnx:cpu", "student", files[0], (files[0],))
    write_record(root, Exported(artifact, Description(1, {}), {}, 1), recipe="a")
    remove_unowned(root)
    assert [p for p in files if p.exists()] == files[:1]
    assert not files[1].parent.parent.exists()
    found = read_record(root, "onnx:cpu", "student", "a")
    assert found is not None
    assert found.artifact.files == (files[0],)
    assert read_record(root, "onnx:cpu", "student", "b") is None  # made by another recipe


def test_scratch_goes_with_the_run(tmp_path):
    with pytest.raises(RuntimeError), staging(tmp_path / "b", "key", overwrite=False, resume=True) as stage:
        (stage.scratch / "large").write_text("x")
        raise RuntimeError
    left_over = stage.scratch
    left_over.mkdir()
    (left_over / "of a run that was killed").write_text("x")
    with staging(tmp_path / "b", "key", overwrite=False, resume=True) as stage:
        assert stage.scratch == left_over
        assert list(stage.scratch.iterdir()) == []
        write_manifest(stage.root, {"schema_version": 1})
        stage.publish(overwrite=False)
    assert left(tmp_path) == ["b"]


def test_a_full_disk_is_one_line(tmp_path):
    with (
        pytest.raises(BadInput, match="disk of .* is full"),
        staging(tmp_path / "b", "key", overwrite=False, resume=False),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert left(tmp_path) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="choose another place with --output-dir"):
        build(tmp_path / "file" / "b")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / "onnx" / "student.onnx").write_text("evil"), "changed onnx/student.onnx"),
        (lambda b: (b / "onnx" / "student.onnx").unlink(), "missing onnx/student.onnx"),
        (lambda b: (b / "extra").write_text(""), "not listed extra"),
        (lambda b: (b / SUMS).unlink(), f"has no {SUMS}"),
    ],
)
def test_any_change_is_found(tmp_path, damage, message):
    bundle = open_bundle(build(tmp_path / "b"))
    damage(bundle.path)
    with pytest.raises(GateFailed, match=message):
        check_hashes(bundle)


def test_the_record_of_the_run_is_no_part_of_the_hashes(tmp_path):
    bundle = open_bundle(build(tmp_path / "b"))
    assert bundle.run() is None
    (bundle.path / RUN).write_text('{"cached": true}')
    check_hashes(bundle)
    assert bundle.run() == {"cached": True}
    (bundle.path / "onnx" / RUN).write_text("")
    with pytest.raises(GateFailed, match=f"not listed onnx/{RUN}"):
        check_hashes(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a bundle: it has no manifest.json"),
        ("{", "manifest.json is not readable JSON"),
        ("[]", "got schema_version None, expected 1"),
        (json.dumps({"schema_version": 99}), "got schema_version 99, expected 1"),
    ],
)
def test_what_is_no_bundle_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BadInput, match=message):
        open_bundle(tmp_path)


def test_a_manifest_never_holds_not_a_number(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_manifest(tmp_path, {"value": float("nan")})


def test_a_directory_in_use_is_not_taken_up_and_what_nobody_will_is_removed(tmp_path):
    with staging(tmp_path / "b", "key", overwrite=False, resume=True) as first:
        (first.root / "half").write_text("x")
        with staging(tmp_path / "b", "key", overwrite=True, resume=True) as second:
            assert second.root != first.root
            write_manifest(second.root, {"schema_version": 1})
            second.publish(overwrite=True)
        assert (first.root / "half").is_file()
        first.keep = True
    with staging(tmp_path / "b", "another key", overwrite=True, resume=True) as third:
        third.keep = False
    assert first.root.is_dir()  # a day may pass before it is taken up
    key = first.root.with_name(f"{first.root.name}.key")
    os.utime(key, (0, 0))
    with staging(tmp_path / "b", "key", overwrite=True, resume=True) as again:
        assert again.root == first.root
    os.utime(key, (0, 0))
    with staging(tmp_path / "b", "another key", overwrite=True, resume=False) as last:
        write_manifest(last.root, {"schema_version": 1})
        last.publish(overwrite=True)
    assert left(tmp_path) == ["b"]


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_no_bundle_is_never_overwritten(tmp_path, folder):
    mine = tmp_path / "b"
    if folder:
        mine.mkdir()
    (mine / "thesis.txt" if folder else mine).write_text("years")
    with pytest.raises(BadInput, match="is not a bundle .*--output-dir"):
        build(mine, overwrite=True)
    assert left(tmp_path) == ["b"]
    assert (mine / "thesis.txt" if folder else mine).read_text() == "years"


def test_a_run_that_ends_between_two_names_is_finished_by_the_next(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    build(tmp_path / "b", "old")
    rename = type(tmp_path).rename

    def once(path, target):
        if path.name.endswith("key") or target.name == "b":
            raise Killed
        return rename(path, target)

    monkeypatch.setattr("snapgen_deploy.job.staging.exchange_names", lambda one, other: False)  # a system that cannot
    with pytest.raises(Killed), staging(tmp_path / "b", "key", overwrite=True, resume=True) as stage:
        (stage.root / "text").write_text("new")
        write_manifest(stage.root, least_manifest(TARGETS, files=files_of(stage.root)))
        monkeypatch.setattr(type(tmp_path), "rename", once)
        stage.publish(overwrite=True)
    monkeypatch.undo()
    stage.scratch.mkdir()  # a killed run does not remove it
    assert not (tmp_path / "b").exists()
    with pytest.raises(BadInput, match="already there"), staging(tmp_path / "b", "key", overwrite=False, resume=False):
        pass
    assert (tmp_path / "b" / "text").read_text() == "new"
    check_hashes(open_bundle(tmp_path / "b"))
    (old,) = (p for p in tmp_path.iterdir() if p.name.endswith(".old"))
    os.utime(old, (0, 0))
    build(tmp_path / "b", overwrite=True)
    assert left(tmp_path) == ["b"]


def test_an_overwritten_bundle_keeps_its_name_at_every_moment(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    build(tmp_path / "b", "old")
    (tmp_path / "c").mkdir()
    if not exchange_names(tmp_path / "b", tmp_path / "c"):
        pytest.skip("this system does not exchange names")
    assert exchange_names(tmp_path / "b", tmp_path / "c")
    (tmp_path / "c").rmdir()
    monkeypatch.setattr(type(tmp_path), "rename", lambda path, target: pytest.fail("in two steps"))
    with pytest.raises(Killed), staging(tmp_path / "b", "key", overwrite=True, resume=True) as stage:
        (stage.root / "text").write_text("new")
        write_manifest(stage.root, least_manifest(TARGETS, files=files_of(stage.root)))
        monkeypatch.setattr("snapgen_deploy.job.staging._fsync", lambda path: path == tmp_path and killed())  # after the step
        stage.publish(overwrite=True)
    assert (tmp_path / "b" / "text").read_text() == "new"
    check_hashes(open_bundle(tmp_path / "b"))


def test_what_a_killed_run_left_goes_after_a_day(tmp_path):
    with staging(tmp_path / "b", "key", overwrite=False, resume=True) as stage:
        (stage.root / "half").write_text("x")
    stage.scratch.mkdir()
    key = stage.root.with_name(f"{stage.root.name}.key")
    build(tmp_path / "b")  # the same plan, not resumed
    assert stage.root.is_dir()
    os.utime(key, (key.stat().st_mtime - ABANDONED - 60,) * 2)
    build(tmp_path / "b", overwrite=True)
    assert left(tmp_path) == ["b"]


def test_a_directory_is_locked_before_it_can_be_seen(tmp_path, monkeypatch):
    from snapgen_deploy.job import staging as module

    real, seen = module._locked, []

    def watched(root):
        lock = real(root)
        seen.append((root.exists(), lock is not None))
        return lock

    monkeypatch.setattr(module, "_locked", watched)
    with staging(tmp_path / "b", "key", overwrite=False, resume=True):
        assert seen == [(False, True)]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("student -> onnx:cpu: [Errno 28] No space left on device"),  # of a child process: its text alone
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_that_a_library_told_of(tmp_path, error):
    with pytest.raises(BadInput, match="disk of .* is full"), staging(tmp_path / "b", "k", overwrite=False, resume=False):
        raise error
    assert left(tmp_path) == []


def test_a_place_that_cannot_be_looked_at(tmp_path):
    with pytest.raises(BadInput, match="choose another place with --output-dir"):
        check_place(tmp_path / ("x" * 300), overwrite=False)


def test_what_is_no_file_of_the_bundle_is_told(tmp_path):
    final = build(tmp_path / "b")
    (tmp_path / "elsewhere").mkdir()
    (final / "link").symlink_to(tmp_path / "elsewhere")
    (final / "broken").symlink_to(tmp_path / "nothing")
    os.mkfifo(final / "pipe")
    with pytest.raises(GateFailed, match="no plain file broken; no plain file link; no plain file pipe"):
        check_hashes(open_bundle(final))


def test_a_link_that_leaves_the_bundle_is_told(tmp_path):
    """Its bytes are those that were exported, and anybody's to change."""
    final = build(tmp_path / "b")
    model = final / "onnx" / "student.onnx"
    model.rename(tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GateFailed, match="a link that leaves the bundle onnx/student.onnx"):
        check_hashes(open_bundle(final))


def test_a_file_that_is_listed_twice_is_told(tmp_path):
    final = build(tmp_path / "b")
    sums = (final / SUMS).read_text()
    (final / SUMS).write_text(sums + sums.splitlines()[-1] + "\n")
    with pytest.raises(GateFailed, match=r"listed twice onnx/student.onnx"):
        check_hashes(open_bundle(final))


def test_a_manifest_that_says_otherwise_than_the_sums_is_told(tmp_path):
    final = build(tmp_path / "b")
    manifest = json.loads((final / MANIFEST).read_text())
    manifest["files"]["onnx/student.onnx"]["sha256"] = "0" * 64
    write_manifest(final, manifest)
    with pytest.raises(GateFailed, match=r"differs from manifest.json onnx/student.onnx"):
        check_hashes(open_bundle(final))


def test_a_bundle_has_a_name_where_it_is_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(build(tmp_path / "b"))
    (tmp_path / "b" / "more").write_text("x")
    with pytest.raises(GateFailed, match="^b is not what was exported: not listed more"):
        check_hashes(open_bundle(Path()))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"bytes": NaN}', "{"])
def test_a_manifest_that_is_no_json_is_told(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BadInput, match=r"manifest.json is not readable JSON .*; export the bundle again"):
        open_bundle(tmp_path)


def test_a_path_that_the_system_refuses_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"cannot be read \(File name too long\)"):
        open_bundle(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("said", "generator"),
    [("torch.randn of the latent's shape", "torch"), ({"generator": "torch"}, "torch"), ({"generator": PHILOX}, PHILOX)],
)
def test_a_bundle_says_what_makes_its_noise(tmp_path, said, generator):
    assert Bundle(tmp_path, {"noise": said}).noise_generator == generator


@pytest.mark.parametrize("said", ["xorshift", [], None])
def test_noise_that_nobody_makes_is_refused(tmp_path, said):
    with pytest.raises(BadInput, match="noise.generator: got .*, expected one of philox4x32-10, torch"):
        Bundle(tmp_path, {"noise": {"generator": said}}).noise_generator  # noqa: B018
