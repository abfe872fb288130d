"""`python -m benchmarks.web BUNDLE`: the web app in Chromium beside native onnxruntime: time, memory, difference of pictures.

BUNDLE is one of `export --device web`. Both take one thread, and pictures in turn, so that a busy machine slows both. Times are
those of the page's own record. Writes web-<precision>.json and web-<precision>.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import snapgen_deploy
from snapgen_deploy.apps.serving import address_of, serving
from snapgen_deploy.apps.site import TARGET, site_of
from snapgen_deploy.bundle.reader import Bundle, open_bundle
from snapgen_deploy.bundle.vectors import read_vectors
from snapgen_deploy.drawing.pipeline import to_bytes
from snapgen_deploy.latency.environment import environment
from tests.browser import Browser, find_browser

RESULTS = Path(__file__).parent / "results"
STATUS, ERROR = "document.getElementById('status').textContent", "document.getElementById('error').textContent"
PIXELS = """(() => { const c = document.getElementById('picture');
  const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  let text = ''; for (const byte of data) text += String.fromCharCode(byte);
  return [c.height, c.width, btoa(text)]; })()"""


def main() -> None:
    """Draw in turn, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runtime", default="wasm", help="wasm, or auto for WebGPU where there is one")
    options = parser.parse_args()
    bundle, program = open_bundle(options.bundle), find_browser()
    if program is None:
        raise SystemExit("no Chromium on PATH")
    record = measured(options.bundle, program, options.rounds, options.runtime)
    record |= {"bundle": bundle.name, "precision": bundle.precision(TARGET), "environment": environment()}
    place = RESULTS / f"web-{record['precision']}"
    place.with_suffix(".json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    place.with_suffix(".md").write_text(table(record), encoding="utf-8")
    print(table(record))


def measured(folder: Path, program: str, rounds: int, runtime: str) -> dict[str, Any]:
    """Times of both, and how their pictures differ."""
    bundle, native = open_bundle(folder), snapgen_deploy.open_bundle(folder, threads=1)
    vectors = read_vectors(bundle)
    reference = [to_bytes(picture[None]) for picture in vectors.arrays["picture"]]
    ours, theirs, against, native_error, page_error = [], [], [], [], []
    with served(bundle, program) as (browser, address):
        browser.open(f"{address}?threads=1&runtime={runtime}", 1280, 900)
        browser.until(f"{STATUS}.startsWith('Ready') || {ERROR}", 600)
        said = browser.evaluate(STATUS)
        draw_in_page(browser, vectors.prompts[0], 0)
        native.draw(vectors.prompts[0], 0)
        before = browser.private_bytes()
        for i in range(rounds):
            row = i % len(vectors.prompts)
            prompt, seed = vectors.prompts[row], vectors.seeds[row]
            picture = native.draw(prompt, seed)
            shown, took = draw_in_page(browser, prompt, seed)
            ours.append(1000 * picture.seconds)
            theirs.append(took)
            against.append(differing(shown, picture.pixels))
            native_error.append(decibels(picture.pixels, reference[row]))
            page_error.append(decibels(shown, reference[row]))
        after = browser.private_bytes()
    return {
        "page": said,
        "native_ms": {"least": min(ours), "median": statistics.median(ours)},
        "page_ms": {"least": min(theirs), "median": statistics.median(theirs)},
        "rounds": rounds,
        "page_bytes": after,
        "page_growth": after - before,
        "least_db": min(one["db"] for one in against),
        "values_off": max(one["values"] for one in against),
        "most_off": max(one["most"] for one in against),
        "values": int(reference[0].size),
        "native_to_reference_db": min(native_error),
        "page_to_reference_db": min(page_error),
    }


@contextmanager
def served(bundle: Bundle, program: str) -> Iterator[tuple[Browser, str]]:
    """A browser without pages, and the address at which the bundle's site is served meanwhile."""
    with tempfile.TemporaryDirectory() as profile, serving(site_of(bundle), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        browser = Browser(program, Path(profile))
        try:
            yield browser, address_of(server)
        finally:
            browser.close()
            server.shutdown()
            thread.join()


def draw_in_page(browser: Browser, prompt: str, seed: int) -> tuple[np.ndarray, float]:
    """A picture (H, W, 3), uint8, and its milliseconds as the page records them."""
    browser.evaluate(f"document.getElementById('prompt').value = {json.dumps(prompt)}")
    browser.evaluate(f"document.getElementById('seed').value = '{seed}'; document.getElementById('draw').click()")
    browser.until(f"{STATUS}.startsWith('Done') || {ERROR}", 600)
    last = json.loads(browser.evaluate("localStorage.getItem('snapgen record').split('\\n').at(-1)"))
    height, width, data = browser.evaluate(PIXELS)
    pixels = np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[..., :3]
    return pixels, float(last["ms"]["all"])


def differing(got: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """PSNR of two pictures, how many values differ, and by how much at most."""
    off = np.abs(got.astype(int) - expected)
    return {"db": decibels(got, expected), "values": int(np.count_nonzero(off)), "most": int(off.max())}


def decibels(got: np.ndarray, expected: np.ndarray) -> float:
    """PSNR of two pictures of bytes; 200 where they are equal."""
    error = float(np.mean((got.astype(np.float64) - expected) ** 2))
    return 200.0 if error == 0 else float(10 * np.log10(255**2 / error))


def told(times: dict[str, float]) -> str:
    """The least counts on a machine that others use, too."""
    return f"{times['least']:.0f} ms at least, {times['median']:.0f} median"


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    rows = (
        ("one picture, native onnxruntime", told(record["native_ms"])),
        ("one picture, in the page", told(record["page_ms"])),
        ("ratio of the least", f"{record['page_ms']['least'] / record['native_ms']['least']:.2f}"),
        ("page beside native", f"{record['least_db']:.1f} dB at least"),
        ("values that differ", f"{record['values_off']} of {record['values']} at most, by up to {record['most_off']}"),
        ("native beside the fp32 reference", f"{record['native_to_reference_db']:.1f} dB at least"),
        ("page beside the fp32 reference", f"{record['page_to_reference_db']:.1f} dB at least"),
        ("memory of the page's process", f"{record['page_bytes'] / 1e6:.0f} MB"),
        (f"its growth over {record['rounds']} pictures", f"{record['page_growth'] / 1e6:.1f} MB"),
    )
    head = f"{record['bundle']}, {record['precision']}, one thread. {record['page']}\n\n| | |\n| --- | --- |\n"
    return head + "".join(f"| {name} | {value} |\n" for name, value in rows)


if __name__ == "__main__":
    main()
