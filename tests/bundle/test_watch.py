"""What recorded pictures say about a rollout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from snapgen_deploy.bundle.reader import open_bundle, write_manifest
from snapgen_deploy.bundle.watch import Watched, picture_lines, watched
from snapgen_deploy.device_profiles.rollout import LEAST_PICTURES, rollout
from snapgen_deploy.errors import BadInput
from tests.cli.conftest import invoke
from tests.manifests import component, least_manifest

KEY, SIZE = "onnx:cpu", 10**9
FORMATS = Path(__file__).parents[2] / "docs/formats.md"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    proposed = rollout("Android", SIZE, [{"target": KEY, "high_ms": 300.0}, {"target": "executorch:xnnpack"}])
    write_manifest(tmp_path, least_manifest({KEY: {"student": component("a.onnx")}}, rollout=proposed))
    return tmp_path


def line(**changes: Any) -> dict[str, Any]:
    """The example of the page, of a good picture."""
    examples = re.findall(r"```json\n(.*?)```", FORMATS.read_text(encoding="utf-8"), re.DOTALL)
    return {**json.loads(next(one for one in examples if "android" in one)), **changes}


def found(bundle: Path, *groups: tuple[int, dict[str, Any]], before: int = 0) -> dict[str, Watched]:
    """What is said about so many lines with these changes each."""
    lines = [line(**changes) for count, changes in groups for _ in range(count)]
    earlier = [line(ms={"all": 200}) for _ in range(before)]
    return {one.name: one for one in watched(open_bundle(bundle), lines, earlier)}


def test_good_pictures_pass(bundle: Path) -> None:
    said = found(bundle, (LEAST_PICTURES, {}))
    assert {name: one.verdict for name, one in said.items()} == dict.fromkeys(
        ("failures", f"latency {KEY}", "memory", "thermal"), "passed"
    )
    assert (said[f"latency {KEY}"].value, said[f"latency {KEY}"].most) == (285, 300.0)
    assert said["memory"].value == 310_000_000


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"ok": False, "why": "runtime"}, "failures", 0.5),
        ({"ms": {"all": 400}}, f"latency {KEY}", 342.5),
        ({"memory": {"process": SIZE + 1}}, "memory", SIZE + 1),
        ({"memory": {"heap": SIZE + 2}}, "memory", SIZE + 2),
        ({"thermal": "critical"}, "thermal", 0.5),
    ],
)
def test_each_can_fail(bundle: Path, changes: dict[str, Any], name: str, value: float) -> None:
    said = found(bundle, (60, {}), (60, changes))
    assert [one.name for one in said.values() if one.verdict == "failed"] == [name]
    assert said[name].value == value


@pytest.mark.parametrize("why", ["cancelled", "unknown", "long", "empty"])
def test_the_user_s_own_doing_is_no_failure(bundle: Path, why: str) -> None:
    said = found(bundle, (60, {}), (60, {"ok": False, "why": why}))
    assert (said["failures"].value, said["failures"].verdict) == (0, "passed")


def test_times_beside_the_release_before(bundle: Path) -> None:
    said = found(bundle, (60, {"ms": {"all": 241}}), before=60)
    assert said[f"latency {KEY}"].verdict == "passed"
    ratio = said[f"latency {KEY}, ratio"]
    assert (ratio.value, ratio.verdict) == (241 / 200, "failed")
    assert found(bundle, (60, {"ms": {"all": 239}}), before=60)[f"latency {KEY}, ratio"].verdict == "passed"
    assert found(bundle, (60, {}), before=3)[f"latency {KEY}, ratio"].verdict == "not_run"


def test_few_pictures_say_nothing(bundle: Path) -> None:
    said = found(bundle, (LEAST_PICTURES - 1, {"ok": False, "why": "failed"}), (1, {"thermal": "serious"}))
    assert said["failures"].verdict == "failed"
    assert {said[name].verdict for name in ("memory", "thermal", f"latency {KEY}")} == {"not_run"}
    assert said["thermal"].detail == "1 pictures tell of it, at least 50 are needed"


def test_the_command(bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "pictures.jsonl"
    for changes, count, code in (({}, 60, 0), ({"thermal": "serious"}, 60, 1), ({}, 3, 3)):
        other = json.dumps(line(bundle="another"))
        record.write_text("\n".join([other, "", *[json.dumps(line(**changes))] * count]) + "\n", encoding="utf-8")
        done = invoke("bundle", "watch", bundle, record)
        assert done.exit_code == code, done.output
        assert "failures" in done.output
    done = invoke("bundle", "watch", bundle, record, "--before", record, "--json")
    assert [one["name"] for one in json.loads(done.stdout)["watched"]][:2] == ["failures", f"latency {KEY}"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "pictures.jsonl:1 is not readable JSON"),
        ("[]", "pictures.jsonl:1 is no line of a record"),
        ('{"bundle": "x", "target": "onnx:cpu", "ok": true}', "has no line of shapes for onnx:cpu"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_record(bundle: Path, tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "pictures.jsonl").write_text(text)
    with pytest.raises(BadInput, match=re.escape(words)):
        picture_lines(tmp_path / "pictures.jsonl", open_bundle(bundle))


def test_bundles_of_earlier_releases(tmp_path: Path) -> None:
    write_manifest(tmp_path, least_manifest({KEY: {"student": component("a.onnx")}}))
    with pytest.raises(BadInput, match="says nothing about a rollout"):
        watched(open_bundle(tmp_path), [line()])


def test_stages_grow_to_everyone() -> None:
    for os in ("iOS", "iPadOS", "Android", "Web", "Linux"):
        proposed = rollout(os, SIZE, [])
        shares = [stage["share"] for stage in proposed["stages"]]
        assert shares == sorted(set(shares))
        assert (shares[-1], proposed["watch"]["memory"]["most"], proposed["watch"]["latency"]["most"]) == (1.0, SIZE, {})
    assert "memory" not in rollout("Linux", None, [])["watch"]
    assert [stage["share"] for stage in rollout("iOS", SIZE, [])["stages"]] == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
