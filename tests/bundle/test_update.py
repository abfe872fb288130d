"""What an update from one bundle to another downloads."""

import json
from pathlib import Path

import pytest

from snapgen_deploy.bundle.reader import open_bundle, write_manifest
from snapgen_deploy.bundle.update import COMMON, update_of
from snapgen_deploy.errors import BadInput
from tests.cli.conftest import invoke
from tests.manifests import files_of, least_manifest

KEY = "onnx:cpu"


def made(root: Path, files: dict[str, str], common: dict[str, str]) -> Path:
    """A bundle whose student has these files, of these contents."""
    for name, text in (files | common).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    said = files_of(root)
    student = {"path": next(iter(files)), "files": {n: said[n] for n in files}, "bytes": 5}
    write_manifest(root, least_manifest({KEY: {"student": student}}, files={n: said[n] for n in common}))
    return root


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Path, Path]:
    before = made(tmp_path / "a", {"onnx/graph": "one", "onnx/weights": "w" * 1000}, {"tokenizer.json": "{}", "old": "x"})
    after = made(tmp_path / "b", {"onnx/graph": "three", "onnx/data": "w" * 1000}, {"tokenizer.json": "{}"})
    return before, after


def test_only_new_content_is_downloaded(bundles: tuple[Path, Path]) -> None:
    before, after = map(open_bundle, bundles)
    student, common = update_of(before, after).parts
    assert (student.name, student.bytes, student.download) == (f"{KEY} student", 1005, 5)
    assert (student.changed, student.removed) == (("onnx/graph",), ("onnx/weights",))  # the weights were only renamed
    manifest = (bundles[1] / "manifest.json").stat().st_size
    assert (common.name, common.bytes, common.download) == (COMMON, manifest + 2, manifest)
    assert common.removed == ("old",)


def test_the_same_bundle_downloads_its_manifest_only(bundles: tuple[Path, Path]) -> None:
    before, _ = map(open_bundle, bundles)
    update = update_of(before, before, [KEY])
    assert update.download == (bundles[0] / "manifest.json").stat().st_size
    assert [name for part in update.parts for name in part.changed] == ["manifest.json"]


def test_what_is_not_there_is_refused(bundles: tuple[Path, Path]) -> None:
    before, after = map(open_bundle, bundles)
    with pytest.raises(BadInput, match="b holds no target 'coreml': it holds onnx:cpu"):
        update_of(before, after, ["coreml"])
    (bundles[1] / "onnx/graph").unlink()
    with pytest.raises(BadInput, match=r"onnx/graph cannot be read .*`verify` says what is missing"):
        update_of(before, after)


def test_the_command(bundles: tuple[Path, Path]) -> None:
    done = invoke("bundle", "diff", *bundles)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert "1 new, 1 removed" in done.output
    data = json.loads(invoke("bundle", "diff", *bundles, "--json", "--target", KEY).stdout)
    assert data["parts"][0]["changed"] == ["onnx/graph"]
    assert data["download"] == sum(part["download"] for part in data["parts"])
    assert invoke("bundle", "diff", bundles[0], bundles[0].parent / "nowhere").exit_code == 2
