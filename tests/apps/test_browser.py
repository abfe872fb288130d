"""The web app in a real browser: it draws what `generate` draws, refuses what was changed, and works without a connection."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snapgen_deploy.apps.serving import address_of, serving
from snapgen_deploy.apps.site import Site
from snapgen_deploy.bundle.draw import WantedPicture, draw
from snapgen_deploy.bundle.reader import open_bundle
from tests.browser import NAMES, WORST_CONTRAST, Browser, find_browser

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"no browser on PATH (looked for {', '.join(NAMES)})")
STATUS, ERROR = "document.getElementById('status').textContent", "document.getElementById('error').textContent"
KEPT = """caches.keys().then(names => Promise.all(names.map(name => caches.open(name).then(c => c.keys()))))
  .then(found => found.flat().map(request => request.url))"""
MOST_GROWTH = 12_000_000  # bytes, of ten pictures of 64 x 64 pixels


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    opened = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@contextmanager
def at(site: Site) -> Iterator[str]:
    """The address of a server, which ends with the block."""
    with serving(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield address_of(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    with at(site) as found:
        yield found


def opened(browser: Browser, address: str, width: int = 1280, *, dark: bool = False) -> str:
    """Open the page; what it says once it is ready."""
    browser.open(address, width, 844, dark=dark)
    browser.until(f"{STATUS}.startsWith('Ready') || {ERROR}")
    assert browser.evaluate(ERROR) == ""
    said: str = browser.evaluate(STATUS)
    return said


def drawn(browser: Browser, prompt: str, seed: int) -> np.ndarray:
    """What the page shows after its form was filled in and sent: (H, W, 3), uint8."""
    browser.evaluate(f"document.getElementById('prompt').value = {json.dumps(prompt)}")
    browser.evaluate(f"document.getElementById('seed').value = '{seed}'")
    browser.evaluate("document.getElementById('draw').click()")
    browser.until(f"{STATUS}.startsWith('Done') || {ERROR}")
    assert browser.evaluate(ERROR) == ""
    shown = browser.evaluate("""(() => { const c = document.getElementById('picture');
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      return [c.width, c.height, btoa(String.fromCharCode(...d))]; })()""")
    pixels = np.frombuffer(base64.b64decode(shown[2]), np.uint8).reshape(shown[1], shown[0], 4)
    return pixels[..., :3]


def decibels(got: np.ndarray, expected: np.ndarray) -> float:
    error = float(np.mean((got.astype(np.float64) - expected) ** 2))
    return 200.0 if error == 0 else 10 * np.log10(255**2 / error)


def test_it_draws_what_generate_draws(browser: Browser, address: str, bundle: Path) -> None:
    said = opened(browser, address)
    assert "WebAssembly" in said
    assert browser.evaluate("crossOriginIsolated") is True
    for prompt, seed in (("a red ring", 7), ("A blue ring on gray ", 2**63 - 1)):
        (expected,) = draw(open_bundle(bundle), "onnx:web", [WantedPicture(prompt, seed)], 1)
        assert decibels(drawn(browser, prompt, seed), expected) >= 80
    assert browser.complaints == []  # no violation of its policy among them
    assert [one for one in browser.requests if not one.startswith(address)] == []  # nothing goes elsewhere
    record = [json.loads(line) for line in browser.evaluate("localStorage.getItem('snapgen record')").splitlines()]
    assert [(one["seed"], one["steps"], one["ok"]) for one in record] == [("7", 4, True), (str(2**63 - 1), 4, True)]
    assert all("prompt" not in one and len(one["ms"]["steps"]) == 4 for one in record)


def test_what_generate_refuses_is_refused(browser: Browser, address: str) -> None:
    opened(browser, address)
    for prompt, said in (("a red zebra", "does not know “zebra”"), ("ring " * 20, "has 22 tokens, at most 16 fit")):
        browser.evaluate(f"document.getElementById('prompt').value = {json.dumps(prompt)}")
        browser.evaluate("document.getElementById('draw').click()")
        browser.until(f"{ERROR}.includes({json.dumps(said)})")
        assert browser.evaluate("document.getElementById('figure').hidden") is True
    assert drawn(browser, "a red ring", 1).shape == (64, 64, 3)


def test_the_self_test_passes_in_the_page(browser: Browser, address: str) -> None:
    browser.open(f"{address}?conformance", 1280, 844)
    browser.until(f"{STATUS}.startsWith('The self-test') || {ERROR}")
    assert browser.evaluate(STATUS) == "The self-test passed."
    assert browser.evaluate("document.querySelectorAll('#lines li.passed').length") >= 18


def test_a_picture_is_cancelled_midway(browser: Browser, address: str) -> None:
    opened(browser, address)
    browser.evaluate(f"""new MutationObserver((_, observer) => {{
      if (!{STATUS}.includes('step 2 of 50')) return;
      observer.disconnect();
      document.getElementById('cancel').click();
    }}).observe(document.getElementById('status'), {{childList: true}})""")
    browser.evaluate("document.getElementById('steps').value = 50; document.getElementById('draw').click()")
    browser.until(f"{STATUS}.startsWith('Cancelled.')")
    assert browser.evaluate("document.getElementById('figure').hidden") is True
    browser.evaluate("document.getElementById('steps').value = 4")
    assert drawn(browser, "a red ring", 1).shape == (64, 64, 3)


def test_ten_pictures_take_no_more_memory_than_two(address: str, tmp_path: Path) -> None:
    assert PROGRAM is not None
    fresh = Browser(PROGRAM, tmp_path)  # pages of other tests lived in the other one's process
    try:
        opened(fresh, address)
        for seed in range(2):
            drawn(fresh, "a red ring", seed)
        before = fresh.private_bytes()
        for seed in range(10):
            drawn(fresh, "a red ring", seed)
        assert fresh.private_bytes() - before < MOST_GROWTH
    finally:
        fresh.close()


@pytest.mark.parametrize("name", ["bundle/onnx-web/student.onnx", "bundle/manifest.json", "lib/ort-wasm-simd-threaded.wasm"])
def test_a_changed_file_is_refused(browser: Browser, site: Site, name: str) -> None:
    content = site.files[name]
    changed = bytearray(content if isinstance(content, bytes) else content.read_bytes())
    changed[len(changed) // 2] ^= 1
    with at(Site({**site.files, name: bytes(changed)})) as address:
        browser.open(address, 1280, 844)
        browser.until(ERROR)
        assert f"{name} is not the exported file" in browser.evaluate(ERROR)
        assert browser.evaluate("document.getElementById('draw').disabled") is True
        assert f"{address}{name}" not in browser.evaluate(KEPT)


def test_webgpu_that_does_not_work_is_told_and_webassembly_draws(browser: Browser, address: str, bundle: Path) -> None:
    fake = "Object.defineProperty(navigator, 'gpu', {value: {requestAdapter: async () => ({features: new Set()})}})"
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=fake)["identifier"]
    try:
        assert "WebAssembly" in opened(browser, address)
        assert "WebGPU does not run this model here" in browser.evaluate("document.getElementById('facts').textContent")
        (expected,) = draw(open_bundle(bundle), "onnx:web", [WantedPicture("a red ring", 3)], 1)
        assert decibels(drawn(browser, "a red ring", 3), expected) >= 80
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


@pytest.mark.slow  # a minute: kernels are compiled, and run, by a graphics processor in software
def test_webgpu_passes_the_self_test(address: str, tmp_path: Path) -> None:
    assert PROGRAM is not None
    other = Browser(PROGRAM, tmp_path, software_gpu=True)
    try:
        other.open(f"{address}?conformance", 1280, 844)
        if not other.evaluate("navigator.gpu.requestAdapter().then(adapter => adapter !== null)"):
            pytest.skip("this browser has no WebGPU without a graphics processor")
        other.until(f"{STATUS}.startsWith('The self-test') || {ERROR}")
        assert other.evaluate(STATUS) == "The self-test passed."
        assert "Runs onWebGPU" in other.evaluate("document.getElementById('facts').textContent")
        assert other.complaints == []
    finally:
        other.close()


def test_it_works_without_a_connection_after_the_first_load(browser: Browser, site: Site) -> None:
    with at(site) as address:
        opened(browser, address)
    opened(browser, address)  # the server is gone
    assert browser.evaluate("crossOriginIsolated") is True
    assert drawn(browser, "a red ring", 1).shape == (64, 64, 3)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_s_screen_and_the_keyboard(browser: Browser, address: str, dark: bool) -> None:
    opened(browser, address, 390, dark=dark)
    drawn(browser, "a red ring", 1)
    browser.evaluate("document.getElementById('more').open = true")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    ratio, text = browser.evaluate(WORST_CONTRAST)
    assert ratio >= 4.5, text
    small = (
        "[...document.querySelectorAll('button, input, textarea, summary')].filter(e => e.offsetParent && e.offsetHeight < 44)"
    )
    assert browser.evaluate(f"{small}.map(e => e.id || e.tagName)") == []
    nameless = "[...document.querySelectorAll('input, textarea')].filter(e => e.labels.length !== 1).map(e => e.id)"
    assert browser.evaluate(nameless) == []
    assert browser.evaluate("document.getElementById('picture').getAttribute('aria-label')") == "Picture of: a red ring"
    browser.evaluate("document.getElementById('prompt').focus()")
    reached = []
    for _ in range(6):
        browser.press("Tab")
        reached.append(browser.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[:4] == ["seed", "steps", "draw", "save"]
    assert "SUMMARY" in reached
    browser.evaluate("document.getElementById('seed').value = 2; document.getElementById('draw').focus()")
    browser.press("Enter")
    browser.until("document.getElementById('caption').textContent.includes('seed 2')")
    shot = Image.open(io.BytesIO(browser.screenshot()))
    assert shot.width == 780
