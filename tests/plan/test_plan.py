"""The plan picks the widest width that fits and says why; the CLI shows devices and plans."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from snapgen_deploy.cli.devices import devices, plan_as_dict, render_plan
from snapgen_deploy.device_profiles import Figure, Profile, load_profile, profile_ids
from snapgen_deploy.device_profiles.schema import Isa
from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import PRESETS, DiT, ModelConfig, TinyDecoder
from snapgen_deploy.models.dit_config import StageKind
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.plan import widths as plan_width
from snapgen_deploy.plan.make import make_plan
from snapgen_deploy.plan.plan import ExportPlan
from snapgen_deploy.plan.sizes import latent_of, nearest_sizes, size_name
from snapgen_deploy.plan.widths import WEIGHT_BYTES, activation_bytes
from snapgen_deploy.sparse import rewrite_student

CONFIGS: dict[str, Callable[[], ModelConfig]] = {name: cache(preset) for name, preset in PRESETS.items()}


_real_estimate = plan_width.estimate_memory
_seen: dict[str, int] = {}


def estimate(
    config: ModelConfig,
    width: str,
    latent: tuple[int, int, int],
    size: tuple[int, int],
    weight_bytes: int,
    batch: int = 1,
) -> int:
    """The real estimate, each computed once: counting the full-scale parameters takes a second."""
    key = repr((config.name, width, latent, size, weight_bytes, batch))
    if key not in _seen:
        _seen[key] = _real_estimate(config, width, latent, size, weight_bytes, batch)
    return _seen[key]


@pytest.fixture(autouse=True)
def _each_estimate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_width, "estimate_memory", estimate)


def memory(preset: str, width: str, weight_bytes: int) -> int:
    config = CONFIGS[preset]()
    factor = config.student.latent_factor
    latent = (config.student.latent_channels, config.resolution[0] // factor, config.resolution[1] // factor)
    return estimate(config, width, latent, config.resolution, weight_bytes)


@pytest.mark.parametrize(
    ("attention", "blocks", "radius"),
    [
        (("assa", "full", "assa"), 4, 1),
        (("assa", "full", "full"), 4, 1),
        (("full", "full", "full"), 4, 1),
        (("assa", "assa", "assa"), 2, 1),
        (("assa", "assa", "assa"), 3, 1),
        (("assa", "assa", "assa"), 4, 5),
    ],
)
def test_activations_are_no_less_than_the_largest_tensor_of_the_graph(
    attention: tuple[StageKind, StageKind, StageKind], blocks: int, radius: int
) -> None:
    source = CONFIGS["shapes"]().student
    student = replace(source, attention=attention, depths=(1, 1, 1), blocks=blocks, radius=radius)
    config, latent = replace(CONFIGS["shapes"](), student=student, decoder=None), (4, 48, 32)
    with without_storage():
        rewritten = rewrite_student(DiT(student, "small"), latent[1:], layout="token", form="loop")
        (stream,) = student.text_streams
        shapes = ((1, *latent), (1, student.time_features), (1, stream.length, stream.dim), (1, stream.length))
        program = torch.export.export(rewritten, tuple(torch.empty(s) for s in shapes))
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "call_function"]
    largest = max(v.numel() for v in values if isinstance(v, torch.Tensor))
    assert largest <= activation_bytes(config, "small", latent, (384, 256)) / 4 <= 4 * largest


@pytest.mark.parametrize("channels", [(32, 16, 8, 4), (32, 32, 32, 4), (64, 8, 8, 4)])
def test_activations_are_no_less_than_the_decoders_largest_map(channels: tuple[int, ...]) -> None:
    base = CONFIGS["shapes"]()
    assert base.decoder is not None
    decoder = replace(base.decoder, channels=channels, blocks=(1,) * len(channels), groups=4)
    with without_storage():
        program = torch.export.export(TinyDecoder(decoder), (torch.empty(1, decoder.latent_channels, 6, 4),))
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "call_function"]
    largest = max(v.numel() for v in values if isinstance(v, torch.Tensor))
    spec = components_of(replace(base, decoder=decoder)).decoder
    assert spec is not None
    assert 2 * largest <= spec.activations("", (4, 6, 4), (48, 32)) / 4 <= 4 * largest


def test_there_is_always_a_nearest_size() -> None:
    base = CONFIGS["shapes"]()
    config = replace(base, student=replace(base.student, blocks=97))
    near = nearest_sizes(config, (64, 64))
    assert len(near) == 3
    assert not any(config.student.grid_problems(h // 8, w // 8) for h, w in near)


def parameters(preset: str, width: str) -> int:
    """Bytes grow by exactly the parameters for each byte of a weight."""
    return memory(preset, width, 2) - memory(preset, width, 1)


@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("device", profile_ids())
def test_the_chosen_width_is_the_widest_that_fits(preset: str, device: str) -> None:
    config, profile = CONFIGS[preset](), load_profile(device)
    weight_bytes = max(WEIGHT_BYTES[t.precision] for t in profile.targets)
    budget = profile.memory_budget_bytes
    fitting = [w for w in config.student.widths if budget is None or memory(preset, w, weight_bytes) <= budget]
    if not fitting:
        with pytest.raises(Refused, match=r"no width of .* fits") as caught:
            make_plan(config, profile)
        assert caught.value.exit_code == 3
        assert all(w in str(caught.value) for w in config.student.widths)
        return
    plan = make_plan(config, profile)
    assert plan.width in fitting
    if plan.latency_ms is None:
        assert plan.width == max(fitting, key=lambda w: config.student.widths[w])
    elif plan.latency_budget_ms is not None:
        assert plan.latency_ms <= plan.latency_budget_ms
    assert budget is None or plan.memory_bytes <= budget
    for width in config.student.widths:  # a line with its figures for every candidate
        assert any(reason.startswith(f"{width} ") and "GB (estimate)" in reason for reason in plan.reasons)


@pytest.mark.parametrize("preset", CONFIGS)
def test_every_budget_between_two_widths_chooses_the_narrower(preset: str) -> None:
    config, profile = CONFIGS[preset](), load_profile("server")
    widths = sorted(config.student.widths, key=lambda w: config.student.widths[w])
    for width in widths:
        assert make_plan(config, profile.with_memory_budget(memory(preset, width, 4) + 1000)).width == width
    with pytest.raises(Refused, match=rf"no width of {config.name} fits .* {widths[0]} does not fit \(memory\)"):
        make_plan(config, profile.with_memory_budget(memory(preset, widths[0], 4) - 1000))


def test_estimate_counts_the_published_parameters() -> None:
    counts = {width: parameters("snapgenpp", width) / 1e9 for width in ("tiny", "small", "full")}
    assert 0.25 < counts["tiny"] < 0.40  # the student's 0.25-0.33 and the text encoder
    assert 0.40 < counts["small"] < 0.52
    assert 1.45 < counts["full"] < 1.75
    assert memory("snapgenpp", "small", 2) > 2 * parameters("snapgenpp", "small")  # activations are counted too


def test_iphone16pm_takes_small_with_the_published_times() -> None:
    plan = make_plan(CONFIGS["snapgenpp"](), load_profile("iphone16pm"))
    assert plan.width == "small"
    assert plan.latency_ms == pytest.approx(4 * 360 + 120)
    assert plan.latency_budget_ms == 2000
    assert plan.latent == (16, 128, 128)
    assert [(t.key, t.form) for t in plan.targets] == [
        ("coreml", "loop"),
        ("executorch:xnnpack", "loop"),
        ("onnx:cpu", "loop"),
    ]


def test_no_time_is_claimed_where_none_was_published() -> None:
    profile = load_profile("iphone16pm")
    for plan in (
        make_plan(CONFIGS["shapes"](), profile),
        make_plan(CONFIGS["snapgenpp"](), profile, resolution=(512, 512), width="small"),
        make_plan(CONFIGS["snapgenpp"](), load_profile("iphone15pro")),
    ):
        assert plan.latency_ms is None
        assert any("no latency figure" in reason for reason in plan.reasons)


def test_a_latency_budget_narrows_the_width() -> None:
    profile = load_profile("iphone16pm")
    config = CONFIGS["snapgenpp"]()
    tight = replace(profile, latency_budget=Figure(1300, "ms", "chosen", "a test"))
    assert make_plan(config, tight).width == "tiny"
    with pytest.raises(Refused, match="latency"):
        make_plan(config, replace(profile, latency_budget=Figure(100, "ms", "chosen", "a test")))
    asked = make_plan(config, tight, width="small")  # a slow width may be asked for, one that does not fit may not
    assert asked.width == "small"
    assert any("does not fit (latency" in reason for reason in asked.reasons)


def test_a_width_that_was_asked_for() -> None:
    config = CONFIGS["snapgenpp"]()
    plan = make_plan(config, load_profile("iphone16pm"), width="tiny")
    assert plan.width == "tiny"
    assert plan.reasons[0] == "width tiny was asked for"
    with pytest.raises(Refused, match=r"full does not fit .*GB \(estimate\) of 3 GB"):
        make_plan(config, load_profile("iphone16pm"), width="full")
    with pytest.raises(BadInput, match=r"no width 'medium'.* full, small, tiny"):
        make_plan(config, load_profile("iphone16pm"), width="medium")


def test_lower_precision_lowers_the_memory() -> None:
    config, profile = CONFIGS["snapgenpp"](), load_profile("iphone16pm")
    fp16 = make_plan(config, profile, targets=["coreml"], width="small")
    fp32 = make_plan(config, profile, targets=["coreml"], width="small", precision="fp32")
    assert fp16.memory_bytes is not None
    assert fp32.memory_bytes is not None
    assert fp32.memory_bytes - fp16.memory_bytes == 2 * parameters("snapgenpp", "small")
    assert fp32.targets[0].precision == "fp32"
    with pytest.raises(BadInput, match="executorch:xnnpack has no precision 'palette4': it offers fp32"):
        make_plan(config, profile, precision="palette4")


def test_targets_that_were_asked_for() -> None:
    config = CONFIGS["shapes"]()
    plan = make_plan(config, load_profile("server"), targets=["onnx", "executorch", "coreml"])
    assert [t.key for t in plan.targets] == ["onnx:cpu", "executorch:xnnpack", "coreml"]
    assert dict(plan.targets[0].options)["folders"] == "diffusers"  # the profile's own settings are kept
    assert plan.targets[2].layout == "channels"
    for wrong, said in (("corml", "did you mean coreml"), ("onnx:rocm", "no variant 'rocm': expected one of cpu")):
        with pytest.raises(BadInput, match=said):
            make_plan(config, load_profile("server"), targets=[wrong])


def test_plans_say_which_system_each_target_needs() -> None:
    config, profile = CONFIGS["shapes"](), load_profile("iphone16pm")
    both = make_plan(config, profile, targets=["coreml", "coreai"])
    assert [(t.key, t.system, t.precision, t.layout) for t in both.targets] == [
        ("coreml", "iOS 18", "fp16", "channels"),
        ("coreai", "iOS 27", "fp16", "channels"),
    ]
    shown = StringIO()
    render_plan(both, Console(file=shown, width=200))
    assert "iOS 18 or later" in shown.getvalue()
    assert "iOS 27 or later" in shown.getvalue()
    assert [t["system"] for t in plan_as_dict(both)["targets"]] == ["iOS 18", "iOS 27"]


@pytest.mark.parametrize("size", [(100, 128), (128, 100), (8, 8), (1000, 1000), (1, 4000)])
def test_an_inadmissible_size_names_admissible_ones(size: tuple[int, int]) -> None:
    config = CONFIGS["shapes"]()
    with pytest.raises(BadInput, match=f"resolution {size[0]}x{size[1]} does not fit") as caught:
        make_plan(config, load_profile("server"), resolution=size)
    near = str(caught.value).rsplit(" are ", 1)[1].split(", ")
    assert near
    for text in near:
        height, width = map(int, text.split("x"))
        assert make_plan(config, load_profile("server"), resolution=(height, width)).resolution == (height, width)


def text_of(plan: ExportPlan) -> str:
    stream = StringIO()
    render_plan(plan, Console(file=stream, width=100))
    return stream.getvalue()


def test_what_a_device_offers_is_exported_when_asked_for_and_told_otherwise() -> None:
    config, phone = PRESETS["shapes"](), load_profile("iphone16pm")
    plan = make_plan(config, phone)
    assert "executorch:coreml" not in {t.key for t in plan.targets}
    assert plan.offers == ("coreai", "executorch:coreml")
    asked = make_plan(config, phone, targets=["executorch:coreml"], precision="palette4")
    (target,) = asked.targets
    assert (target.layout, target.precision, dict(target.options)) == ("channels", "palette4", {"deployment": "iOS18"})
    assert (asked.offers, target.exact) == (("coreai",), False)
    bare = make_plan(config, phone, targets=["executorch"])
    assert [t.key for t in bare.targets] == ["executorch:xnnpack"]
    (other,) = make_plan(config, load_profile("server"), targets=["executorch:vulkan"]).targets
    assert (other.precision, other.layout, other.exact) == ("fp16", "token", True)
    with pytest.raises(BadInput, match="expected one of xnnpack, coreml, vulkan"):
        make_plan(config, phone, targets=["executorch:metal"])
    with pytest.raises(BadInput, match=r"executorch:vulkan has no precision 'int8-dynamic'.*executorch:xnnpack"):
        make_plan(config, phone, targets=["executorch:vulkan"], precision="int8-dynamic")


def test_plan_as_table_and_as_data() -> None:
    plan = make_plan(CONFIGS["shapes"](), load_profile("iphone16pm"))
    shown = text_of(plan)
    assert all(
        part in shown for part in ("iPhone 16 Pro Max", "full", "128x128", "coreml", "executorch:xnnpack", *plan.reasons)
    )
    data = json.loads(json.dumps(plan_as_dict(plan), allow_nan=False))
    assert data["width"] == "full"
    assert data["targets"][0]["options"] == {"deployment": "iOS18"}


APP = typer.Typer()
APP.command()(devices)


def test_devices_lists_all_and_shows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    listed = CliRunner().invoke(APP, [])
    assert listed.exit_code == 0
    assert all(device in listed.output for device in profile_ids())
    shown = CliRunner().invoke(APP, ["iphone16pm"])
    assert shown.exit_code == 0
    assert "Apple A18 Pro" in shown.output
    assert "2601.08303" in shown.output


def test_devices_as_json() -> None:
    result = CliRunner().invoke(APP, ["--json"])
    found = json.loads(result.stdout)["devices"]
    assert [d["id"] for d in found] == list(profile_ids())
    assert all(f["source"] for d in found for f in d["figures"].values())


def test_an_unknown_device_is_bad_input() -> None:
    assert isinstance(CliRunner().invoke(APP, ["iphone16pn"]).exception, BadInput)


def test_devices_starts_without_torch() -> None:
    code = "import sys; from snapgen_deploy.cli.devices import devices; devices(None, True); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


FOUR = ((1024, 1024), (512, 512), (768, 768), (832, 1216))


def test_the_sizes_of_the_issue_are_admissible_for_the_published_network() -> None:
    plan = make_plan(CONFIGS["snapgenpp"](), load_profile("iphone16pm"), resolution=FOUR[0], other_resolutions=FOUR[1:])
    assert plan.sizes == ("1024x1024", "512x512", "768x768", "832x1216")
    assert plan.latency_ms == pytest.approx(4 * 360 + 120), "of the default size"
    assert [plan.at(s).latent for s in plan.sizes] == [(16, 128, 128), (16, 64, 64), (16, 96, 96), (16, 104, 152)]
    assert {s: {t.form for t in plan.at(s).targets} for s in plan.sizes} == {
        "1024x1024": {"loop"}, "512x512": {"batched"}, "768x768": {"loop"}, "832x1216": {"loop"},
    }  # fmt: skip
    assert plan.at("1024x1024") == replace(plan, other_sizes=())
    assert plan.at("512x512") == replace(
        make_plan(CONFIGS["snapgenpp"](), load_profile("iphone16pm"), width="small", resolution=(512, 512)),
        reasons=plan.reasons, memory_bytes=plan.memory_bytes, latency_ms=plan.latency_ms,
    )  # fmt: skip


def test_the_largest_size_decides_on_memory() -> None:
    config, profile = CONFIGS["snapgenpp"](), load_profile("server")
    alone = make_plan(config, profile, width="tiny", resolution=(512, 512))
    both = make_plan(config, profile, width="tiny", resolution=(512, 512), other_resolutions=[(832, 1216)])
    assert both.memory_bytes == make_plan(config, profile, width="tiny", resolution=(832, 1216)).memory_bytes
    assert both.memory_bytes > alone.memory_bytes
    assert any("(estimate) at 832x1216" in reason for reason in both.reasons)
    budget = profile.with_memory_budget((alone.memory_bytes + both.memory_bytes) // 2)
    assert make_plan(config, budget, width="tiny", resolution=(512, 512)).width == "tiny"
    with pytest.raises(Refused, match="memory"):
        make_plan(config, budget, width="tiny", resolution=(512, 512), other_resolutions=[(832, 1216)])


def test_a_size_twice_and_an_inadmissible_other_size_are_bad_input() -> None:
    config, profile = CONFIGS["snapgenpp"](), load_profile("iphone16pm")
    with pytest.raises(BadInput, match="512x512 was given twice"):
        make_plan(config, profile, resolution=(512, 512), other_resolutions=[(1024, 1024), (512, 512)])
    old = replace(profile, targets=tuple(replace(t, options=(("deployment", "iOS17"),)) for t in profile.targets[:1]))
    assert make_plan(config, old, resolution=(512, 512)).sizes == ("512x512",)
    with pytest.raises(BadInput, match="need iOS 18"):
        make_plan(config, old, resolution=(512, 512), other_resolutions=[(1024, 1024)])
    with pytest.raises(BadInput, match="830x1216 does not fit .*832x1216"):
        make_plan(config, profile, resolution=(1024, 1024), other_resolutions=[(830, 1216)])


def test_other_sizes_are_shown() -> None:
    plan = make_plan(CONFIGS["shapes"](), load_profile("iphone16pm"), other_resolutions=[(64, 64)])
    console = Console(file=StringIO(), width=200)
    render_plan(plan, console)
    assert isinstance(console.file, StringIO)
    assert "also 64x64 pixels" in console.file.getvalue()
    assert plan_as_dict(plan)["other_sizes"][0]["resolution"] == (64, 64)


PROFILE = """
id = "mine"
name = "My phone"
kind = "phone"
soc = "Chip"
source = "its box"
[os]
name = "Android"
minimum = "14"
[figures]
[[targets]]
target = "onnx"
precision = "fp32"
layout = "token"
[targets.limits]
"""


def own_profile(folder: Path, limit: str) -> Profile:
    path = folder / "mine.toml"
    path.write_text(PROFILE + limit)
    return load_profile(str(path))


def test_limits_of_a_target_replace_those_of_its_precision(tmp_path: Path) -> None:
    profile = own_profile(tmp_path, "mean_psnr = 55")
    own = make_plan(CONFIGS["shapes"](), profile, width="tiny").targets[0].limits
    assert (own.mean_psnr, own.ssim) == (55, PRECISIONS["fp32"].limits.ssim)
    other = make_plan(CONFIGS["shapes"](), profile, width="tiny", precision="int4").targets[0].limits
    assert other == PRECISIONS["int4"].limits
    with pytest.raises(BadInput, match=r"targets\[0\].limits.mean_pnsr: got an unknown key, expected 'mean_psnr'"):
        own_profile(tmp_path, "mean_pnsr = 55")
    with pytest.raises(BadInput, match=r"targets\[0\].limits.ssim: got -1, expected a positive number"):
        own_profile(tmp_path, "ssim = -1")


def low_end(precision: str) -> Profile:
    """A phone with A53 cores whose profile exports .pte files at a precision."""
    phone = load_profile("galaxy-a15")
    pte = replace(phone.targets[0], precision=precision, limits=(("error", 0.5),))
    isa = Isa(("cortex-a76", "cortex-a53"), "its box")
    return replace(phone, name="Low end", isa=isa, targets=(pte, replace(phone.targets[1], precision="fp32")))


def test_a_precision_without_arithmetic_on_a_core_is_changed_with_the_reason() -> None:
    plan = make_plan(CONFIGS["shapes"](), low_end("fp16"))
    assert [(t.key, t.precision, t.own_limits) for t in plan.targets] == [
        ("executorch:xnnpack", "fp32", ()),
        ("onnx:cpu", "fp32", ()),
    ]
    (line,) = (r for r in plan.reasons if "arithmetic" in r)
    assert line == (
        "executorch:xnnpack at fp32, not fp16: Cortex-A53 of Low end has no fp16 arithmetic, "
        "and the runtime refuses such files there"
    )


def test_a_precision_without_arithmetic_on_a_core_is_refused_if_asked_for() -> None:
    config, phone = CONFIGS["shapes"](), low_end("fp32")
    assert not any("arithmetic" in r for r in make_plan(config, phone).reasons)
    with pytest.raises(Refused, match="Cortex-A53 of Low end has no fp16 arithmetic, .*; choose --precision fp32"):
        make_plan(config, phone, targets=["executorch"], precision="fp16")
    assert make_plan(config, phone, targets=["onnx"], precision="fp16").targets[0].precision == "fp16"
    able = replace(phone, isa=Isa(("cortex-a76", "cortex-a55"), "its box"))
    assert make_plan(config, able, targets=["executorch"], precision="fp16").targets[0].precision == "fp16"


@pytest.mark.parametrize(
    ("preset", "size", "near"), [("shapes-unet", (70, 64), "64x64, 80x64"), ("shapes", (100, 64), "96x64")]
)
def test_sizes_that_do_fit_are_named(preset: str, size: tuple[int, int], near: str) -> None:
    """The U-Net's rule is settled nearby, a DiT's blocks may need a longer search."""
    with pytest.raises(BadInput, match=f"resolution {size_name(size)} does not fit .* the nearest that do are {near}"):
        latent_of(PRESETS[preset](), size)
