"""What the page says, that it always says the same, that it escapes, and how bad input ends."""

from __future__ import annotations

import json
import locale
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from snapgen_deploy.errors import BadInput
from snapgen_deploy.report import collect, render
from snapgen_deploy.report.collect import drawn_in_a_call
from snapgen_deploy.report.page import fastest
from snapgen_deploy.report.pictures import preview_rows
from snapgen_deploy.system.files import sha256_of
from tests.another import in_another_process
from tests.report.report_cases import PROMPTS, gate, guard, make_bundle, make_comparison, make_measurement, metric

EVIL = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\" ' & \ud800"
VOID = {"meta", "img", "br", "line", "circle", "path"}


class Reader(HTMLParser):
    """Tags in their order, attributes, text; fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + " "


def said(page: str) -> str:
    return " ".join(Reader(page).text.split())


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_a_bundle_that_passed(tmp_path: Path) -> None:
    page = render(collect([make_bundle(tmp_path / "shapes-iphone16pm")]))
    text = said(page)
    for expected in ("All 13 gates passed", "iPhone 16 Pro Max", "4 steps", "67.3 dB", "≥ 40 dB", "not measured"):
        assert expected in text
    images = [a for tag, a in Reader(page).tags if tag == "img"]
    assert len(images) == len(PROMPTS) * 4
    assert {a["alt"] for a in images} >= {f"{PROMPTS[0]}, drawn by reference", f"{PROMPTS[1]}, drawn by the files for coreml"}
    assert "Bundles compared" not in text


def test_what_was_not_run_is_never_green(tmp_path: Path) -> None:
    view = collect([make_bundle(tmp_path / "b", idle=("coreml", "executorch:xnnpack", "onnx:cpu"))])
    assert view.verdict == "incomplete"
    page = render(view)
    assert 'class="pill good"' not in page
    assert "Of 12 gates 12 not run" in said(page)
    assert "this host has no runtime for it" in said(page)
    empty = collect([make_bundle(tmp_path / "empty", changes={"gates": []})])
    assert empty.verdict == "incomplete"
    assert 'class="pill good"' not in render(empty)


def test_failed_gates_and_changed_files_are_told_first(tmp_path: Path) -> None:
    failed = make_bundle(tmp_path / "bad", psnr=21.3)
    assert "Of 13 gates 1 failed, 12 passed" in said(render(collect([failed])))
    (failed / "tokenizer.json").write_text("{}")
    view = collect([failed])
    assert view.verdict == "failed"
    assert "not listed tokenizer.json" in said(render(view))
    (failed / "SHA256SUMS").unlink()
    assert "has no SHA256SUMS" in collect([failed]).bundles[0].damage


def test_several_bundles_are_compared(tmp_path: Path) -> None:
    paths = [make_bundle(tmp_path / width, width) for width in ("full", "small", "tiny")]
    m = make_measurement("tiny", sha256_of(paths[2] / "SHA256SUMS"), width="tiny", base=17)
    view = collect(paths, [write(tmp_path / "m.json", m.as_dict())])
    page = render(view)
    text = said(page)
    assert "Bundles compared" in text
    assert f"{m.summary()['p50']:.4g} ms on Example CPU 8-core" in text
    assert f"{PROMPTS[0]}, drawn by the reference at width tiny of tiny" in page
    counts = [t.components[1].parameters for b in view.bundles for t in b.targets[:1]]
    assert counts == sorted(counts, key=lambda n: -(n or 0))
    assert None not in counts


def test_a_comparison_has_scores_and_parameters(tmp_path: Path) -> None:
    score = {"share": 0.926, "reference": 0.931}
    fidelity = {"coreml": {"pictures": 100, "score": score}, "onnx:cpu": {"pictures": 100, "score": None}}
    scored = make_bundle(tmp_path / "full", changes={"fidelity": fidelity})
    view = collect([scored, make_bundle(tmp_path / "tiny", "tiny")])
    assert [t.score for t in view.bundles[0].targets] == [0.926 if t.key == "coreml" else None for t in view.bundles[0].targets]
    assert {t.score for t in view.bundles[1].targets} == {None}
    text = said(render(view))
    assert "92.6 %" in text
    assert f"{(view.bundles[0].targets[0].parameters or 0) / 1e6:.3g}M parameters" in text


def test_two_bundles_of_one_name_are_told_apart(tmp_path: Path) -> None:
    view = collect([make_bundle(tmp_path / "a" / "same"), make_bundle(tmp_path / "b" / "same")])
    assert [b.label for b in view.bundles] == ["same (1)", "same (2)"]


def test_placement_counts_operators_not_delegates(tmp_path: Path) -> None:
    targets = {t.key: t for t in collect([make_bundle(tmp_path / "b")]).bundles[0].targets}
    assert targets["executorch:xnnpack"].components[0].placement == (("XnnpackBackend", 104), ("portable kernels", 1))
    assert targets["onnx:cpu"].components[0].placement == (("CPUExecutionProvider", 90),)
    assert targets["coreml"].components[0].placement == ()


def test_measurements_find_their_bundle(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "shapes-iphone16pm")
    sha = sha256_of(bundle / "SHA256SUMS")
    records = [
        make_measurement(sha256=sha, environment={"estimate_ms": "44", "estimate_low_ms": "36", "estimate_high_ms": "51"}),
        make_measurement(sha256="of another export", backend="executorch:xnnpack"),
        make_measurement("elsewhere", "unknown"),
    ]
    files = [write(tmp_path / f"{i}.json", m.as_dict()) for i, m in enumerate(records)]
    view = collect([bundle], files)
    assert [(v.owner, v.stale) for v in view.measured] == [(bundle.name, False), (bundle.name, True), ("", False)]
    text = said(render(view))
    assert "Measured on another export of this name" in text
    assert "Measured on a bundle that is not in this report" in text
    assert "11 discarded" not in text
    assert "12 rounds, 1 discarded (the canary moved by 35 %)" in text
    (row,) = [e for e in view.estimates if e.estimate is not None]
    assert row.error == pytest.approx(44 / records[0].summary()["p50"] - 1)
    assert "36 … 51" in text


def test_loras_and_warnings(tmp_path: Path) -> None:
    lora = {"name": "style.safetensors", "sha256": "ab12" * 16, "scale": 0.8}
    checkpoint = {"sha256": "628e4443801abe0d" * 4, "license": "Apache-2.0", "loras": [lora]}
    changes = {"warnings": ["64x64: the checkpoint was not trained at this picture size"], "checkpoint": checkpoint}
    text = said(render(collect([make_bundle(tmp_path / "b", changes=changes)])))
    assert "Warning: 64x64: the checkpoint was not trained at this picture size" in text
    assert ", LoRA style.safetensors, 0.8 (ab12ab12ab12)," in text


def test_an_estimate_in_the_manifest(tmp_path: Path) -> None:
    estimates = [{"target": "coreml", "ms": 1480.0, "low_ms": 1300.0, "high_ms": 1700.0, "basis": "published figures"}]
    view = collect([make_bundle(tmp_path / "b", changes={"estimates": estimates})])
    assert next((e.target, e.estimate, e.measured) for e in view.estimates) == ("coreml", 1480.0, None)
    assert "published figures" in said(render(view))


def test_comparisons_in_the_order_of_time(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    records = [
        make_comparison(
            created="2026-03-09T10:00:00+00:00", metrics=[metric(change=0.06, verdict="regressed")], verdict="regressed"
        ),
        make_comparison(created="2026-03-02T12:00:00"),
        make_comparison(created=None, guards=[guard("ops", "failed", "Reshape 13 -> 15")], metrics=[], verdict="failed"),
    ]
    files = [write(tmp_path / f"c{i}.json", r) for i, r in enumerate(records)]
    view = collect([bundle], (), files)
    assert [c.verdict for c in view.comparisons] == ["failed", "ok", "regressed"]
    page = render(view)
    assert "Last comparison, 2026-03-09" in said(page)
    assert "Reshape 13 -> 15" in said(page)
    assert page.count('class="chart"') == 1  # two comparisons have e2e_p50, one alone has student_p50
    assert re.findall(r"<title>(2026[^<]*)", page) == ["2026-03-02: +0.4 %, ok", "2026-03-09: +6.0 %, regressed"]


def rendered_in_asia(bundles: list[Path], measured: Path, compared: Path) -> str:
    os.environ.update(TZ="Asia/Tokyo", LC_ALL="C")
    time.tzset()
    locale.setlocale(locale.LC_ALL, "")
    return render(collect(bundles, [measured], [compared]))


def test_the_same_input_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    bundle, other = make_bundle(tmp_path / "b"), make_bundle(tmp_path / "b2", psnr=21.3)
    measured = write(tmp_path / "m.json", make_measurement().as_dict())
    compared = write(tmp_path / "c.json", make_comparison(guards=[guard("ops", "failed", "Reshape 13 -> 15")]))
    there = in_another_process(rendered_in_asia, [bundle, other], measured, compared, printed=tmp_path / "printed")
    assert render(collect([bundle, other], [measured], [compared])) == there


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    names = {"name": EVIL, "width": EVIL, "generator": EVIL, "reasons": [EVIL], "prompts": [EVIL, EVIL]}
    device = {"id": EVIL, "name": EVIL, "memory_budget": None}
    gates = [gate("coreml", EVIL, EVIL, None, 1.0, "not_run", EVIL), gate(EVIL, "x", "psnr", 3.0, 4.0, "failed", EVIL)]
    changes = {**names, "device": device, "gates": gates, "checkpoint": {"sha256": EVIL, "license": EVIL}}
    bundle = tmp_path / "b"
    make_bundle(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8")) | changes
    manifest["targets"]["coreml"]["components"][EVIL] = manifest["targets"]["coreml"]["components"].pop("decoder") | {
        "ops": {EVIL: 3}, "lint": {EVIL: 2}, "notes": [EVIL], "placement": {EVIL: 3}, "weight_dtypes": {EVIL: 1},
    }  # fmt: skip
    write(bundle / "manifest.json", manifest)
    measured = make_measurement(EVIL, EVIL, width=EVIL, soc=EVIL, backend=EVIL).as_dict() | {"notes": [EVIL], "mode": EVIL}
    compared = make_comparison(
        base={"bundle": EVIL, "sha256": EVIL}, target=EVIL, metrics=[metric(EVIL, verdict=EVIL)] * 2, notes=[EVIL], mode=EVIL,
        guards=[guard(EVIL, "changed", EVIL)], verdict=EVIL, commit=EVIL, created=EVIL,
    )  # fmt: skip
    page = render(collect([bundle, bundle], [write(tmp_path / "m.json", measured)], [write(tmp_path / "c.json", compared)]))
    page.encode("utf-8")
    tags = Reader(page).tags
    assert "script" not in {tag for tag, _ in tags}
    assert not [a for _, attrs in tags for a in attrs if a.startswith("on")]
    assert {(a["src"] or "")[:11] for tag, a in tags if tag == "img"} == {"data:image/"}


def test_the_page_refers_to_nothing_outside(tmp_path: Path) -> None:
    page = render(collect([make_bundle(tmp_path / "b")]))
    for attribute in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert attribute.startswith(("data:image/png;base64,", "#"))
    assert "url(" not in page
    assert "@import" not in page
    anchors = set(re.findall(r'href="#([^"]*)"', page))
    assert anchors <= set(re.findall(r'id="([^"]*)"', page))


def test_tables_have_headers_and_the_page_a_language(tmp_path: Path) -> None:
    page = render(collect([make_bundle(tmp_path / "b")], [write(tmp_path / "m.json", make_measurement().as_dict())]))
    tags = Reader(page).tags
    assert [a["lang"] for tag, a in tags if tag == "html"] == ["en"]
    assert all("scope" in a for tag, a in tags if tag == "th")
    assert all(a.get("role") == "img" and a.get("aria-label") for tag, a in tags if tag == "svg")
    assert len([1 for tag, _ in tags if tag == "h1"]) == 1


def test_no_picture_from_outside_of_the_bundle_is_embedded(tmp_path: Path) -> None:
    secret, preview = tmp_path / "secret.png", tmp_path / "bundle" / "preview.png"
    Image.new("RGB", (8, 8)).save(secret)
    preview.parent.mkdir()
    preview.symlink_to(secret)
    with pytest.raises(BadInput, match="is a link that leaves the bundle"):
        preview_rows(preview, ["a"], ["reference"], (8, 8))


def test_a_preview_laid_out_otherwise_is_shown_whole(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", changes={"prompts": ["one"]})
    view = collect([bundle]).bundles[0]
    assert view.rows == ()
    assert view.sheet is not None
    assert "Preview of b" in render(collect([bundle]))
    (bundle / "preview.png").unlink()
    assert "holds no pictures" in render(collect([bundle]))


def test_a_configuration_of_another_family_has_no_bits(tmp_path: Path) -> None:
    view = collect([make_bundle(tmp_path / "b", changes={"width": "unheard-of"})])
    assert view.bundles[0].targets[0].bits is None
    render(view)


@pytest.mark.parametrize(
    ("device", "measured_on", "shown"),
    [("iphone16pm", "host", False), ("iphone16pm", "", False), ("iphone16pm", "iphone", True), ("server", "host", True)],
)
def test_a_phone_s_header_shows_no_time_of_a_host(tmp_path: Path, device: str, measured_on: str, shown: bool) -> None:
    bundle = make_bundle(tmp_path / "shapes", changes={"device": {"id": device, "name": "A device"}})
    environment = {"measured_on": measured_on} if measured_on else {}
    record = make_measurement("shapes", sha256_of(bundle / "SHA256SUMS"), soc="Example SoC", environment=environment)
    (tmp_path / "m.json").write_text(json.dumps(record.as_dict()))
    report = collect([bundle], [tmp_path / "m.json"], [])
    assert bool(fastest(report)) == shown
    header = render(report).partition("<main>")[0]
    assert ("Example SoC" in header) == shown
    assert ("a host was" in header) != shown


def test_guidance_and_batches_are_said() -> None:
    assert drawn_in_a_call({}) == ""
    assert drawn_in_a_call({"guidance": {"scale": 3.0}, "batch": 4}) == ", guidance 3, 4 pictures a call"
