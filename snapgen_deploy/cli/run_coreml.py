"""`snapgen-deploy run-coreml`: run any saved Core ML package on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapgen_deploy.cli.console import check_places, print_json, tell
from snapgen_deploy.cli.options import AsJson
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.files import read_arrays, write_bytes, write_text

if TYPE_CHECKING:
    import numpy as np

    from snapgen_deploy.export.mil import OpStat, PackageRunner, RunReport, Trace


_SHOWN = 5  # number of operations that are printed


class _Mode(StrEnum):
    """How real numbers are stored between operations."""

    fp32 = "fp32"
    device = "device"


def run_coreml(
    package: Annotated[Path, typer.Argument(help="A saved .mlpackage (ML Program).")],
    *,
    inputs: Annotated[
        Path, typer.Option("--inputs", help=".npz of named arrays. An image input is uint8, height x width x 3.")
    ],
    outputs: Annotated[Path, typer.Option("--outputs", help=".npz file for the named results.")],
    mode: Annotated[
        _Mode,
        typer.Option(
            "--mode", help="fp32: exact, to check the graph. device: fp16 storage after every fp16 operation, as a phone does."
        ),
    ] = _Mode.fp32,
    function: Annotated[str | None, typer.Option("--function", help="Function to run, in a package of several.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="JSON file for statistics per operation. Needs --mode device.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help=".npz file for states between calls: read if it exists, then written.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=1024, help="CPU threads.")] = 1,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Tracebacks of errors, and what libraries print.")] = False,
) -> None:
    """Run a saved Core ML package on the CPU, from its files, and write its results.

    Exit code 1 if NaN or infinity begins in an operation, if a result holds one, or (--mode device) if a whole result of an
    operation becomes 0 in half precision.
    """
    if report is not None and mode is not _Mode.device:
        raise BadInput("--report needs --mode device: fp32 mode rounds nothing, so it has nothing to report")
    check_places({"--outputs": outputs, "--report": report, "--state": state})
    arrays = read_arrays(inputs, str(inputs))
    before = read_arrays(state, f"--state {state}") if state is not None and state.exists() else None
    from snapgen_deploy.export.mil import open_package

    runner = open_package(package, mode=mode.value, function=function, threads=threads)
    if state is not None and not runner.states:
        raise BadInput(f"--state: function {runner.function} of {package} has no states; leave it out")
    states = runner.make_state() if before is None else runner.state_of(before)
    trace = runner.trace()
    try:
        results = runner(arrays, states)
    finally:  # an earlier operation's warning may explain why a later one failed
        for warning in runner.warnings():
            tell(f"warning: {warning}", "yellow")
    _write(outputs, results, "--outputs")
    if state is not None:
        _write(state, states.arrays(), "--state")
    statistics = runner.report() if mode is _Mode.device else None
    if report is not None and statistics is not None:
        _write_report(report, statistics)
    unfinished = _not_finite(results)
    if as_json:
        summary = _summary(runner, results) | {"not_finite": _where(trace, unfinished)}
        print_json(summary | ({} if statistics is None else {"device": _verdict(statistics)}))
    else:
        _print(runner, results)
        _print_trace(trace, unfinished)
        if statistics is not None:
            _print_report(statistics)
    if trace.beginnings or unfinished or (statistics is not None and not statistics.clean):
        raise typer.Exit(1)


def _write(path: Path, arrays: dict[str, np.ndarray], option: str) -> None:
    import io

    import numpy as np

    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    write_bytes(path, data.getvalue(), f"choose another place with {option}")


def _summary(runner: PackageRunner, results: dict[str, np.ndarray]) -> dict[str, Any]:
    shapes = {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in results.items()}
    return {
        "package": str(runner.package),
        "function": runner.function,
        "operations": runner.ops,
        "outputs": shapes,
        "warnings": list(runner.warnings()),
    }


def _not_finite(results: dict[str, np.ndarray]) -> list[str]:
    """Names of the results that hold NaN or infinity."""
    import numpy as np

    real = {name: array["probability"] if array.dtype.names else array for name, array in results.items()}
    return [name for name, array in real.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]


def _where(trace: Trace, outputs: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "nan_operations": trace.holding("NaN"),
        "infinity_operations": trace.holding("infinity"),
        "begins": [asdict(b) for b in trace.beginnings],
        "outputs": outputs,
    }


def _verdict(report: RunReport) -> dict[str, Any]:
    return {
        "overflowed": report.overflowed,
        "nan": report.has_nan,
        "vanished": report.emptied,
        "clean": report.clean,
        "tightest": [_entry(s) for s in report.tightest(_SHOWN)],
    }


def _entry(stat: OpStat) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(stat) | {"tightness": stat.tightness, "underflow": stat.underflow}


def _print(runner: PackageRunner, results: dict[str, np.ndarray]) -> None:
    count = sum(runner.ops.values())
    typer.echo(f"{runner.package}: function {runner.function}, {count} operations of {len(runner.ops)} types")
    for port in runner.outputs:
        typer.echo(f"  {port.name}: {_shown(port.kind, results[port.name])}")


def _shown(kind: str, array: np.ndarray) -> str:
    if kind == "label":
        return str(array)
    if kind == "classes":
        best = sorted(array, key=lambda record: -record["probability"])[:_SHOWN]
        first = ", ".join(f"{record['class']} {record['probability']:.4f}" for record in best)
        return f"{first} ({len(array)} classes)"
    span = f", {float(array.min()):.6g} ... {float(array.max()):.6g}" if array.size else ""
    return f"{array.dtype} {list(array.shape)}{span}"


def _print_trace(trace: Trace, outputs: list[str]) -> None:
    counts = [f"{what} in {n} operations" for what in ("NaN", "infinity") if (n := trace.holding(what))]
    if counts and (trace.beginnings or outputs):
        typer.echo(f"not finite: {', '.join(counts)}; {', '.join(outputs) or 'none'} of the results")
    for beginning in trace.beginnings[:_SHOWN]:
        typer.echo(f"  {beginning}")
    if len(trace.beginnings) > _SHOWN:
        typer.echo(f"  and in {len(trace.beginnings) - _SHOWN} further operations")


def _print_report(report: RunReport) -> None:
    count = len(report.ops)
    affected = {
        "overflow": [s for s in report.ops if s.overflow],
        "NaN": [s for s in report.ops if s.nan],
        "vanished to 0": [s for s in report.ops if s.emptied],
    }
    found = {what: stats for what, stats in affected.items() if stats}
    verdict = ", ".join(f"{what} in {len(stats)} of {count} operations" for what, stats in found.items())
    shown = list(dict.fromkeys(s for stats in found.values() for s in stats))[:_SHOWN]
    typer.echo(
        f"half precision: {verdict or f'no overflow, no NaN in {count} operations'}; {'first' if found else 'the tightest'}:"
    )
    for stat in shown or report.tightest(_SHOWN):
        typer.echo(f"  {stat}")


def _write_report(path: Path, report: RunReport) -> None:
    import json

    data = _verdict(report) | {"mode": report.mode, "runs": report.runs, "ops": [_entry(s) for s in report.ops]}
    write_text(path, json.dumps(data, indent=1, sort_keys=True) + "\n", "choose another place with --report")
