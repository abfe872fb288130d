"""One bundle for several picture sizes, through the command line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from snapgen_deploy.bundle.reader import check_hashes, open_bundle, write_manifest
from snapgen_deploy.bundle.vectors import read_vectors
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.files import sha256_of
from tests.cli.conftest import in_this_process, invoke

SIZES = ("64x64", "64x96")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def several(checkpoint, place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        return export(checkpoint, place / "first", "2 picture sizes: 64x64, 64x96")


def export(checkpoint, out, says):
    sizes = [argument for size in SIZES for argument in ("--resolution", size)]
    done = invoke(
        "export", "--device", "iphone16pm", "--target", "onnx", "--checkpoint", checkpoint, "-o", out, "--width", "tiny",
        "--threads", 1, *sizes,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert says in done.output
    return out / "tiny-test-iphone16pm"


def test_every_size_has_its_gates_and_the_text_encoder_is_there_once(several):
    bundle = open_bundle(several)
    check_hashes(bundle)
    assert bundle.sizes == SIZES
    found = {(g["component"], g.get("size", ""), g["name"]): g["verdict"] for g in bundle.manifest["gates"]}
    wanted = {("text_encoder", "", "relative_error")}
    for size in SIZES:
        wanted |= {("student", size, "relative_error"), ("decoder", size, "relative_error")}
        wanted |= {("pipeline", size, "psnr"), ("pipeline", size, "median_psnr")}
    assert found == dict.fromkeys(wanted, "passed")
    names = {p.name for p in (several / "onnx-cpu").iterdir()}
    assert names == {
        "student.onnx", "student-64x96.onnx", "student.onnx.data", "decoder.onnx", "decoder-64x96.onnx", "decoder.onnx.data",
        "text_encoder.onnx",
    }  # fmt: skip
    assert not list(several.glob(".*"))


def test_the_manifest_says_what_is_shared_from_the_files(several):
    manifest = open_bundle(several).manifest
    assert manifest["schema_version"] == 1
    assert [(s["name"], s["latent"], s["prompts"]) for s in manifest["sizes"]] == [
        ("64x64", [4, 8, 8], 2),
        ("64x96", [4, 8, 12], 1),
    ]
    target = manifest["targets"]["onnx:cpu"]
    student = target["components"]["student"]
    on_disk = sum((several / name).stat().st_size for name in student["files"])
    sharing = student["sharing"]
    assert student["bytes"] == sharing["bytes"] == on_disk
    assert sharing["bytes_saved"] == sharing["separate_bytes"] - on_disk > 0
    data = (several / "onnx-cpu" / "student.onnx.data").stat().st_size
    assert data - 64 * 200 <= sharing["shared_bytes"] <= data
    repeated = target["components"]["text_encoder"]["bytes"]
    parts = [target["components"][role]["sharing"]["bytes_saved"] for role in ("student", "decoder")]
    assert target["sharing"]["bytes_saved"] == sum(parts) + repeated
    ports = {size: about["inputs"][0]["shape"] for size, about in student["sizes"].items()}
    assert ports == {"64x64": [1, 4, 8, 8], "64x96": [1, 4, 8, 12]}
    assert all(about["macs"] > 0 and about["ops"] for about in student["sizes"].values())
    assert student["sizes"]["64x96"]["macs"] > student["sizes"]["64x64"]["macs"] == student["macs"]


def test_one_size_of_several_reads_as_a_bundle_of_its_own(several):
    bundle = open_bundle(several)
    wide = bundle.at("64x96")
    assert wide.latent == (4, 8, 12)
    assert wide.sizes == ("64x96",)
    artifact = wide.artifacts("onnx:cpu")["student"]
    assert {p.name for p in artifact.files} == {"student-64x96.onnx", "student.onnx.data"}
    vectors = read_vectors(wide)
    assert vectors.arrays["picture"].shape == (1, 3, 64, 96)
    assert (vectors.prompts, vectors.seeds) == (("a red ring",), (0,))
    assert read_vectors(bundle.at(None)).arrays["picture"].shape == (2, 3, 64, 64)
    with pytest.raises(BadInput, match=r"96x96: its sizes are 64x64, 64x96"):
        bundle.at("96x96")


def test_generate_draws_every_size_and_names_them_when_asked_for_another(several, tmp_path):
    for arguments, shape in (
        ((), (64, 64, 3)),
        (("--resolution", "64x96"), (64, 96, 3)),
        (("--resolution", "64"), (64, 64, 3)),
    ):
        path = tmp_path / "picture.png"
        done = invoke("generate", several, "--prompt", "a red ring", "-o", path, *arguments)
        assert done.exit_code == 0, done.output
        assert np.asarray(Image.open(path)).shape == shape
    done = invoke("generate", several, "--prompt", "a red ring", "--resolution", "96x64", "-o", tmp_path / "none.png")
    assert done.exit_code == 2
    assert "its sizes are 64x64, 64x96" in done.stderr
    assert not (tmp_path / "none.png").exists()


def test_a_bundle_of_one_size_says_so_too(bundle, tmp_path):
    done = invoke("generate", bundle, "--prompt", "a red ring", "--resolution", "128", "-o", tmp_path / "none.png")
    assert done.exit_code == 2
    assert "its sizes are 64x64" in done.stderr
    assert "sizes" not in open_bundle(bundle).manifest
    assert open_bundle(bundle).at("64x64") == open_bundle(bundle)
    assert all("size" not in gate for gate in open_bundle(bundle).manifest["gates"])


def test_verify_runs_every_size_and_finds_damage_in_one(several, tmp_path):
    done = invoke("verify", several, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["gates"] == open_bundle(several).manifest["gates"]
    copy = tmp_path / several.name
    shutil.copytree(several, copy)
    data = copy / "onnx-cpu" / "student.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))  # hashes apart, the gates of both sizes see that the shared weights are gone
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    files = manifest["targets"]["onnx:cpu"]["components"]["student"]["files"]
    files["onnx-cpu/student.onnx.data"]["sha256"] = sha256_of(data)
    write_manifest(copy, manifest)
    broken = invoke("verify", copy, "--json")
    assert broken.exit_code == 1, broken.output
    bad = {(g["component"], g.get("size")) for g in json.loads(broken.stdout)["gates"] if g["verdict"] == "failed"}
    assert {("student", "64x64"), ("student", "64x96")} <= bad


def test_a_report_shows_every_size(several, tmp_path):
    page = tmp_path / "report.html"
    assert invoke("report", several, "-o", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "2 picture sizes (64x64, 64x96) share their weights" in text
    assert "a red ring (64x96)" in text


@pytest.mark.slow
def test_resume_takes_every_size_up(checkpoint, tmp_path, monkeypatch):
    """A run that fails after its conversions is taken up again: nothing is converted twice, no part is left in the bundle."""
    from snapgen_deploy.errors import BadInput
    from snapgen_deploy.job import checked, convert

    converted: list[str] = []
    real = convert.export_in_child

    def counted(task):
        converted.append(f"{task.role} {task.plan.sizes}")
        return real(task)

    monkeypatch.setattr(convert, "export_in_child", counted)
    in_this_process(monkeypatch)
    sizes = [argument for size in SIZES for argument in ("--resolution", size)]
    arguments = (
        "export", "--device", "iphone16pm", "--target", "onnx", "--checkpoint", checkpoint, "-o", tmp_path, "--width", "tiny",
        "--threads", 1, "--resume", *sizes,
    )  # fmt: skip

    def broken(*_, **__):
        raise BadInput("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(checked, "check_sizes", broken)
        assert invoke(*arguments).exit_code == 2
    first = len(converted)
    assert first == 5, "student and decoder at both sizes, the text encoder once"
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert len(converted) == first
    root = tmp_path / "tiny-test-iphone16pm"
    assert not list(root.glob(".*"))
    assert {p.name for p in tmp_path.iterdir()} == {root.name}


def test_the_cache_holds_every_size_and_the_bytes_are_the_same(several, checkpoint, place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    again = export(checkpoint, tmp_path, "3 of 3 components came from the cache")
    assert (again / "SHA256SUMS").read_text() == (several / "SHA256SUMS").read_text()
