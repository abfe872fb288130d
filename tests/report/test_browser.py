"""The page in a real browser: nothing wider than a phone's screen, no request, no broken picture, readable text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from snapgen_deploy.report import collect, render
from snapgen_deploy.system.files import sha256_of
from tests.browser import NAMES, WORST_CONTRAST, Browser, find_browser
from tests.report.report_cases import guard, make_bundle, make_comparison, make_measurement, metric

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"no browser on PATH (looked for {', '.join(NAMES)})")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    opened = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a page can hold, long and hostile names among it."""
    root = tmp_path_factory.mktemp("page")
    long = "m" * 140 + '<img src="https://example.org/x.png" onerror="window.hacked=1">'
    bundles = [
        make_bundle(root / "shapes-iphone16pm"),
        make_bundle(root / "shapes-iphone16pm-tiny", "tiny", idle=("coreml",)),
        make_bundle(root / ("long-" + "n" * 90), "small", psnr=21.3, changes={"name": long, "reasons": [long]}),
    ]
    measured = [
        make_measurement("shapes-iphone16pm", sha256_of(bundles[0] / "SHA256SUMS"), environment={"estimate_ms": "43"}),
        make_measurement("shapes-iphone16pm", "other", backend="executorch:xnnpack", soc=long, base=55),
    ]
    compared = [
        make_comparison(),
        make_comparison(created=None, metrics=[metric(change=0.06, verdict="regressed")], verdict="regressed"),
        make_comparison(guards=[guard("ops", "failed", long)], metrics=[], verdict="failed", notes=[long]),
    ]
    files: dict[str, list[Path]] = {"m": [], "c": []}
    for kind, records in (("m", [m.as_dict() for m in measured]), ("c", compared)):
        for i, record in enumerate(records):
            files[kind].append(root / f"{kind}{i}.json")
            files[kind][-1].write_text(json.dumps(record), encoding="utf-8")
    path = root / "report.html"
    path.write_text(render(collect(bundles, files["m"], files["c"])), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "height"), [(320, 640), (390, 844), (768, 1024), (1280, 900)])
def test_nothing_is_wider_than_the_window_and_nothing_is_loaded(browser: Browser, page: Path, width: int, height: int) -> None:
    browser.open(page, width, height)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert [u for u in browser.requests if not u.startswith("data:")] == [page.as_uri()]
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length"
    assert browser.evaluate("document.images.length") > 10
    assert browser.evaluate(broken) == 0
    assert browser.evaluate("window.hacked === undefined") is True


@pytest.mark.parametrize("width", [320, 390])
def test_the_limits_of_gates_are_on_a_phone_s_screen(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, 844)
    cut = "[...document.querySelectorAll('#gates .scroll')].filter(s => s.scrollWidth > s.clientWidth).length"
    assert browser.evaluate("document.querySelectorAll('#gates .scroll').length") == 3
    assert browser.evaluate(cut) == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_text_of_charts_is_legible(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, 844)
    heights = browser.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
    assert min(heights) >= 10
    overlap = """[...document.querySelectorAll('svg')].filter(s => { const a = s.parentElement.getBoundingClientRect();
      return [...s.querySelectorAll('text')].some(t => { const b = t.getBoundingClientRect();
        return b.left < a.left || b.right > a.right; }); }).length"""
    assert browser.evaluate(overlap) == 0


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_of_every_text(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, 1280, 900, dark=dark)
    ratio, text = browser.evaluate(WORST_CONTRAST)
    assert ratio >= 4.5, text


def test_light_and_dark_are_two_looks(browser: Browser, page: Path) -> None:
    corners = []
    for dark in (False, True):
        browser.open(page, 390, 844, dark=dark)
        shot = Image.open(io.BytesIO(browser.screenshot())).convert("L")
        assert shot.width == 780
        corners.append(shot.getpixel((2, 2)))
    assert corners[0] > 200
    assert corners[1] < 60


def test_tables_scroll_in_their_own_box_and_take_the_focus(browser: Browser, page: Path) -> None:
    browser.open(page, 390, 844)
    outside = (
        "[...document.querySelectorAll('table')].filter(t => !t.closest('.scroll[tabindex][role=region][aria-label]')).length"
    )
    assert browser.evaluate(outside) == 0
    wide = "[...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth).length"
    assert browser.evaluate(wide) > 0
