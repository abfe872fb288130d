"""The Android app: its project for a bundle, and its core on this machine's JVM, held to conformance.json and to Python."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tree_sitter_kotlin
from tokenizers import Tokenizer

from snapgen_deploy.apps.android_app import android_project
from snapgen_deploy.apps.registry import APP_MARK, app_of, write_app
from snapgen_deploy.bundle.draw import WantedPicture, draw
from snapgen_deploy.bundle.reader import CONFORMANCE, MANIFEST, open_bundle
from snapgen_deploy.drawing.pipeline import guided
from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.schedule import time_features
from snapgen_deploy.runtime.noise import philox_noise
from tests.apps.conftest import OWN_CACHE, Once
from tests.apps.kotlin_jvm import KOTLIN, Probe, Run, colours, compiled_core, floats, in_onnxruntime
from tests.apps.mobile import as_mobile
from tests.apps.parsing import faults
from tests.text_encoders.folders import TOKENIZERS

TARGET = "onnx:cpu"
PROJECT = resources.files("snapgen_deploy.apps") / "android"


@pytest.fixture(scope="module")
def mobile(bundle: Path, once: Once) -> Path:
    return once("mobile bundle", lambda folder: as_mobile(bundle, folder))


@pytest.fixture(scope="module")
def project(mobile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_app(app_of("android"), open_bundle(mobile), tmp_path_factory.mktemp("android") / "app")


@pytest.fixture(scope="module")
def probe(once: Once) -> Iterator[Probe]:
    if shutil.which("java") is None:
        pytest.skip("no Java here")
    found: list[list[Path]] = []

    def compile_once(folder: Path) -> None:
        found.append(compiled_core())

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", OWN_CACHE)
        try:
            once("kotlin", compile_once)  # one worker compiles, the others wait
            started = Probe(found[0] if found else compiled_core())
        except BadInput as error:
            pytest.skip(f"no Kotlin compiler here: {error}")
    yield started
    started.close()


@pytest.fixture(scope="module")
def run(mobile: Path) -> Run:
    return in_onnxruntime(mobile, open_bundle(mobile).manifest["targets"][TARGET]["components"])


def test_every_line_passes(probe: Probe, project: Path, run: Any) -> None:
    """As the app opens it: with the hash of the manifest that is compiled in."""
    assets = project / "model/src/main/assets/bundle"
    shipped = (project / "app/src/main/kotlin/snapgen/app/Shipped.kt").read_text()
    (digest,) = re.findall(r'MANIFEST_SHA256 = "([0-9a-f]{64})"', shipped)
    given = {"bundle": str(assets), "target": TARGET, "sha256": digest}
    *lines, _ = [one for one in probe.ask("conformance", run, runs=True, **given) if "line" in one or "done" in one]
    assert [line for line in lines if line["passed"] is not True] == []
    assert {line["line"] for line in lines} == {
        "tokenizer text_encoder", "noise", "schedule", "call text_encoder", "call student", "call decoder", "picture",
    }  # fmt: skip
    assert float(lines[-1]["detail"].split()[0]) >= 80
    said = probe.ask("conformance", runs=False, **given)
    assert [line["line"] for line in said[:-1] if line["passed"] is None] == [
        "call text_encoder", "call student", "call decoder", "picture",
    ]  # fmt: skip


def test_the_project_s_own_tests_pass(probe: Probe, project: Path) -> None:
    assets = project / "model/src/main/assets/bundle"
    said = [one for one in probe.ask("tests", bundle=str(assets), target=TARGET) if "test" in one]
    assert len(said) >= 4
    assert [one for one in said if one["fault"] is not None] == []


def test_the_line_that_fails_is_named(probe: Probe, mobile: Path, tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(mobile, folder)
    cases = json.loads((folder / CONFORMANCE).read_text(encoding="utf-8"))
    cases["tokenizers"][0]["cases"][1]["tokens"][2] += 1
    cases["noise"]["cases"][2]["last"][3] += 1e-3
    cases["schedule"]["steps"][1]["next"] = 0.7
    cases["calls"][1]["error"][TARGET] = 1e-9
    cases["picture"]["psnr"][TARGET] = 199.0
    changed(folder, cases)
    said = probe.ask("conformance", run, bundle=str(folder), target=TARGET, runs=True)
    failed = [line for line in said if line.get("passed") is False]
    assert [line["line"] for line in failed] == ["tokenizer text_encoder", "noise", "schedule", "call student", "picture"]
    assert "a blue ring on gray" in failed[0]["detail"]
    assert "4294967296" in failed[1]["detail"]


def changed(folder: Path, cases: Mapping[str, Any]) -> None:
    """Write a bundle's cases, and their hash."""
    text = json.dumps(cases)
    (folder / CONFORMANCE).write_text(text, encoding="utf-8")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][CONFORMANCE]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def test_it_draws_what_generate_draws(probe: Probe, mobile: Path, run: Any) -> None:
    asked = [{"prompt": "a red ring", "seed": "7"}, {"prompt": " A blue ring on gray", "seed": str(2**63 - 1)}]
    said = probe.ask("draw", run, bundle=str(mobile), target=TARGET, thrifty=False, requests=asked)
    pictures = [one for one in said if "picture" in one]
    for told, request in zip(pictures, asked, strict=True):
        (expected,) = draw(open_bundle(mobile), TARGET, [WantedPicture(request["prompt"], int(request["seed"]))], 1)
        pixels = np.array(told["pixels"], np.int64).reshape(64, 64)
        assert ((pixels >> 24) & 0xFF).min() == 255
        found = colours(told["pixels"], 64, 64)
        assert np.abs(found - expected).max() <= 1
        assert told["steps"] == 4
    stages = [(one["stage"], one["step"], one["done"], one["total"]) for one in said if "stage" in one][:6]
    steps = [("DRAWING", i, i, 6) for i in range(1, 5)]
    assert stages == [("READING", 0, 0, 6), *steps, ("DECODING", 0, 5, 6)]
    assert [one["loaded"] for one in said if "loaded" in one] == ["text_encoder", "student", "decoder"]


def test_one_component_at_a_time(probe: Probe, mobile: Path, run: Any) -> None:
    asked = [{"prompt": "a red ring", "seed": "7", "steps": 2}]
    said = probe.ask("draw", run, bundle=str(mobile), target=TARGET, thrifty=True, requests=asked)
    held = [next(iter(one.items())) for one in said if one.keys() & {"loaded", "unloaded"}]
    roles = ("text_encoder", "student", "decoder")
    assert held == [(task, role) for role in roles for task in ("loaded", "unloaded")]


def test_a_picture_is_cancelled_midway(probe: Probe, mobile: Path, run: Any) -> None:
    asked = [{"prompt": "a red ring", "seed": "7", "cancelled": 3}]
    said = probe.ask("draw", run, bundle=str(mobile), target=TARGET, thrifty=False, requests=asked)
    assert said[-1]["refused"] == "cancelled"
    assert [one["call"] for one in said if "call" in one] == ["text_encoder", "student"]  # the second step did not begin


@pytest.mark.parametrize(("thrifty", "left"), [(True, set()), (False, {"text_encoder", "student"})])
def test_a_cancelled_picture_holds_nothing_where_memory_is_short(
    probe: Probe, mobile: Path, run: Any, thrifty: bool, left: set[str]
) -> None:
    asked = [{"prompt": "a red ring", "seed": "7", "cancelled": 3}]
    said = probe.ask("draw", run, bundle=str(mobile), target=TARGET, thrifty=thrifty, requests=asked)
    assert said[-1]["refused"] == "cancelled"
    held = {one["loaded"] for one in said if "loaded" in one} - {one["unloaded"] for one in said if "unloaded" in one}
    assert held == left


@pytest.mark.parametrize(
    ("asked", "reason", "words"),
    [
        ({"prompt": "a red zebra"}, "unknown", "does not know “zebra”"),
        ({"prompt": "ring " * 20}, "long", "22 tokens, at most 16 fit"),
        ({"prompt": "  "}, "empty", "Say what to draw"),
    ],
)
def test_what_generate_refuses_is_refused(probe: Probe, mobile: Path, asked: Any, reason: str, words: str) -> None:
    said = probe.ask("draw", bundle=str(mobile), target=TARGET, thrifty=False, requests=[{**asked, "seed": "0"}])
    assert said[-1]["refused"] == reason
    assert words in said[-1]["said"]


def test_other_files_are_refused(probe: Probe, mobile: Path, tmp_path: Path) -> None:
    given = {"bundle": str(mobile), "target": TARGET}
    sizes = [
        e["bytes"] for c in open_bundle(mobile).manifest["targets"][TARGET]["components"].values() for e in c["files"].values()
    ]
    assert probe.ask("check", **given)[0] == {"bytes": sum(sizes) + (mobile / "tokenizer.json").stat().st_size}
    assert probe.ask("check", **given, sha256="0" * 64)[-1]["refused"] == "hash"
    folder = tmp_path / "bundle"
    shutil.copytree(mobile, folder)
    student = bytearray((folder / "onnx-web/student.onnx").read_bytes())
    student[len(student) // 2] ^= 1
    (folder / "onnx-web/student.onnx").write_bytes(student)
    said = probe.ask("check", bundle=str(folder), target=TARGET)[-1]["said"]
    assert "onnx-web/student.onnx is not the exported file: its SHA-256 is " in said
    (folder / "tokenizer.json").unlink()
    assert (
        "tokenizer.json cannot be read" in probe.ask("conformance", **given | {"bundle": str(folder)}, runs=False)[-1]["said"]
    )
    manifest = json.loads((mobile / MANIFEST).read_text(encoding="utf-8"))
    for change, words in (
        ({"schema_version": 2}, "another version"),
        ({"targets": {}}, "no files for onnx:cpu"),
        ({"noise": {"generator": "torch"}}, "export it with --noise philox4x32-10"),
        ({"schedule": None}, "manifest.json has no schedule"),
    ):
        (folder / MANIFEST).write_text(json.dumps({**manifest, **change}), encoding="utf-8")
        said = probe.ask("check", bundle=str(folder), target=TARGET)[-1]
        assert said["refused"] == "bundle"
        assert words in said["said"]


@pytest.mark.parametrize(
    "text", ["", "{", '{"x": 1,}', '{"x": "\\u12"}', '{"x" 1}', "[1 2]", '{"x": tru}', "[" * 300, '{"x": "a"} 1', '{"x": "\n"}']
)
def test_what_is_no_json(probe: Probe, text: str) -> None:
    said = probe.ask("json", text=text)[-1]
    assert said["refused"] == "bundle"
    assert "is no JSON" in said["said"]


def test_texts_of_json(probe: Probe) -> None:
    for text in ("a", '\u00fc\u2603 \U0001f600 "\\/\b\f\n\r\t\x01', ""):
        for escaped in (True, False):
            assert probe.ask("json", text=json.dumps({"x": text}, ensure_ascii=escaped))[0] == {"text": text}
    assert "text.x is not a text" in probe.ask("json", text='{"x": 1}')[-1]["said"]


@pytest.mark.parametrize(("seed", "count"), [(0, 16), (42, 4099), (2**32, 7), (2**63 - 1, 50_000)])
def test_noise_has_the_same_bits(probe: Probe, seed: int, count: int) -> None:
    found = floats(probe.ask("noise", seed=str(seed), count=count)[0]["floats"])
    np.testing.assert_array_max_ulp(found, philox_noise(seed, (count,)), 1)
    assert (found != philox_noise(seed, (count,))).mean() < 1e-4  # where the last bit of ln, cos or sin differs


def test_time_features_of_other_steps(probe: Probe) -> None:
    found = floats(probe.ask("features", sigma=0.7, count=64)[0]["floats"])
    np.testing.assert_allclose(found, time_features(torch.tensor([0.7]), 64)[0], atol=2e-4)  # 700 in float32 has such steps


def alphabets() -> list[str]:
    rng = random.Random(0)
    letters = [
        "abz ",
        "red ring's 12.5!",
        "\u00fc\u00df\u0130\u03a3\u0301 \u4e2d\u3000\u2028\t\n",
        "\U0001f600\u200d\u2603\u00a0_-9\u0663",
    ]
    return ["".join(rng.choices("".join(letters), k=rng.randrange(24))) for _ in range(60)]


TEXTS = [
    "", " ", "a photo of a Cat's  toys, isn't it?", "Two GREEN circles,  \u00fcber 3 rings!", "x" * 90, "don't we'll THEY'RE",
    "<|endoftext|> in a text <|startoftext|>", "\u03a3\u03a3 \u0130stanbul \u1e9e", 
    "<start_of_turn>user\na ring<end_of_turn>\n", "e\u0301 \u00e9", *alphabets(),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["words", "clip", "qwen", "gemma"])
def test_tokens_are_those_of_the_library(probe: Probe, mobile: Path, tmp_path: Path, kind: str) -> None:
    file = mobile / "tokenizer.json" if kind == "words" else tokenizer_file(kind, tmp_path)
    oracle = Tokenizer.from_file(str(file))
    oracle.no_padding()
    oracle.no_truncation()
    for special in (False, True):
        expected = [oracle.encode(text, add_special_tokens=special).ids for text in TEXTS]
        found = probe.ask("tokens", file=str(file), texts=TEXTS, special=special)[0]["ids"]
        assert [(t, e, f) for t, e, f in zip(TEXTS, expected, found, strict=True) if e != f] == []


def tokenizer_file(kind: str, folder: Path) -> Path:
    """A tokenizer.json as a text encoder's folder of transformers gives it."""
    from snapgen_deploy.models.library_tokenizer import read_tokenizer

    TOKENIZERS[kind](folder)
    made = folder / "made.json"
    made.write_text(read_tokenizer(folder).backend_tokenizer.to_str(), encoding="utf-8")
    return made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "a model of kind Unigram"),
        ({"normalizer": {"type": "Precompiled"}}, "a normalizer of kind Precompiled"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "a pre-tokenizer of kind Metaspace"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated"}}, r"a pattern with \w"),
        ({"post_processor": {"type": "Other"}}, "a post-processor of kind Other"),
        ({"added_tokens": [{"content": "x", "id": 1, "lstrip": True}]}, "an added token with lstrip"),
    ],
)
def test_other_tokenizers_are_refused_in_one_message(
    probe: Probe, mobile: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads((mobile / "tokenizer.json").read_text(encoding="utf-8")) | change), encoding="utf-8")
    said = probe.ask("tokens", file=str(file), texts=[], special=True)[-1]
    assert said["refused"] == "tokenizer"
    assert said["said"].startswith(
        f"The bundle's tokenizer has {words}, which this app does not read: it reads whole words and "
    )


def test_guidance_two_encoders_and_an_empty_stream(probe: Probe, tmp_path: Path) -> None:
    latent, levels = (2, 3, 5), (1.0, 0.6, 0.0)
    velocities = np.random.default_rng(0).standard_normal((2, 2, *latent)).astype(np.float32)
    folder = guided_bundle(tmp_path, latent, levels)
    calls: list[tuple[str, dict[str, np.ndarray]]] = []

    def call(role: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls.append((role, inputs))
        if role == "student":
            return {"velocity": velocities[(sum(one == "student" for one, _ in calls) - 1) % 2]}
        if role == "decoder":
            return {"picture": np.zeros((1, 3, 1, 1), np.float32)}
        stream, total = {"first": "one", "second": "two"}[role], inputs["tokens"].sum()
        length = inputs["tokens"].shape[1] - (role == "first")
        return {stream: np.full((1, length, 2), total), f"{stream}_pooled": np.full((1, 1), -total)}

    asked = {"prompt": "a bb", "negative": "cccc", "scale": 1.5}
    requests = [{**asked, "seed": "5"}, {**asked, "seed": "6"}]
    said = probe.ask("draw", call, bundle=str(folder), target=TARGET, thrifty=False, requests=requests)
    assert said[-1] == {"done": True}
    expected = philox_noise(5, (1, *latent))
    for begin, end, velocity in zip(levels, levels[1:], velocities, strict=False):
        expected = expected + np.float32(end - begin) * guided(velocity, 1.5)
    (drawn, _) = [inputs["latent"] for role, inputs in calls if role == "decoder"]
    np.testing.assert_allclose(drawn, expected, rtol=1e-6, atol=1e-7)
    inputs = next(inputs for role, inputs in calls if role == "student")
    assert inputs["one_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]  # the first of four is dropped; the prompts have 3 and 2 words
    assert inputs["two_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert inputs["one"][:, 0, 0].tolist() == [9 + 1 + 2 + 3, 9 + 9 + 4 + 3]
    assert inputs["two_pooled"].tolist() == [[-15.0], [-25.0]]
    assert inputs["gone"].shape == (2, 5, 2)
    assert not inputs["gone"].any()
    assert not inputs["gone_pooled"].any()
    assert np.array_equal(inputs["latent"][0], inputs["latent"][1])
    assert sum(role == "first" for role, _ in calls) == 3  # the negative prompt once


def test_steps_with_coefficients_and_new_noise(probe: Probe, tmp_path: Path) -> None:
    latent, velocity = (2, 3, 5), np.random.default_rng(1).standard_normal((2, 2, 3, 5)).astype(np.float32)
    rules = [[0.9, -0.5, 0.3], [1.1, -0.25, 0.0]]
    linear = {"sampler": "linear", "coefficients": rules, "start": 2.0}
    folder = guided_bundle(tmp_path, latent, (1.0, 0.6, 0.0), **linear)
    decoded: list[np.ndarray] = []

    def call(role: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if role == "student":
            return {"velocity": velocity}
        if role == "decoder":
            decoded.append(inputs["latent"])
            return {"picture": np.zeros((1, 3, 1, 1), np.float32)}
        stream, length = {"first": ("one", 3), "second": ("two", 4)}[role]
        return {stream: np.zeros((1, length, 2), np.float32), f"{stream}_pooled": np.zeros((1, 1), np.float32)}

    given = {"bundle": str(folder), "target": TARGET, "thrifty": False}
    said = probe.ask("draw", call, **given, requests=[{"prompt": "a", "seed": "5"}])
    assert said[-1] == {"done": True}
    begun, fresh = philox_noise(5, (2, 1, *latent))
    expected = np.float32(2.0) * begun
    for keep, scale, added in np.array(rules, np.float32):
        expected = keep * expected + scale * guided(velocity, 4.0) + added * fresh
    np.testing.assert_allclose(decoded[0], expected, rtol=1e-6, atol=1e-6)
    said = probe.ask("draw", call, **given, requests=[{"prompt": "a", "seed": "5", "steps": 3}])
    assert said[-1]["said"] == "This model draws in 2 steps, no other number."
    guided_bundle(tmp_path, latent, (1.0, 0.6, 0.0), sampler="heun")
    said = probe.ask("draw", call, **given, requests=[])
    assert said[-1]["said"] == "This app cannot draw with the sampler heun."


def guided_bundle(folder: Path, latent: tuple[int, ...], levels: tuple[float, ...], **schedule: Any) -> Path:
    """Manifest, cases and a tokenizer that gives words the number of their letters: no networks."""

    def port(name: str, *shape: int) -> dict[str, Any]:
        return {"name": name, "shape": list(shape), "dtype": "float32"}

    def component(outputs: list[Any], *inputs: dict[str, Any]) -> dict[str, Any]:
        return {"path": "x", "files": {}, "inputs": list(inputs), "outputs": outputs}

    ports = [port("latent", 2, *latent), port("time_features", 2, 4)]
    for stream, length in (("one", 3), ("two", 4), ("gone", 5)):
        ports += [port(stream, 2, length, 2), port(f"{stream}_mask", 2, length), port(f"{stream}_pooled", 2, 1)]
    rule = {
        "file": "tokenizer.json",
        "template": "{} 333",
        "special_tokens": True,
        "unknown": "kept",
        "unknown_token": 0,
        "pad": 9,
    }
    rules = [
        {**rule, "encoder": "first", "stream": "one", "length": 4, "dropped": 1, "side": "left", "padding_seen": False},
        {**rule, "encoder": "second", "stream": "two", "length": 4, "dropped": 0, "side": "right", "padding_seen": True},
    ]
    words = {"a": 1, "bb": 2, "cccc": 4, "333": 3, "?": 0}
    tokenizer = {"model": {"type": "WordLevel", "vocab": words, "unk_token": "?"}, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    cases = json.dumps({"format": 1, "vectors": "v", "tokenizers": rules})
    manifest = {
        "schema_version": 1,
        "name": "guided",
        "width": "full",
        "noise": {"generator": "philox4x32-10"},
        "resolution": [1, 1],
        "config": {"absent_streams": ["gone"]},
        "guidance": {"scale": 4.0, "negative_prompt": "a"},
        "schedule": {
            "sigmas": levels,
            "shift": 1.0,
            "time_features": {"count": 4, "values": [[1, 2, 3, 4], [5, 6, 7, 8]]},
            **schedule,
        },
        "files": {CONFORMANCE: {"bytes": len(cases), "sha256": hashlib.sha256(cases.encode()).hexdigest()}},
        "targets": {
            TARGET: {
                "precision": "fp32",
                "components": {
                    "student": component([port("velocity", 2, *latent)], *ports),
                    "decoder": component([port("picture", 1, 3, 1, 1)], port("latent", 1, *latent)),
                    "first": component([port("one", 1, 3, 2), port("one_pooled", 1, 1)]),
                    "second": component([port("two", 1, 4, 2), port("two_pooled", 1, 1)]),
                },
            }
        },
    }
    for name, text in ((MANIFEST, json.dumps(manifest)), (CONFORMANCE, cases), ("tokenizer.json", json.dumps(tokenizer))):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_one_line_for_each_picture(probe: Probe, mobile: Path, tmp_path: Path, run: Any) -> None:
    given = {"bundle": str(mobile), "target": TARGET, "file": str(tmp_path / "pictures.jsonl")}
    drawn, refused, *more = probe.ask("record", run, **given, kept=500, more=1, clear=False)[-2]["lines"]
    assert more == ["{}"]
    line = json.loads(drawn)
    assert [type(one) for one in line["ms"].pop("steps")] == [int] * 4
    assert {name: type(value) for name, value in line.pop("ms").items()} == dict.fromkeys(
        ("load", "encode", "decode", "all"), int
    )
    assert line == {
        "app": "android",
        "bundle": "tiny-test",
        "width": "full",
        "target": TARGET,
        "precision": "fp32",
        "runtime": {"provider": "probe", "threads": 1},
        "device": 'a "phone"',
        "time": "1970-01-01T00:00:00.000Z",
        "seed": "7",
        "steps": 4,
        "ok": True,
        "memory": {"process": 1234567},
        "thermal": "fair",
    }
    other = json.loads(refused)
    assert (other["ok"], other["why"], other["steps"]) == (False, "unknown", 2)
    assert not {"ms", "memory", "thermal", "prompt"} & other.keys()
    kept = probe.ask("record", run, **given, kept=3, more=9, clear=True)[-2]["lines"]
    assert kept == ["{}"] * 3
    assert not (tmp_path / "pictures.jsonl").exists()


def test_a_project_has_what_it_needs(project: Path, mobile: Path) -> None:
    files = {p.relative_to(project).as_posix(): p for p in project.rglob("*") if p.is_file()}
    template = {name for name in names(PROJECT, "") if not name.endswith("ExecuTorchEngine.kt")}
    opened = open_bundle(mobile)
    inside = {name for name in files if name.startswith("model/src/main/assets/bundle/")}
    assert set(files) - inside == template | {APP_MARK}
    parts = opened.manifest["targets"][TARGET]["components"].values()
    used = {name for part in parts for name in part["files"]} | {
        MANIFEST,
        CONFORMANCE,
        "tokenizer.json",
        opened.test_vectors.name,
    }
    assert {name.removeprefix("model/src/main/assets/bundle/") for name in inside} == used
    own = [files[name].read_text(encoding="utf-8") for name in template]
    assert [text for text in own if re.search(r"@[A-Z0-9]+@", text)] == []
    assert "OnnxruntimeEngine(folder, threads)" in files["app/src/main/kotlin/snapgen/app/Shipped.kt"].read_text()
    assert "implementation(libs.onnxruntime)" in files["app/build.gradle.kts"].read_text()
    for name in template:
        if name.startswith("core/src/"):  # what the tests here compile
            assert files[name].read_text(encoding="utf-8") == (Path(str(PROJECT)) / name).read_text(encoding="utf-8")
            assert not re.search(r"^import (android|androidx|ai\.onnxruntime|org\.pytorch)", files[name].read_text(), re.M)


def names(folder: Any, path: str) -> Iterator[str]:
    for entry in folder.iterdir():
        yield from names(entry, f"{path}{entry.name}/") if entry.is_dir() else (f"{path}{entry.name}",)


def test_every_kotlin_file_parses(project: Path) -> None:
    files = [p for p in project.rglob("*") if p.name.endswith((".kt", ".kts"))]
    assert len(files) >= 25
    assert [fault for path in files for fault in faults(path, tree_sitter_kotlin.language())] == []
    unfilled = Path(str(PROJECT)) / "app/build.gradle.kts"
    assert list(faults(unfilled, tree_sitter_kotlin.language())) != []


def test_versions_are_one_everywhere() -> None:
    catalogue = tomllib.loads((PROJECT / "gradle/libs.versions.toml").read_text(encoding="utf-8"))
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"executorch=={catalogue['versions']['executorch']}" in project["optional-dependencies"]["export"]
    assert catalogue["versions"]["kotlin"] == KOTLIN.version
    used = {
        about["version"]["ref"]
        for group in ("libraries", "plugins")
        for about in catalogue[group].values()
        if "version" in about
    }
    assert used == catalogue["versions"].keys()


def test_titles_and_prompts_of_all_kinds(mobile: Path) -> None:
    opened = open_bundle(mobile)
    odd = replace(opened, manifest={**opened.manifest, "name": 'it\'s <a> "b"', "prompts": ['a "$x" \\ cat']})
    files = android_project(odd, TARGET)
    text = {name: content.decode() for name, content in files.items() if isinstance(content, bytes)}
    assert 'it\\\'s &lt;a&gt; \\"b\\"' in text["app/src/main/res/values/strings.xml"]
    assert 'rootProject.name = "it-s-a-b-"' in text["settings.gradle.kts"]
    assert 'mutableStateOf("a \\"\\$x\\" \\\\ cat")' in text["app/src/main/kotlin/snapgen/app/MainActivity.kt"]


def test_what_no_app_can_draw_with_is_refused(bundle: Path, mobile: Path, tmp_path: Path) -> None:
    kind, opened = app_of("android"), open_bundle(mobile)
    with pytest.raises(
        BadInput, match="holds no executorch:xnnpack or executorch:vulkan or onnx:cpu, which the app draws with"
    ):
        write_app(kind, open_bundle(bundle), tmp_path / "app")
    with pytest.raises(BadInput, match="--target onnx:web: the app draws with executorch:xnnpack, executorch:vulkan, onnx:cpu"):
        write_app(kind, opened, tmp_path / "app", target="onnx:web")
    torches = replace(opened, manifest={**opened.manifest, "noise": {"generator": "torch"}})
    with pytest.raises(BadInput, match="with noise of torch, which an app cannot make: export with --noise philox4x32-10"):
        write_app(kind, torches, tmp_path / "app")
    assert list(tmp_path.iterdir()) == []
