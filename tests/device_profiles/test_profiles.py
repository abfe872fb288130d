"""Every shipped profile is sound and sourced; a malformed one names all that is wrong with it; listing is light."""

from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from snapgen_deploy import device_profiles
from snapgen_deploy.device_profiles import load_profile, profile_ids
from snapgen_deploy.device_profiles.cores import CORES
from snapgen_deploy.device_profiles.schema import BUDGET_STATUSES, STATUSES, Figure, Isa
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.registry import target_keys

FOLDER = Path(device_profiles.__file__).parent

MINIMAL = """
id = "mine"
name = "My phone"
kind = "phone"
soc = "Chip"
source = "its box"
[os]
name = "Android"
minimum = "14"
[figures]
[budget]
memory = { value = 2, unit = "GiB", status = "chosen", source = "a guess that suits us" }
[[targets]]
target = "onnx"
precision = "fp32"
layout = "token"
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def tables_with_a_value(table: dict[str, Any]) -> int:
    """Figures in a raw TOML table, found without the schema."""
    inner = [v for v in table.values() if isinstance(v, dict)]
    return ("value" in table) + sum(tables_with_a_value(v) for v in inner)


def all_figures(device: str) -> list[Figure]:
    p = load_profile(device)
    basis = [*p.latency.step.values(), p.latency.decoder] if p.latency is not None else []
    return [*p.figures.values(), *(f for f in (p.memory_budget, p.latency_budget) if f is not None), *basis]


def test_the_three_named_devices_and_six_more_are_there() -> None:
    assert {"iphone16pm", "android-mid", "server"} <= set(profile_ids())
    assert len(profile_ids()) >= 9


@pytest.mark.parametrize("device", profile_ids())
def test_every_figure_has_a_source(device: str) -> None:
    figures = all_figures(device)
    raw = tomllib.loads((FOLDER / f"{device}.toml").read_text(encoding="utf-8"))
    assert len(figures) == tables_with_a_value(raw)  # none is lost on the way
    for figure in figures:
        assert figure.source.strip()
        assert figure.status in BUDGET_STATUSES
        assert math.isfinite(figure.value)
        assert figure.value > 0


@pytest.mark.parametrize("device", profile_ids())
def test_only_budgets_are_chosen(device: str) -> None:
    profile = load_profile(device)
    basis = [*profile.latency.step.values(), profile.latency.decoder] if profile.latency is not None else []
    assert {f.status for f in (*profile.figures.values(), *basis)} <= set(STATUSES)


@pytest.mark.parametrize("device", profile_ids())
def test_targets_exist_and_an_iphone_bundle_also_runs_on_linux(device: str) -> None:
    profile = load_profile(device)
    keys = [t.key for t in profile.targets]
    assert set(keys) <= set(target_keys())
    assert ("onnx:web" if device == "web" else "onnx:cpu") in keys  # native onnxruntime runs both
    if profile.os == "iOS":
        assert keys[0] == "coreml"
        assert len(keys) >= 3


def test_iphone16pm_as_published() -> None:
    profile = load_profile("iphone16pm")
    assert [(t.key, t.precision, t.layout) for t in profile.targets] == [
        ("coreml", "fp16", "channels"),
        ("executorch:xnnpack", "fp32", "token"),
        ("onnx:cpu", "fp32", "token"),
    ]
    assert dict(profile.targets[0].options) == {"deployment": "iOS18"}
    assert profile.latency is not None
    assert profile.latency.resolution == (1024, 1024)
    assert profile.latency.picture_ms("small", 4) == pytest.approx(1560)  # the paper says 1.7 to 1.8 s with text encoding
    assert profile.latency.picture_ms("no such width", 4) is None


@pytest.mark.parametrize("device", profile_ids())
def test_apples_devices_offer_core_ml_and_core_ai_and_say_what_each_needs(device: str) -> None:
    profile = load_profile(device)
    named = {t.target: t for t in profile.targets}
    offered = {o.target.target: o for o in profile.offers}
    assert ("coreai" in offered) == ("coreml" in named) == profile.os.startswith(("iOS", "iPadOS", "macOS"))
    if "coreai" in offered:
        assert named["coreml"].system == "iOS 18"
        assert offered["coreai"].target.system == ("macOS 27" if profile.os == "macOS" else "iOS 27")
        assert "27" in offered["coreai"].source


def test_phones_offer_the_delegates_of_their_systems_with_a_source() -> None:
    for device in profile_ids():
        profile = load_profile(device)
        expected = {
            "iOS": "executorch:coreml",
            "iPadOS": "executorch:coreml",
            "macOS": "executorch:coreml",
            "Android": "executorch:vulkan",
        }
        found = {offer.target.key: offer.source for offer in profile.offers}
        assert expected.get(profile.os) in (*found, None), device
        assert all("https://" in source for source in found.values())
        assert not set(found) & {t.key for t in profile.targets}
        assert {o["target"] for o in profile.as_dict()["offers"]} == set(found)


def test_an_offer_needs_a_source(tmp_path: Path) -> None:
    offer = '\n[[offers]]\ntarget = "executorch:vulkan"\nprecision = "fp8"\nlayout = "token"\n'
    with pytest.raises(BadInput) as caught:
        load_profile(write(tmp_path, MINIMAL + offer))
    assert "offers[0].source: got nothing" in str(caught.value)
    assert "offers[0].precision: got 'fp8', expected one of fp16, fp32" in str(caught.value)


def test_own_file_by_path(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, MINIMAL))
    assert profile.id == "mine"
    assert profile.memory_budget_bytes == 2 * 2**30
    assert profile.targets[0].key == "onnx:cpu"  # a bare name takes the target's first variant


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="unknown device 'iphone16pn': did you mean iphone16pm"):
        load_profile("iphone16pn")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        load_profile(str(tmp_path / "absent.toml"))
    with pytest.raises(BadInput, match="cannot be read"):
        load_profile(f"{tmp_path}/")
    with pytest.raises(BadInput, match="not a TOML file"):
        load_profile(write(tmp_path, "id = = 3"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not a TOML file"):
        load_profile(str(tmp_path / "binary.toml"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "phone"', 'kind = "toaster"', "kind: got 'toaster', expected one of phone, tablet, desktop, server"),
        ('soc = "Chip"', "", "soc: got nothing, expected a non-empty string"),
        ('soc = "Chip"', "soc = 3", "soc: got 3, expected a non-empty string"),
        ('name = "Android"', 'nmae = "Android"', "os.nmae: got an unknown key, expected 'name'?"),
        ("value = 2,", "value = -2,", "budget.memory.value: got -2, expected a positive number"),
        ("value = 2,", "value = nan,", "budget.memory.value: got nan, expected a positive number"),
        ("value = 2,", "value = inf,", "budget.memory.value: got inf, expected a positive number"),
        ("value = 2,", "value = true,", "budget.memory.value: got true, expected a positive number"),
        ('unit = "GiB"', 'unit = "stone"', "budget.memory.unit: got 'stone', expected one of"),
        (', source = "a guess that suits us"', "", "budget.memory.source: got nothing"),
        ("[figures]", '[figures]\npower = { value = 8, unit = "W", status = "chosen", source = "x" }', "figures.power.status"),
        ("[figures]", "[figures]\nspeed = 3", "figures.speed: got an unknown key"),
        ("[figures]", "[figures]\nmemory = 8", "figures.memory: got 8, expected a table"),
        ('target = "onnx"', 'target = "onnx:rocm"', "targets[0].target: got 'onnx:rocm', expected one of coreml, coreai, exec"),
        ('target = "onnx"', 'target = "tensorrt"', "targets[0].target: got 'tensorrt'"),
        ('precision = "fp32"', 'precision = "int3"', "targets[0].precision: got 'int3', expected one of fp32"),
        ('layout = "token"', 'layout = "sideways"', "targets[0].layout: got 'sideways', expected one of token, channels"),
        ('id = "mine"', 'id = "My Phone"', "id: got 'My Phone', expected up to 64 lower-case letters"),
        ('id = "mine"', 'id = "my\\nphone"', r"id: got 'my\nphone', expected up to 64"),
        ('id = "mine"', f'id = "{"m" * 65}"', "expected up to 64 lower-case letters"),
        ('id = "mine"', 'id = "host"', "id: got 'host', expected"),
        ("value = 2,", f"value = {'9' * 400},", "budget.memory.value: got 9999"),
        ("value = 2,", f"value = 0x{'f' * 5000},", "budget.memory.value: got a number of thousands of digits, expected a posi"),
        ("value = 2,", f"value = {'9' * 5000},", "not a TOML file (it holds a number of thousands of digits)"),
        ("value = 2,", f"value = {'[' * 3000}{']' * 3000},", "not a TOML file (it is nested too deeply)"),
        ("value = 2,", f"value = {'[' * 200}{']' * 200},", "budget.memory.value: got [["),
        ("value = 2,", "value = 1979-05-27,", "budget.memory.value: got datetime.date(1979, 5, 27), expected a positive"),
        ("[figures]", "[[figures]]", "figures: got [{}], expected a table"),
        ('id = "mine"', f'id = "{"m" * 20_000}"', "id: got 'mmm"),
        ('id = "mine"', f'id = "mine"\n{"k" * 20_000} = 1', "got an unknown key, expected only budget, figures"),
        ("[figures]", "[figures]\n" + "\n".join(f"a{i} = 1" for i in range(1000)), "1000 problems: figures.a0: got an unknown"),
        ('layout = "token"', 'layout = "token"\nlimits = [3]', "targets[0].limits: got [3], expected a table"),
        ('layout = "token"', 'layout = "token"\nlimits = { psnr = "9" }', "targets[0].limits.psnr: got '9', expected a posi"),
        ('layout = "token"', 'layout = "token"\noptions = { a = 1 }', "targets[0].options.a: got 1, expected a non-empty"),
        ('soc = "Chip"', 'soc = "Chip"\nguards = ["lint", "x"]', "guards[1]: got 'x', expected one of bytes, ops, macs"),
        ('soc = "Chip"', 'soc = "Chip"\nnotes = "x"', "notes: got 'x', expected a list of strings"),
        ("value = 2,", "value = 1e300,", "budget.memory.value: got 1e+300, expected a positive number, 1e-09 to 1e+18"),
    ],
)  # fmt: skip
def test_one_problem_says_path_got_and_expected(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert MINIMAL.count(old) == 1
    with pytest.raises(BadInput) as caught:
        load_profile(write(tmp_path, MINIMAL.replace(old, new)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) <= 300


def test_all_problems_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a path as long as pytest's leaves room for fewer problems
    text = MINIMAL.replace('soc = "Chip"', "").replace('kind = "phone"', 'kind = "toaster"')
    text = text.replace("value = 2,", 'value = "2",')
    with pytest.raises(BadInput) as caught:
        load_profile(write(Path(), text))
    for part in ("3 problems", "soc", "toaster", "budget.memory.value"):
        assert part in str(caught.value)


def test_a_target_twice_and_none_at_all(tmp_path: Path) -> None:
    rows = MINIMAL[MINIMAL.index("[[targets]]") :]
    with pytest.raises(BadInput, match="onnx:cpu 2 times"):
        load_profile(write(tmp_path, MINIMAL + rows))
    with pytest.raises(BadInput, match=r"targets: got nothing, expected one or more \[\[targets\]\] tables"):
        load_profile(write(tmp_path, MINIMAL.replace(rows, "")))


def test_latency_needs_a_target_of_the_profile(tmp_path: Path) -> None:
    basis = """
[latency]
preset = "snapgenpp"
resolution = [1024, 1024]
target = "coreml"
decoder = { value = 120, unit = "ms", status = "published", source = "x" }
[latency.step]
tiny = { value = 280, unit = "ms", status = "published", source = "x" }
"""
    with pytest.raises(BadInput, match=r"latency\.target: got 'coreml', expected one of the profile's targets"):
        load_profile(write(tmp_path, MINIMAL + basis))


def test_cores_are_known_and_have_a_source(tmp_path: Path) -> None:
    for device in profile_ids():
        profile = load_profile(device)
        assert (profile.isa is not None) == (profile.kind != "server" and device not in ("web", "iphone17pro")), device
        assert profile.isa is None or profile.as_dict()["isa"] == {
            "cores": list(profile.isa.cores),
            "source": profile.isa.source,
        }
    with pytest.raises(BadInput) as caught:
        load_profile(write(tmp_path, MINIMAL + '[isa]\ncores = ["cortex-a54"]\n'))
    assert "isa.cores[0]: got 'cortex-a54', expected one of cortex-a35, cortex-a53" in str(caught.value)
    with pytest.raises(BadInput, match=r"isa\.source: got nothing"):
        load_profile(write(tmp_path, MINIMAL + '[isa]\ncores = ["cortex-a53"]\n'))


def test_what_cores_lack() -> None:
    isa = Isa(("cortex-a76", "cortex-a53", "cortex-a73", "oryon", "apple-a18"), "x")
    assert isa.lacking("fp16") == ("Cortex-A53", "Cortex-A73")
    assert [CORES[name].title for name in isa.cores[-2:]] == ["Oryon", "Apple A18"]


def test_profiles_load_without_torch() -> None:
    code = (
        "import sys; from snapgen_deploy.device_profiles import *; [load_profile(i) for i in profile_ids()]; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
