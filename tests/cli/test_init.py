import errno
import json
from dataclasses import replace

import pytest

from snapgen_deploy import models
from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.models import TextEncoderConfig, TextStream
from tests.cli.conftest import invoke, tiny_config


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    tiny = tiny_config()
    student = replace(tiny.student, text_streams=(TextStream("text", 16, 40),))
    encoder = TextEncoderConfig(vocab=64, length=40, width=16, layers=1, heads=2)
    monkeypatch.setitem(models.PRESETS, "tiny", lambda: replace(tiny, student=student, text_encoder=encoder, prompts=()))


def test_inspect_and_export_of_an_untrained_checkpoint_say_so(tmp_path):
    place = tmp_path / "c"
    done = invoke("init", "--preset", "tiny", "-o", place, "--shard-size", "50kB", "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["trained"] is False
    assert len(data["shards"]) > 2
    shown = invoke("inspect", place, "--check")
    assert shown.exit_code == 0, shown.output
    assert "untrained weights: pictures are noise" in shown.stdout
    done = invoke(
        "export", "--device", "server", "--width", "tiny", "--checkpoint", place, "-o", tmp_path / "b", "--threads", 1
    )
    assert done.exit_code == 0, done.output
    assert "untrained weights: pictures are noise" in done.stdout
    bundle = tmp_path / "b" / "tiny-test-server"
    assert open_bundle(bundle).manifest["trained"] is False
    page = tmp_path / "r.html"
    assert invoke("report", bundle, "-o", page).exit_code == 0
    assert "Untrained weights: pictures are noise" in page.read_text()


def test_there_already(tmp_path):
    arguments = ("init", "--preset", "tiny", "-o", tmp_path / "c")
    assert invoke(*arguments).exit_code == 0
    again = invoke(*arguments)
    assert again.exit_code == 2
    assert "already there; pass --overwrite" in again.stderr
    assert invoke(*arguments, "--overwrite", "--dtype", "fp16").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "tinny"), "did you mean tiny?"),
        (("--preset", "tiny", "--dtype", "int8"), "expected one of fp32, fp16, bf16"),
        (("--preset", "tiny", "--shard-size", "big"), "expected a size such as 500MB or 1GB"),
        (("--preset", "tiny", "--shard-size", "0GB"), "expected a size such as 500MB or 1GB"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, arguments, message):
    done = invoke("init", *arguments, "-o", tmp_path / "c")
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = invoke("init", "--preset", "tiny", "-o", tmp_path / "file" / "c")
    assert done.exit_code == 2
    assert "choose another place with --output-dir" in done.stderr


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_fills_up_is_one_line_and_leaves_what_was_there(tmp_path, monkeypatch, overwrite):
    arguments = ("init", "--preset", "tiny", "-o", tmp_path / "c", "--shard-size", "50kB")
    if overwrite:
        assert invoke(*arguments).exit_code == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    calls = []

    def fills(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("snapgen_deploy.checkpoint.writer.os.fsync", fills)
    done = invoke(*arguments, "--seed", 1, *(["--overwrite"] if overwrite else []))
    assert done.exit_code == 2
    assert "No space left on device" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == (["c"] if overwrite else [])
