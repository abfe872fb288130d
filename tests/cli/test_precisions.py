"""`export --precision`: calibration, the fidelity gate and its limits, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.check import verify as verifier
from snapgen_deploy.job import checked, drawn
from tests.cli.conftest import in_this_process, invoke
from tests.cli.test_bad_input import SERVER, one_line

LOOSE = "error = 10\npsnr = 0.01\nleast_psnr = 0.01\nmean_psnr = 0.01\nssim = 0.001\nlatent_error = 10\n"
SCORER = "def points(prompts, pictures):\n    return [(int(p.mean() > 0), 1) for p in pictures]\n"


def profile(folder: Path, precision: str, limits: str) -> Path:
    head = SERVER.read_text().split("[[targets]]")[0].replace('id = "server"', 'id = "mine"')
    path = folder / "mine.toml"
    target = f'[[targets]]\ntarget = "onnx"\nprecision = "{precision}"\nlayout = "token"\n[targets.limits]\n{limits}'
    path.write_text(head + target)
    return path


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    (folder / "empty.txt").write_text("\n")
    (folder / "prompts.txt").write_text("a red ring\t5\na blue ring on gray\n")
    (folder / "seed.txt").write_text("a red ring\tsoon\n")
    (folder / "broken.npz").write_bytes(b"no archive")
    (folder / "empty.npz").write_bytes(b"")
    with (folder / "one.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    (folder / "seeds.txt").write_text(f"a red ring\t{2**64}\n")
    np.savez(folder / "ports.npz", **{"student.latent": np.zeros((2, 4, 8, 8), np.float32)})
    (folder / "scorer_of_this_test.py").write_text(SCORER)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes would each import the libraries anew."""
    in_this_process(monkeypatch, modules=(drawn, checked, verifier))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--precision", "int3"), ("no precision 'int3'", "int8-static", "int4")),
        (("--precision", "palette4"), ("onnx:cpu has no precision 'palette4'",)),
        (("--calibration", "nowhere.txt"), ("calibration file nowhere.txt cannot be read",)),
        (("--calibration", "empty.txt"), ("calibration file empty.txt is empty",)),
        (("--calibration", "nowhere.npz"), ("calibration file nowhere.npz cannot be read",)),
        (("--calibration", "broken.npz"), ("calibration file broken.npz cannot be read",)),
        (("--calibration", "empty.npz"), ("calibration file empty.npz cannot be read",)),
        (("--calibration", "one.npz"), ("calibration file one.npz: holds one array",)),
        (("--prompts", "seeds.txt"), ("seeds.txt, line 1: got the seed", "expected a whole number below")),
        (("--calibration", "ports.npz"), ("got arrays ['student.latent'], expected", "'decoder.latent'")),
        (("--prompts", "seed.txt"), ("line 1: got the seed 'soon'",)),
        (("--prompts", "."), ("prompts file", "cannot be read")),
        (("--scorer", "scorer_of_this_test.py:nothing"), ("--scorer", "MODULE:FUNCTION")),
    ],
)
def test_bad_input_is_refused_in_one_line(checkpoint, inputs, tmp_path, arguments, parts, monkeypatch):
    monkeypatch.setattr("snapgen_deploy.cli.devices.render_plan", lambda plan, console: None)
    precision = () if "--precision" in arguments else ("--precision", "int8-static")
    out = tmp_path / "out"
    done = invoke(
        "export", "--device", "server", "--target", "onnx", *precision, *arguments, "--checkpoint", checkpoint, "-o", out
    )  # fmt: skip
    one_line(done, *parts)
    assert not out.exists()


def test_a_calibrated_precision_end_to_end(checkpoint, inputs, tmp_path, here):
    done = invoke(
        "export", "--device", profile(inputs, "int8-static", LOOSE), "--checkpoint", checkpoint, "-o", tmp_path / "out",
        "--width", "tiny", "--threads", 1, "--prompts", "prompts.txt", "--calibration", "prompts.txt", "--json",
        "--fidelity-samples", 3, "--scorer", "scorer_of_this_test.py:points",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    opened = open_bundle(tmp_path / "out" / "tiny-test-mine")
    target = opened.manifest["targets"]["onnx:cpu"]
    student = target["components"]["student"]
    assert target["limits"]["error"] == 10
    assert student["weight_dtypes"]["int8 per channel"] > 20
    assert 8 < student["average_bits"] < 24
    assert opened.manifest["seeds"] == [5, 1]
    found = {g["name"]: g for g in opened.manifest["gates"] if g["component"] == "pipeline"}
    assert {g["verdict"] for g in found.values()} == {"passed"}
    assert set(found) == {
        "psnr",
        "median_psnr",
        *(f"fidelity_{n}" for n in ("psnr", "mean_psnr", "ssim", "latent_error", "score_change")),
    }
    measured = opened.manifest["fidelity"]["onnx:cpu"]
    assert measured["pictures"] == 3
    assert len(measured["latent_error"]) == 4
    assert measured["score"]["share"] == measured["score"]["reference"] == 1.0
    assert json.loads(done.stdout)["gates"] == opened.manifest["gates"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["tiny-test-mine"]
    again = json.loads(invoke("verify", opened.path, "--threads", 1, "--json").stdout)["gates"]
    assert [g["name"] for g in again if g["verdict"] == "not_run"] == [n for n in found if n.startswith("fidelity_")]
    assert all("at export: passed with" in g["detail"] for g in again if g["verdict"] == "not_run")


def test_below_the_profiles_limits_nothing_is_written(checkpoint, inputs, tmp_path, here):
    limits = LOOSE.replace("ssim = 0.001", "ssim = 1")
    done = invoke(
        "export", "--device", profile(inputs, "int4", limits), "--checkpoint", checkpoint, "-o", tmp_path / "out",
        "--width", "tiny", "--threads", 1, "--fidelity-samples", 2,
    )  # fmt: skip
    assert done.exit_code == 1, done.output
    assert "fidelity_ssim" in done.stderr
    assert not (tmp_path / "out").exists()


def test_arrays_of_the_users_own_calibrate(checkpoint, tmp_path):
    from snapgen_deploy.checkpoint import open_checkpoint
    from snapgen_deploy.device_profiles import load_profile
    from snapgen_deploy.drawing.ports import ports_of, roles_of
    from snapgen_deploy.errors import BadInput
    from snapgen_deploy.job.calibration import calibration_of
    from snapgen_deploy.plan.make import make_plan

    opened = open_checkpoint(checkpoint)
    plan = make_plan(opened.config, load_profile("server"), width="tiny", targets=["onnx"], precision="int8-static")
    arrays = {
        f"{role}.{p.name}": np.ones((3, *p.shape[1:]), p.dtype)
        for role in roles_of(opened.config)
        for p in ports_of(opened.config, plan, role)[0]
    }
    np.savez(tmp_path / "a.npz", **arrays)
    found = calibration_of(opened, plan, tmp_path / "a.npz")
    rows = list(found.inputs(opened, tmp_path, "student"))
    assert len(rows) == 3
    assert {n: v.shape[0] for n, v in rows[0].items()} == dict.fromkeys(("latent", "time_features", "text", "text_mask"), 1)
    before = found.sha256()
    for changed, part in (
        (arrays | {"student.latent": arrays["student.latent"][:, :2]}, "'student.latent' is float32"),
        (arrays | {"student.latent": arrays["student.latent"][:0]}, "0 rows"),
        (arrays | {"decoder.latent": arrays["decoder.latent"] * np.float32(np.nan)}, "not finite"),
    ):
        np.savez(tmp_path / "a.npz", **changed)
        with pytest.raises(BadInput, match=part):
            calibration_of(opened, plan, tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **{n: v * 2 for n, v in arrays.items()})
    assert calibration_of(opened, plan, tmp_path / "a.npz").sha256() != before
