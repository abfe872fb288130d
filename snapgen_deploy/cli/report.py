"""`snapgen-deploy report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snapgen_deploy.cli.console import megabytes, print_json, progress, save_text, say
from snapgen_deploy.cli.options import AsJson, Verbose


def report(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles that `export` wrote. Several are compared.")],
    latency: Annotated[list[Path] | None, typer.Option(help="File that `bench --output` wrote, repeatable.")] = None,
    comparison: Annotated[list[Path] | None, typer.Option(help="File that `compare --output` wrote, repeatable.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write one self-contained HTML page: pictures, sizes, gates, latency, placement, estimates and comparisons.

    Failed gates and changed files are shown as such. The exit code is 0 whatever the page shows.
    """
    from snapgen_deploy.report import collect, render

    with progress(quiet=as_json)("reading, and checking hashes"):
        data = collect(bundles, latency or (), comparison or ())
    page = render(data)
    save_text(output, page)
    size = len(page.encode())
    if as_json:
        verdicts = {b.label: b.verdict for b in data.bundles}
        print_json({"report": str(output), "bytes": size, "verdict": data.verdict, "bundles": verdicts})
    else:
        say(f"{output}: {len(data.bundles)} bundle{'s' * (len(data.bundles) > 1)}, {megabytes(size)}")
