"""`snapgen-deploy run-coreml`: run any saved Core ML package on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapgen_deploy.cli.console import check_places, print_json
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.files import read_arrays, write_bytes, write_text

if TYPE_CHECKING:
    import numpy as np

    from snapgen_deploy.export.mil import OpStat, Report, Runner


class Mode(StrEnum):
    """How real numbers are stored between operations."""

    fp32 = "fp32"
    device = "device"


def run_coreml(
    package: Annotated[Path, typer.Argument(help="A saved .mlpackage (ML Program).")],
    inputs: Annotated[Path, typer.Option("--inputs", help="Named arrays (.npz); an image input is uint8 height x width x 3.")],
    outputs: Annotated[Path, typer.Option("--outputs", help="Where to write the named results (.npz).")],
    mode: Annotated[
        Mode, typer.Option("--mode", help="fp32: is the graph right? device: fp16 storage after every fp16 operation.")
    ] = Mode.fp32,
    function: Annotated[str | None, typer.Option("--function", help="Function of a multifunction package.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write statistics per operation (JSON; with --mode device).")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=1024, help="CPU threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Tracebacks of errors.")] = False,
) -> None:
    """Run a saved Core ML package on the CPU, from its files, and write its results."""
    if report is not None and mode is not Mode.device:
        raise BadInput("--report needs --mode device: fp32 mode rounds nothing, so it has nothing to report")
    check_places({"--outputs": outputs, "--report": report})
    arrays = read_arrays(inputs, str(inputs))
    from snapgen_deploy.export.mil import open_package

    runner = open_package(package, mode=mode.value, function=function, threads=threads)
    results = runner(arrays)
    _write(outputs, results)
    statistics = runner.report() if mode is Mode.device else None
    if report is not None and statistics is not None:
        _write_report(report, statistics)
    if as_json:
        print_json(_summary(runner, results) | ({} if statistics is None else {"device": _verdict(statistics)}))
        return
    _print(runner, results)
    if statistics is not None:
        _print_report(statistics)


def _write(path: Path, results: dict[str, np.ndarray]) -> None:
    import io

    import numpy as np

    data = io.BytesIO()
    np.savez(data, **results)  # type: ignore[arg-type]
    write_bytes(path, data.getvalue(), "choose another place with --outputs")


def _summary(runner: Runner, results: dict[str, np.ndarray]) -> dict[str, Any]:
    shapes = {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in results.items()}
    return {"package": str(runner.package), "function": runner.function, "operations": runner.ops, "outputs": shapes}


def _verdict(report: Report) -> dict[str, Any]:
    return {
        "overflowed": report.overflowed,
        "nan": report.has_nan,
        "clean": report.clean,
        "tightest": [_entry(s) for s in report.tightest(5)],
    }


def _entry(stat: OpStat) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(stat) | {"tightness": stat.tightness, "underflow": stat.underflow}


def _print(runner: Runner, results: dict[str, np.ndarray]) -> None:
    count = sum(runner.ops.values())
    typer.echo(f"{runner.package}: function {runner.function}, {count} operations of {len(runner.ops)} types")
    for name, array in results.items():
        span = f", {float(array.min()):.6g} ... {float(array.max()):.6g}" if array.size else ""
        typer.echo(f"  {name}: {array.dtype} {list(array.shape)}{span}")


def _print_report(report: Report) -> None:
    verdict = "overflow" if report.overflowed else "NaN" if report.has_nan else "no overflow, no NaN"
    typer.echo(f"half precision: {verdict} in {len(report.ops)} operations; the tightest:")
    for stat in report.tightest(5):
        typer.echo(f"  {stat}")


def _write_report(path: Path, report: Report) -> None:
    import json

    data = _verdict(report) | {"mode": report.mode, "runs": report.runs, "ops": [_entry(s) for s in report.ops]}
    write_text(path, json.dumps(data, indent=1, sort_keys=True) + "\n", "choose another place with --report")
