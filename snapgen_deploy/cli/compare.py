"""`snapgen-deploy compare`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapgen_deploy.cli.console import (
    cell,
    check_places,
    err,
    new_table,
    out,
    plain,
    print_json,
    progress,
    save_text,
    say,
    tell,
)
from snapgen_deploy.cli.options import AsJson, Verbose
from snapgen_deploy.errors import BadInput

if TYPE_CHECKING:
    from snapgen_deploy.latency.compare.compare import Comparison
    from snapgen_deploy.latency.compare.guards import Guard
    from snapgen_deploy.latency.compare.self_check import SelfCheck
    from snapgen_deploy.latency.compare.verdict import Judged

INCONCLUSIVE = ("pass", "warn", "fail")
MAX_ROUNDS, MAX_SECONDS = 30, 170.0
COLOURS = {
    "ok": "green", "same": "green", "improved": "cyan", "changed": "yellow", "inconclusive": "yellow", "regressed": "red",
    "failed": "red", "faster": "cyan", "slower": "yellow", "alike": "green",
}  # fmt: skip


def compare(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BASE CANDIDATE", help="Two bundles (BASE may be a manifest.json). With --baseline, CANDIDATE alone."
        ),
    ],
    *,
    target: Annotated[str | None, typer.Option(help="NAME or NAME:VARIANT. Default: the first that runs here.")] = None,
    fail_on: Annotated[
        list[str] | None, typer.Option(help="METRIC:PERCENT%, repeatable. Default: e2e_p50:5%.", show_default=False)
    ] = None,
    warn_on: Annotated[list[str] | None, typer.Option(help="METRIC:PERCENT%, repeatable. Reported, never fails.")] = None,
    inconclusive: Annotated[
        str, typer.Option(help="What an inconclusive answer does: pass, warn or fail (exit code 3).")
    ] = "fail",
    guards_only: Annotated[
        bool, typer.Option("--guards-only", help="Compare what the bundles are made of; measure no times.")
    ] = False,
    across: Annotated[
        bool,
        typer.Option(
            "--across",
            help="The bundles may differ in width, picture size and steps: which is faster, and by how much? Times only; "
            "nothing fails without --fail-on.",
        ),
    ] = False,
    clock_only: Annotated[bool, typer.Option("--clock-only", help="Compare times only; skip the guards.")] = False,
    baseline: Annotated[Path | None, typer.Option(help="Folder of stored runs to compare CANDIDATE with.")] = None,
    missing_baseline: Annotated[
        str, typer.Option(help="If fewer than three runs are stored: fail (exit code 3) or warn.")
    ] = "fail",
    update_baseline: Annotated[bool, typer.Option("--update-baseline", help="Add this run to the baseline.")] = False,
    order: Annotated[
        str, typer.Option(help="interleaved (one process), abba (fresh processes) or auto (what runtime and memory allow).")
    ] = "auto",
    max_rounds: Annotated[
        int, typer.Option(min=10, help="Maximum number of rounds while the answer is not clear.")
    ] = MAX_ROUNDS,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Start no round that would end later. The first round shows how long one takes.")
    ] = MAX_SECONDS,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads. One thread varies least.")] = 1,
    junit: Annotated[Path | None, typer.Option(help="File for JUnit XML.")] = None,
    summary: Annotated[
        Path | None,
        typer.Option(help="File to append Markdown to.", envvar="GITHUB_STEP_SUMMARY"),
    ] = None,
    annotations: Annotated[
        bool, typer.Option("--annotations", help="Print GitHub annotations; on standard error with --json.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the comparison as JSON, for `report`.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Is CANDIDATE slower than BASE? Deterministic guards first, then interleaved rounds.

    Exit codes: 0 ok or improved; 1 regressed, or a guard changed that the device profile names; 3 inconclusive, or not
    comparable.
    """
    from snapgen_deploy.latency.compare.baseline import FEWEST_RUNS, store_baseline
    from snapgen_deploy.latency.compare.run import Wanted, compare_paths, compare_stored, measure_run
    from snapgen_deploy.latency.compare.verdict import parse_threshold

    for name, got, choices in (
        ("--inconclusive", inconclusive, INCONCLUSIVE),
        ("--missing-baseline", missing_baseline, ("fail", "warn")),
        ("--order", order, ("auto", "interleaved", "abba")),
    ):
        if got not in choices:
            raise BadInput(f"{name}: got '{got}', expected one of {', '.join(choices)}")
    reports = {"--junit": junit, "--output": output}
    thresholds = [parse_threshold(t) for t in fail_on or (() if warn_on or across else ("e2e_p50:5%",))]
    thresholds += [parse_threshold(t, warn=True) for t in warn_on or ()]
    for option, belongs, wrong in (
        ("--guards-only", "BASE CANDIDATE, not to --baseline", guards_only and baseline is not None),
        ("--missing-baseline", "--baseline DIR", missing_baseline != "fail" and baseline is None),
        ("--target", "the clock, which --guards-only leaves out", guards_only and target is not None),
        ("--across", "BASE CANDIDATE with a clock", across and (guards_only or baseline is not None)),
        ("--clock-only", "BASE CANDIDATE with a clock", clock_only and (guards_only or baseline is not None)),
        ("--order", "BASE CANDIDATE, not to --baseline", order != "auto" and baseline is not None),
        ("--max-rounds", "BASE CANDIDATE, not to --baseline", max_rounds != MAX_ROUNDS and baseline is not None),
        ("--max-seconds", "BASE CANDIDATE, not to --baseline", max_seconds != MAX_SECONDS and baseline is not None),
        *((o, "a comparison, which --update-baseline does not make", update_baseline and v) for o, v in reports.items()),
    ):
        if wrong:
            raise BadInput(f"{option} belongs to {belongs}; leave it out")
    check_places({**reports, "--summary": summary})
    shown = progress(quiet=as_json)
    if baseline is not None:
        if len(bundles) != 1:
            raise BadInput(f"got {len(bundles)} bundles and --baseline, expected CANDIDATE alone")
        measured = measure_run(bundles[0], target, threads, shown)
        if update_baseline:
            place, count = store_baseline(baseline, measured)
            tell(f"stored: {place}, run {count}" + (f"; {FEWEST_RUNS} are needed" if count < FEWEST_RUNS else ""))
            if as_json:
                print_json({"baseline": str(baseline), "stored": True, "verdict": None})
            return
        found = compare_stored(bundles[0], measured, baseline, thresholds, missing_baseline)
    else:
        if len(bundles) != 2 or update_baseline:
            raise BadInput(f"got {len(bundles)} bundles, expected BASE and CANDIDATE; or CANDIDATE with --baseline DIR")
        wanted = Wanted(
            thresholds,
            target,
            guards=not (clock_only or across),
            clock=not guards_only,
            order=order,
            max_rounds=max_rounds,
            max_seconds=max_seconds,
            threads=threads,
            across=across,
        )
        found = compare_paths(bundles[0], bundles[1], wanted, shown)
    from snapgen_deploy.latency.compare.compare import stamped

    record = stamped(found).as_dict()
    _write_reports(record, junit, summary, output)
    if as_json:
        print_json(record)
    else:
        print_comparison(found)
    if annotations:
        from snapgen_deploy.latency.formats.reporters import annotations as lines

        (sys.stderr if as_json else sys.stdout).write(lines(record))
    tolerant = found.across or (not found.metrics and missing_baseline == "warn") or all(t.warn for t in thresholds)
    raise typer.Exit(exit_code(found.verdict, "warn" if tolerant else inconclusive))


def exit_code(verdict: str, inconclusive: str) -> int:
    """1 for regressed or failed, 3 for an inconclusive answer that is to fail, else 0.

    >>> exit_code("regressed", "fail"), exit_code("inconclusive", "fail"), exit_code("inconclusive", "pass")
    (1, 3, 0)
    """
    if verdict == "inconclusive":
        if inconclusive == "warn":
            err().print("warning: the comparison is inconclusive", style="yellow")
        return 3 if inconclusive == "fail" else 0
    return 1 if verdict in ("regressed", "failed") else 0


def _write_reports(record: dict[str, Any], junit: Path | None, summary: Path | None, output: Path | None) -> None:
    import json

    from snapgen_deploy.latency.formats.reporters import junit_xml, step_summary

    if junit is not None:
        save_text(junit, junit_xml(record), "--junit")
    if output is not None:
        save_text(output, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
    if summary is not None:
        try:
            with summary.open("a", encoding="utf-8") as file:  # the file is shared with other steps
                file.write(step_summary(record) + os.linesep)
        except OSError as error:
            raise BadInput(f"cannot write {summary} ({error.strerror}); choose another place with --summary") from None


def print_comparison(found: Comparison) -> None:
    """Print the guards that changed, the self-check, one row per metric, and the verdict."""
    if found.guards:
        _print_guards(found.guards)
    if found.self_check is not None:
        _print_self_check(found.self_check)
    if found.metrics:
        table = new_table(title=f"{cell(found.key.backend)}, {found.mode}, {found.rounds} rounds")
        for column in ("metric", "base ms", "candidate ms", "change (interval)", "limit", "detectable", "verdict"):
            table.add_column(column, justify="left" if column in ("metric", "verdict") else "right")
        for m in found.metrics:
            table.add_row(*_metric_row(m))
        out().print(table)
    for note in found.notes:
        say(plain(note))
    out().print(f"verdict: [{COLOURS[found.verdict]}]{found.verdict}[/]")


def _metric_row(m: Judged) -> tuple[str, ...]:
    change = f"{_percent(m.change)} ({_percent(m.low)} … {_percent(m.high)})"
    limit = "—" if m.limit is None else f"{100 * m.limit:g} %" + (" (warn)" if m.warn else "")
    return (
        cell(m.name), f"{m.base_ms:.2f}", f"{m.candidate_ms:.2f}", change, limit, f"{100 * m.detectable:.1f} %",
        f"[{COLOURS[m.verdict]}]{m.verdict}[/]",
    )  # fmt: skip


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def _print_guards(guards: Sequence[Guard]) -> None:
    from rich.text import Text

    changed = [g for g in guards if g.verdict != "same"]
    out().print(f"{len(guards)} deterministic guards, {len(changed)} changed")
    for g in changed:
        line = Text.assemble("  ", (g.verdict, COLOURS[g.verdict]), f" {plain(g.component)} {plain(g.name)}: {plain(g.detail)}")
        out().print(line, soft_wrap=True)


def _print_self_check(check: SelfCheck) -> None:
    words = "passed" if check.passed else f"[red]failed[/]: {cell(check.reason)}"
    interval = f"{_percent(check.low)} … {_percent(check.high)}"
    out().print(
        f"base against itself in these rounds: {interval}; with the most rounds {100 * check.detectable:.1f} % "
        f"can be told; {words}",
        soft_wrap=True,
    )
