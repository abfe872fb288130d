"""`snapgen-deploy bench`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapgen_deploy.cli.console import check_places, megabytes, new_table, out, print_json, progress, save_text, say, tell
from snapgen_deploy.cli.options import AsJson, Verbose
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.processors import default_threads

if TYPE_CHECKING:
    from snapgen_deploy.latency.results import Measurement, RunProfile

BOUNDS = ("p90", "p99")  # columns with MLPerf's bound of a percentile


def bench(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `export` wrote.")],
    *,
    target: Annotated[str | None, typer.Option(help="NAME or NAME:VARIANT. Default: the first that runs here.")] = None,
    profile: Annotated[
        str, typer.Option(help="rapid (64 pictures, 6 s), quick (128, 10 s) or normal (1024, 60 s) at least; 300 s at most.")
    ] = "rapid",
    sustained: Annotated[
        bool, typer.Option("--sustained", help="Run back to back for at least five minutes, instead of in bursts.")
    ] = False,
    link: Annotated[
        str | None,
        typer.Option(help="Measure a device instead of this host: adb[:SERIAL], iphone[:UDID] or mac.", show_default=False),
    ] = None,
    link_option: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE, repeatable. adb: runner (an executor_runner for the phone), perf_test (onnxruntime_perf_test), "
            "libraries, runner_version, fixed_performance. iphone: team, bundle_id, compute_units. mac: compute_units.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: all of this host, 1 on a device.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the result: it replaces estimates for the device behind --link, or for `host`.")
    ] = False,
    save_as: Annotated[
        str | None,
        typer.Option(
            help="Keep the result for the device with this profile. For a host that is that device, such as a server.",
            metavar="ID",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="native, pytorch-v3, openmetrics or github-action-benchmark.")
    ] = "native",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the result, in --format.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file for the plots.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure how long a bundle takes to draw a picture: p50, and MLPerf's bound of p90. Every sample is kept.

    One query is one picture: text encoder, every step of the student, decoder. The links adb, iphone and mac are tested against
    fakes of the devices' tools; they have never been run on hardware.
    """
    from snapgen_deploy.bundle.reader import check_hashes, open_bundle
    from snapgen_deploy.device_profiles import load_profile
    from snapgen_deploy.latency.environment import stamp_of_now
    from snapgen_deploy.latency.estimate import bundle_estimate
    from snapgen_deploy.latency.formats.exporters import FORMATS, as_record
    from snapgen_deploy.latency.results import MEASURED_ON, ON_HOST, RUN_PROFILES

    if profile not in RUN_PROFILES:
        raise BadInput(f"no run profile '{profile}': expected one of {', '.join(RUN_PROFILES)}")
    if form not in FORMATS:
        raise BadInput(f"no format '{form}': expected one of {', '.join(FORMATS)}")
    check_places({"--output": output, "--plot": plot})
    if link_option and link is None:
        raise BadInput("--link-option belongs to --link; add it, or leave the option out")
    if save_as is not None and (link is not None or save):
        raise BadInput("--save-as keeps a result of this host: leave --link and --save out")
    owner = None if save_as is None else load_profile(save_as).id
    opened = open_bundle(bundle)
    check_hashes(opened)
    if save and link is not None:
        from snapgen_deploy.latency.measure.device import check_device

        check_device(opened.manifest["device"]["id"], link)
    run, mode = RUN_PROFILES[profile], "sustained" if sustained else "burst"
    shown = progress(quiet=as_json)
    if link is None:
        from snapgen_deploy.bundle.draw import choose_target
        from snapgen_deploy.latency.measure.host import measure_host
        from snapgen_deploy.latency.measure.session import first_timed

        key = first_timed(opened) if target is None else choose_target(opened, target)
        result = measure_host(opened, key, run, mode, threads or default_threads(), shown)
    else:
        from snapgen_deploy.latency.measure.device import measure_device

        given = tuple(link_option or ())
        result = measure_device(opened, target, link, given, profile=run, mode=mode, threads=threads or 1, progress=shown)
    measured_on = ON_HOST if link is None else link.partition(":")[0]
    known = bundle_estimate.for_measurement(opened, result, on_host=link is None)
    result = replace(result, environment={**result.environment, **known, **stamp_of_now(), MEASURED_ON: measured_on})
    if output is not None:
        save_text(output, FORMATS[form](result))
    if plot is not None:
        from snapgen_deploy.latency.estimate.plots import plot_measurement as draw_plots

        draw_plots(result, plot)
    if save or owner is not None:
        from snapgen_deploy.latency.estimate.estimate_measured import device_of, save_measured

        owner = owner or device_of(result)
        tell(f"saved: {save_measured(result, owner)}; estimates for {owner} rest on it")
    if as_json:
        print_json(as_record(result))
    else:
        print_measurement(result, run)


def print_measurement(result: Measurement, run: RunProfile) -> None:
    """Print a table of the figures, and notes about them."""
    from snapgen_deploy.families.names import timing_title
    from snapgen_deploy.latency.results import QUERY

    key = result.key
    title = f"{result.bundle} · {key.backend} {key.precision} · {key.soc} · threads {key.threads} · ms"
    table = new_table(title=title)
    for column in ("", "n", "p50", "p90 ≤", "p99 ≤", "mean", "min … max", "outliers"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name in result.names:
        s = result.summary(name)
        if s["n"] == 0:
            continue
        label = _one_query(result) if name == QUERY else timing_title(name)
        spread = f"{s['minimum']:.2f} … {s['maximum']:.2f}"
        bounds = (_bound(s, name) for name in BOUNDS)
        table.add_row(label, str(s["n"]), f"{s['p50']:.2f}", *bounds, f"{s['mean']:.2f}", spread, str(s["outliers"]))
    out().print(table)
    if short := _too_few(result):
        say(short, "dim")
    for line in _facts(result, run):
        out().print(line, soft_wrap=True)


def _one_query(result: Measurement) -> str:
    """What a query draws."""
    return "picture" if result.batch == 1 else f"{result.batch} pictures"


def _bound(summary: dict[str, Any], name: str) -> str:
    value = summary[f"{name}_bound"]
    return "—" if value is None else f"{value:.2f}"


def _too_few(result: Measurement) -> str:
    """Why a bound has a dash in the table; "" where none has."""
    from snapgen_deploy.latency.results import RUN_PROFILES

    whole = result.summary()
    short = {name: whole["queries_needed"][name] for name in BOUNDS if whole[f"{name}_bound"] is None}
    if not short:
        return ""
    needs = " and ".join(f"the bound of {name} needs {count} pictures" for name, count in short.items())
    enough = next((n for n, run in RUN_PROFILES.items() if run.queries >= max(short.values())), "normal")
    return f"—: {needs}; {whole['n']} were drawn; --profile {enough} draws {RUN_PROFILES[enough].queries}"


def _facts(result: Measurement, run: RunProfile) -> list[str]:
    from snapgen_deploy.latency.measure.host import sustained_figures

    invalid = [r for r in result.rounds if not r.valid]
    loads = {"first ever": result.loads.first_ever, "cold": result.loads.cold, "warm": result.loads.warm}
    lines = [
        f"{result.mode}, profile {result.profile}; a picture is {result.e2e_is}; rounds: {len(result.rounds)}, "
        f"{len(invalid)} discarded" + (f" ({invalid[0].reason})" if invalid else ""),
        "load: " + ", ".join(f"{name} {'not measured' if ms is None else f'{ms:.0f} ms'}" for name, ms in loads.items())
        + "; peak memory " + (megabytes(result.peak_bytes) if result.peak_bytes else "not measured"),
    ]  # fmt: skip
    if result.batch > 1 and (each := result.picture_p50) is not None:
        lines.append(f"{each:.2f} ms a picture: p50 of a call, which draws {result.batch}, divided by {result.batch}")
    missed = [name.replace("_", " ") for name, met in result.validity(run).items() if not met]
    if missed:
        lines.append(f"[yellow]not valid as an MLPerf-style run: {', '.join(missed)}[/]")
    if result.mode == "sustained":
        f = sustained_figures(result)
        lines.append(
            f"sustained: p50 of the first tenth {f['first_p50']:.2f} ms, of the last quarter {f['last_p50']:.2f} ms "
            f"({100 * (f['slowdown'] - 1):+.1f} %); stability of the minutes {f['stability']:.3f}"
        )
    return [*lines, *result.notes]
