"""`python -m benchmarks.guard`: does `compare` raise false alarms, does it find a real 5 %, and do the usual rules?

A/A: a bundle against itself. Slower: against a copy whose pictures take 5 % longer (`benchmarks/heavier.py`). Every trial is a
whole `compare --fail-on e2e_p50:3%`. Two usual rules run too, on one fresh process of each side, measured one after the other:
a median more than 5 % above a stored one, and Mann-Whitney U on the iterations (p < 0.05 and slower). Writes guard.json after
every trial, and guard.md at the end, to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import mannwhitneyu

from benchmarks.heavier import heavier_bundle
from snapgen_deploy.bundle.reader import Bundle, open_bundle
from snapgen_deploy.cli.console import progress
from snapgen_deploy.latency.compare.compare import compare_bundles
from snapgen_deploy.latency.compare.duel import in_fresh_process
from snapgen_deploy.latency.compare.verdict import parse_threshold
from snapgen_deploy.latency.environment import environment
from snapgen_deploy.latency.measure.session import open_session
from snapgen_deploy.latency.results import QUERY

RESULTS = Path(__file__).parent / "results"
TARGET, LIMIT, SLOWER, ITERATIONS = "onnx:cpu", "e2e_p50:3%", 0.05, 20
RULES = ("compare", "stored median + 5 %", "Mann-Whitney on iterations")


def main() -> None:
    """Run the trials that the command line asks for; continues an interrupted run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle with the target onnx:cpu")
    parser.add_argument("--same", type=int, default=40, help="A/A trials")
    parser.add_argument("--slower", type=int, default=20, help="trials against the heavier copy")
    options = parser.parse_args()
    base = open_bundle(options.bundle)
    RESULTS.mkdir(exist_ok=True)
    trials = before()
    stored = alone(base)
    run(base, "same", options.same, trials, stored)
    with tempfile.TemporaryDirectory(dir=options.bundle.parent) as folder:
        heavy, share = heavier_bundle(base, SLOWER, Path(folder) / options.bundle.name)
        print(f"the heavier bundle takes {100 * share:.1f} % longer", flush=True)
        run(heavy, "slower", options.slower, trials, stored, base=base, share=share)
    (RESULTS / "guard.md").write_text(table(trials))


def before() -> list[dict[str, Any]]:
    """The trials of an interrupted run; none of a finished one."""
    path = RESULTS / "guard.json"
    finished = (RESULTS / "guard.md").exists()
    return [] if finished or not path.exists() else list(json.loads(path.read_text())["trials"])


def run(
    candidate: Bundle, kind: str, count: int, trials: list[dict[str, Any]], stored: Sequence[float],
    base: Bundle | None = None, share: float = 0.0,
) -> None:  # fmt: skip
    """Run trials of one kind until there are `count`; the file is written after each."""
    for _ in range(count - sum(t["kind"] == kind for t in trials)):
        trials.append({"kind": kind, "slower_by": round(share, 4), **trial(base or candidate, candidate, stored)})
        print(json.dumps(trials[-1]), flush=True)
        record = {"environment": environment(), "limit": LIMIT, "trials": trials}
        (RESULTS / "guard.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def trial(base: Bundle, candidate: Bundle, stored: Sequence[float]) -> dict[str, Any]:
    """Apply all three rules once; returns the verdict of each, and the seconds of `compare`."""
    start = time.monotonic()
    found = compare_bundles(base, candidate, TARGET, [parse_threshold(LIMIT)], (), progress(quiet=True))
    seconds = time.monotonic() - start
    before, after = alone(base), alone(candidate)
    median_rule = statistics.median(after) > 1.05 * statistics.median(stored)
    slower = statistics.median(after) > statistics.median(before)
    rank_rule = slower and mannwhitneyu(before, after).pvalue < 0.05
    metric = found.metrics[0] if found.metrics else None
    return {
        "seconds": round(seconds, 1),
        "rounds": found.rounds,
        "change": None if metric is None else round(metric.change, 4),
        "reason": "" if found.self_check is None else found.self_check.reason,
        RULES[0]: found.verdict,
        RULES[1]: "regressed" if median_rule else "ok",
        RULES[2]: "regressed" if rank_rule else "ok",
    }


def alone(bundle: Bundle) -> list[float]:
    """Times of `ITERATIONS` pictures in a fresh process, ms."""
    return in_fresh_process("alone", _alone, bundle.path)


def _alone(path: Path) -> list[float]:
    session = open_session(open_bundle(path), TARGET, 1)
    session.query()
    return [session.query()[QUERY][0] for _ in range(ITERATIONS)]


def table(trials: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each rule, the number of trials by verdict."""
    share = statistics.fmean(t["slower_by"] for t in trials if t["kind"] == "slower")
    kinds = {"same": "the same bundle", "slower": f"{100 * share:.1f} % slower"}
    lines = ["| rule | trials | regressed | inconclusive | ok | improved |", "|---|---|---|---|---|---|"]
    for kind, words in kinds.items():
        own = [t for t in trials if t["kind"] == kind]
        for rule in RULES:
            counts = [sum(t[rule] == verdict for t in own) for verdict in ("regressed", "inconclusive", "ok", "improved")]
            lines.append(f"| {rule} | {words}, {len(own)} | " + " | ".join(map(str, counts)) + " |")
    times = [t["seconds"] for t in trials]
    lines += ["", f"`compare --fail-on {LIMIT}` took {statistics.median(times):.0f} s (median), {max(times):.0f} s at most."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
