"""`verify` holds what a bundle says of itself against its files, and docs/bundle.md says how to draw with them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from snapgen_deploy.bundle.reader import MANIFEST, write_manifest
from snapgen_deploy.models.noise import TORCH
from snapgen_deploy.system.files import sha256_of
from tests.cli.conftest import in_this_process, invoke

DOCS = (Path(__file__).parents[2] / "docs" / "bundle.md").read_text(encoding="utf-8")


def changed(bundle, tmp_path, change, *rewritten):
    """A copy whose manifest `change` has changed, and whose hashes are right again."""
    root = shutil.copytree(bundle, tmp_path / "b" / bundle.name)
    manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    change(root, manifest)
    for name in rewritten:
        manifest["files"][name]["sha256"] = sha256_of(root / name)
    write_manifest(root, manifest)
    return root


def swapped_words(root, manifest):
    text = (root / "tokenizer.json").read_text(encoding="utf-8")
    vocabulary = json.loads(text)
    words = vocabulary["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (root / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")


def fewer_vectors(root, manifest, count=1):
    path = root / "test_vectors.safetensors"
    with safe_open(path, framework="np") as file:
        arrays = {name: np.ascontiguousarray(file.get_tensor(name)[:count]) for name in file.keys()}  # noqa: SIM118
        prompts = json.loads(file.metadata()["prompts"])[:count]
    save_file(arrays, path, {"prompts": json.dumps(prompts)})


def no_vectors(root, manifest):
    fewer_vectors(root, manifest, 0)


def ports(root, manifest):
    manifest["targets"]["onnx:cpu"]["components"]["student"]["inputs"][0]["shape"] = [1, 9, 9, 9]


def another_case(root, manifest):
    path = root / "conformance.json"
    cases = json.loads(path.read_text(encoding="utf-8"))
    cases["tokenizers"][0]["cases"][1]["tokens"][2] += 1
    path.write_text(json.dumps(cases), encoding="utf-8")


CHANGES = {
    "tokens": (swapped_words, ["tokenizer.json"], "tokenizer.json makes other tokens of 'a red ring'"),
    "features": (lambda r, m: m["schedule"]["time_features"]["values"][1].__setitem__(3, 5.0), [], "time_features.values"),
    "levels": (lambda r, m: m["schedule"].update(sigmas=[1.0, 0.8, 0.6, 0.4, 0.0]), [], "schedule.sigmas are not"),
    "seeds": (lambda r, m: m.update(seeds=[9, 9]), [], "the noise of seed 9 is another one"),
    "generator": (lambda r, m: m.update(noise={"generator": TORCH}), [], "the noise of seed 0 is another one"),
    "prompts": (lambda r, m: m.update(prompts=["x", "x"]), [], "prompts or seeds are not those of the test vectors"),
    "size": (lambda r, m: m.update(resolution=[256, 256]), [], "latent.shape [4, 8, 8] is not that of a picture"),
    "ports": (ports, [], "onnx:cpu student inputs are not those"),
    "roles": (lambda r, m: m["targets"]["onnx:cpu"]["components"].pop("decoder"), [], "differs from manifest.json"),
    "vectors": (fewer_vectors, ["test_vectors.safetensors"], "the test vectors hold 1 of 2 prompts"),
    "cases": (another_case, ["conformance.json"], "conformance.json: tokenizers is not that of this bundle"),
    "none": (no_vectors, ["test_vectors.safetensors"], "has not a row in every array for each of its 0 prompts"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_bundle_that_contradicts_itself_is_told(bundle, tmp_path, name):
    change, rewritten, said = CHANGES[name]
    done = invoke("verify", changed(bundle, tmp_path, change, *rewritten))
    assert done.exit_code == (2 if name == "none" else 1), done.output
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r, m: m["targets"]["onnx:cpu"]["limits"].update(psnr=-5), "onnx:cpu pipeline psnr was held to 40.0, now to -5"),
        (lambda r, m: m["targets"]["coreml"]["limits"].update(median_psnr=9), "coreml pipeline median_psnr was held to 40.0"),
        (lambda r, m: m.update(gates=[]), "coreml has no gate"),
        (lambda r, m: m["gates"][0].update(verdict="failed"), "failed"),
    ],
)  # fmt: skip
def test_gates_that_are_not_those_of_the_export_are_told(bundle, tmp_path, change, said):
    done = invoke("verify", changed(bundle, tmp_path, change))
    assert done.exit_code == 1, done.output
    assert "contradicts itself" in done.stderr
    assert said in " ".join(done.stderr.split())


def test_a_bundle_of_an_earlier_release_is_held_to_what_it_was(bundle, tmp_path):
    """Its least picture was held to what the median of new ones is."""

    def earlier(root, manifest):
        targets = manifest["targets"]
        for target in targets.values():
            target["limits"]["psnr"] = target["limits"].pop("median_psnr")
        manifest["gates"] = [g for g in manifest["gates"] if g["name"] != "median_psnr"]
        for gate in manifest["gates"]:
            if gate["name"] == "psnr":
                gate["limit"] = targets[gate["target"]]["limits"]["psnr"]

    done = invoke("verify", changed(bundle, tmp_path, earlier), "--json")
    assert done.exit_code == 0, done.output
    gates = {(g["target"], g["name"]): g["limit"] for g in json.loads(done.stdout)["gates"] if g["component"] == "pipeline"}
    for key, limit in (("coreml", 40.0), ("onnx:cpu", 60.0)):
        assert gates[key, "psnr"] == gates[key, "median_psnr"] == limit


def test_the_documented_loop_draws_what_generate_draws(bundle, tmp_path):
    names = {}
    noise = Path(__file__).parents[2] / "docs" / "noise.md"
    for page in (noise.read_text(encoding="utf-8"), DOCS):
        exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    drawn = names["draw"](bundle, "a red ring", 7)
    done = invoke("generate", bundle, "--prompt", "a red ring", "--seed", 7, "--target", "onnx", "-o", tmp_path / "x.png")
    assert done.exit_code == 0, done.output
    assert "x.png: 64x64, onnx:cpu, seed 7" in " ".join(done.output.split())
    assert np.abs(drawn.astype(int) - np.asarray(Image.open(tmp_path / "x.png")).astype(int)).max() <= 1


def test_the_test_vectors_are_as_documented(bundle):
    table = DOCS.partition("## Test vectors")[2].partition("With `--precision mixed`")[0]
    named = {
        name.replace("<stream>", "text")
        for row in table.splitlines()[5:]
        for name in re.findall(r"`([^`]+)`", row.split("|")[1:2][0] if "|" in row else "")
    }
    with safe_open(bundle / "test_vectors.safetensors", framework="np") as file:
        assert set(file.keys()) == named


def test_the_documented_folders_load(checkpoint, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    done = invoke("export", "--device", "server", "--checkpoint", checkpoint, "-o", tmp_path, "--width", "tiny", "--threads", 1)
    assert done.exit_code == 0, done.output
    names = {"bundle": tmp_path / "tiny-test-server"}
    exec(re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)[1], names)
    words = names["tokenizer"]("a red ring", padding="max_length")
    assert len(words["input_ids"]) == 16
    assert [p.name for p in names["student"].model.get_inputs()] == ["latent", "time_features", "text", "text_mask"]
