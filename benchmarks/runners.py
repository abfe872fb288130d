"""`python -m benchmarks.runners`: what draws with a bundle (Python, page, Android): conformance, pictures, time, memory.

Exports the embedded checkpoint for the web and draws the same pictures with each runner and with `generate`, one thread each.
The Android core runs on this machine's JVM and its components in onnxruntime behind a pipe, so it has no time of its own.
Writes runners.json and runners.md into benchmarks/results. Needs Chromium, Java and npm as you have configured it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

import snapgen_deploy
from benchmarks.web import ERROR, STATUS, differing, draw_in_page, served
from snapgen_deploy.apps.site import TARGET
from snapgen_deploy.bundle.draw import WantedPicture, draw
from snapgen_deploy.bundle.reader import Bundle, open_bundle
from snapgen_deploy.latency.environment import environment
from tests.apps.kotlin_jvm import Probe, colours, compiled_core, in_onnxruntime
from tests.browser import find_browser

RESULTS = Path(__file__).parent / "results" / "runners"
PROGRAM = Path(sys.executable).with_name("snapgen-deploy")
PROMPTS = ("a red ring on a gray background", "a blue square left of a green ring", "a white ring", "a small red square")
ROUNDS = 3
ALONE = """
import resource, sys, snapgen_deploy
opened = snapgen_deploy.open_bundle(sys.argv[1], threads=1)
for seed, prompt in enumerate(sys.argv[2:]):
    opened.draw(prompt, seed)
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
Drawing = Callable[[str, int], tuple[np.ndarray, float]]  # prompt, seed -> picture (H, W, 3), milliseconds


@dataclass(frozen=True)
class Runner:
    """A row of the table."""

    name: str
    passed: int  # lines of conformance.json
    lines: int
    least_db: float  # beside what `generate` draws
    values_off: int
    most_off: int
    least_ms: float | None  # None: it has no time of its own
    bytes: int
    left: str  # what was not run


def main() -> None:
    """Export, draw, compare, write."""
    program = find_browser()
    if program is None:
        raise SystemExit("no Chromium on PATH")
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([PROGRAM, "export", "--device", "web", "-o", out], check=True)
        (folder,) = Path(out).iterdir()
        bundle = open_bundle(folder)
        generated = {(p, seed): draw(bundle, TARGET, [WantedPicture(p, seed)], 1)[0] for seed, p in enumerate(PROMPTS)}
        runners = [of_python(folder, generated), of_page(bundle, program, generated), of_core(bundle, generated)]
        size = next(iter(generated.values())).size
    record = {"bundle": bundle.name, "values": size, "environment": environment(), "runners": [asdict(r) for r in runners]}
    RESULTS.with_suffix(".json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(bundle.name, size, runners), encoding="utf-8")
    print(table(bundle.name, size, runners))


def of_python(folder: Path, generated: dict[tuple[str, int], np.ndarray]) -> Runner:
    """`open_bundle` in this process, and once in a process of its own for its memory."""
    opened = snapgen_deploy.open_bundle(folder, threads=1)

    def drawn(prompt: str, seed: int) -> tuple[np.ndarray, float]:
        picture = opened.draw(prompt, seed)
        return picture.pixels, 1000 * picture.seconds

    lines = opened.conformance()
    told = subprocess.run([sys.executable, "-c", ALONE, folder, *PROMPTS], check=True, capture_output=True, text=True)
    passed = sum(line.passed for line in lines)
    return runner("Python", (passed, len(lines)), drawn, generated, lambda: int(told.stdout), "", timed=True)


def of_page(bundle: Bundle, program: str, generated: dict[tuple[str, int], np.ndarray]) -> Runner:
    """The page in Chromium, with WebAssembly."""
    left, kinds = "WebGPU of a graphics processor, Firefox, Safari, a phone", ("li.passed", "li")
    with served(bundle, program) as (browser, site):
        address = f"{site}?threads=1&runtime=wasm"
        browser.open(f"{address}&conformance", 1280, 900)
        browser.until(f"{STATUS}.startsWith('The self-test') || {ERROR}", 600)
        passed, lines = (int(browser.evaluate(f"document.querySelectorAll('#lines {kind}').length")) for kind in kinds)
        browser.open(address, 1280, 900)
        browser.until(f"{STATUS}.startsWith('Ready') || {ERROR}", 600)
        drawn = partial(draw_in_page, browser)
        return runner("page, Chromium", (passed, lines), drawn, generated, browser.private_bytes, left, timed=True)


def of_core(bundle: Bundle, generated: dict[tuple[str, int], np.ndarray]) -> Runner:
    """The core of the Android app on the JVM; onnxruntime runs components for it here."""
    run = in_onnxruntime(bundle.path, bundle.manifest["targets"][TARGET]["components"])
    probe, given = Probe(compiled_core()), {"bundle": str(bundle.path), "target": TARGET}
    try:
        lines = [one for one in probe.ask("conformance", run, runs=True, **given) if "line" in one]

        def drawn(prompt: str, seed: int) -> tuple[np.ndarray, float]:
            said = probe.ask("draw", run, thrifty=False, requests=[{"prompt": prompt, "seed": str(seed)}], **given)
            (pixels,) = [one["pixels"] for one in said if "picture" in one]
            return colours(pixels, *bundle.resolution).astype(np.uint8), 0.0

        passed = sum(line["passed"] is True for line in lines)
        left = "Gradle, the Android side, both runtimes for Android, a phone"
        return runner("Android's core, JVM", (passed, len(lines)), drawn, generated, probe.resident_bytes, left, timed=False)
    finally:
        probe.close()


def runner(
    name: str,
    conformance: tuple[int, int],
    drawn: Drawing,
    generated: dict[tuple[str, int], np.ndarray],
    memory: Callable[[], int],
    left: str,
    *,
    timed: bool,
) -> Runner:
    """Draw all pictures, hold them to those of `generate`, and keep the least time."""
    found, times = [], []
    for _ in range(ROUNDS if timed else 1):
        for (prompt, seed), expected in generated.items():
            picture, took = drawn(prompt, seed)
            found.append(differing(picture, expected))
            times.append(took)
    off = (max(one["values"] for one in found), max(one["most"] for one in found))
    return Runner(name, *conformance, min(one["db"] for one in found), *off, min(times) if timed else None, memory(), left)


def table(name: str, values: int, runners: Sequence[Runner]) -> str:
    """The rows as Markdown."""
    head = (
        f"`python -m benchmarks.runners`; {name} at full width, fp32, one thread, {len(PROMPTS)} prompts, {values} values "
        "each.\n\n"
        "| runner | lines of conformance.json passed | beside `generate`, least | ms a picture, least | memory | not run |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
    )
    ios = "| iOS's package | not run | | | | all of it: parsed, and held to the others' constants and names |\n"
    return head + "".join(map(row, runners)) + ios


def row(r: Runner) -> str:
    """A runner's cells."""
    beside = "equal" if not r.values_off else f"{r.least_db:.1f} dB; {r.values_off} values off, by up to {r.most_off}"
    time = "components run behind a pipe" if r.least_ms is None else f"{r.least_ms:.0f}"
    memory = f"{r.bytes / 1e6:.0f} MB" + (" without the model" if r.least_ms is None else "")
    return f"| {r.name} | {r.passed} of {r.lines} | {beside} | {time} | {memory} | {r.left or 'nothing'} |\n"


if __name__ == "__main__":
    main()
