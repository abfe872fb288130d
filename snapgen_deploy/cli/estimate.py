"""`snapgen-deploy estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from snapgen_deploy.asked import AskedModel
from snapgen_deploy.cli.console import check_places, new_table, out, print_json, progress, say, tell
from snapgen_deploy.cli.options import AsJson, Verbose, with_your_model
from snapgen_deploy.cli.parsing import parse_resolution
from snapgen_deploy.errors import BadInput, Refused
from snapgen_deploy.system.documents import several
from snapgen_deploy.system.processors import default_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snapgen_deploy.latency.estimate.estimate import Estimate
    from snapgen_deploy.latency.estimate.estimate_basis import EstimatedDevice
    from snapgen_deploy.latency.estimate.sweep import Sweep
    from snapgen_deploy.models import ModelConfig
    from snapgen_deploy.system.progress import Progress


@with_your_model
def estimate(
    device: Annotated[
        str, typer.Option(help="Device id (see `devices`), path of a profile .toml, or `host` for this machine.")
    ],
    *,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint of the model, or an embedded one: shapes, the default, or shapes-unet.")
    ] = None,
    model: AskedModel,
    preset: Annotated[str | None, typer.Option(help="A configuration instead of a checkpoint: snapgenpp or shapes.")] = None,
    width: Annotated[str | None, typer.Option(help="Sub-network. Default: all.")] = None,
    resolution: Annotated[str | None, typer.Option(help="Picture size in pixels: N or HEIGHTxWIDTH.")] = None,
    target: Annotated[
        str | None, typer.Option(help="NAME or NAME:VARIANT. Default: the profile's first that can be estimated.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. Default: the model's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads of the host. Default: all.")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Vary width, picture size and steps; -o draws the result.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this host by micro-benchmarks first (minutes). Needs --device host.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="With --sweep: PNG file to draw.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Estimate how long a picture takes on a device, with an interval and its basis.

    The basis is measured (saved by `bench --save`), calibrated (this host, by micro-benchmarks), fitted (to published times) or
    derived (from the profile's published figures). Exit code 3 if there is none. Estimates for phones were never checked on
    hardware.
    """
    from snapgen_deploy.latency.estimate.estimate_basis import HOST, Host, target_of_estimate

    if checkpoint is not None and preset is not None:
        raise BadInput("got --checkpoint and --preset, expected one of them")
    if preset is not None and model != AskedModel():
        raise BadInput("--preset is a whole configuration: leave out what is said of a checkpoint, or give --checkpoint")
    if calibrate and device != HOST:
        raise BadInput(f"--calibrate measures this machine: expected --device {HOST}, got {device}")
    if output is not None and not sweep:
        raise BadInput("-o draws a sweep: add --sweep")
    check_places({"--output": output})
    if threads is not None and device != HOST:
        raise BadInput(f"--threads are of this machine: expected --device {HOST}, got {device}")
    config = _config(checkpoint, model, preset)
    size = parse_resolution(resolution) if resolution else config.resolution
    if width is not None and width not in config.student.widths:
        raise BadInput(f"{config.name} has no width '{width}': it has {several(list(config.student.widths))}")
    found: EstimatedDevice = Host(threads or default_threads()) if device == HOST else _profile(device)
    key = target_of_estimate(found, target)
    shown = progress(quiet=as_json)
    if calibrate:
        _calibrate(key, threads or default_threads(), shown)
    widths = [width] if width else sorted(config.student.widths, key=lambda w: config.student.widths[w])
    if sweep:
        _sweep(
            config, found, key, widths,
            size=size, steps=steps or config.steps, output=output, as_json=as_json, shown=shown,
        )  # fmt: skip
    else:
        _table(config, found, key, widths, size=size, steps=steps or config.steps, as_json=as_json, shown=shown)


def _config(checkpoint: Path | None, model: AskedModel, preset: str | None) -> ModelConfig:
    from snapgen_deploy.checkpoint import CheckpointPlace
    from snapgen_deploy.models import PRESETS

    if preset is None:
        return CheckpointPlace.of(checkpoint, model).open().config
    if preset not in PRESETS:
        raise BadInput(f"no preset '{preset}': expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]()


def _profile(device: str) -> EstimatedDevice:
    from snapgen_deploy.device_profiles import load_profile

    return load_profile(device)


def _calibrate(target: str, threads: int, shown: Progress) -> None:
    from snapgen_deploy.latency.estimate import calibrate

    found = calibrate.calibrate(target, threads, shown)
    path = calibrate.store(found)
    tell(
        f"calibrated {target}, threads: {threads}; {len(found.samples)} micro-benchmarks, "
        f"{100 * found.fit_error:.1f} % mean error on them; kept in {path}",
        "dim",
    )


def _table(
    config: ModelConfig,
    device: EstimatedDevice,
    target: str,
    widths: list[str],
    *,
    size: tuple[int, int],
    steps: int,
    as_json: bool,
    shown: Progress,
) -> None:
    from snapgen_deploy.latency.estimate.estimate import Estimate, estimate_picture

    with shown(f"estimating {', '.join(widths)}"):
        found = [estimate_picture(config, w, size, device, target, steps=steps) for w in widths]
    known = [e for e in found if isinstance(e, Estimate)]
    if not known:
        raise Refused(next(e.reason for e in found if not isinstance(e, Estimate)))
    if as_json:
        print_json(_head(config, device, target) | {"estimates": [e.as_dict() for e in known]})
        return
    out().print(
        f"[bold]{device.name}[/bold], {target}: one picture of {config.name}, {size[0]}x{size[1]}, {steps} steps, in ms"
    )
    _print(known)
    say("beside: what the app does around the networks, sampler and copies", "dim")
    _reasons(known)


def _sweep(
    config: ModelConfig,
    device: EstimatedDevice,
    target: str,
    widths: list[str],
    *,
    size: tuple[int, int],
    steps: int,
    output: Path | None,
    as_json: bool,
    shown: Progress,
) -> None:
    from snapgen_deploy.latency.estimate.estimate import NoBasis, estimate_picture
    from snapgen_deploy.latency.estimate.sweep import plot_sweep, sweep_estimates

    found = sweep_estimates(config, device, target, widths, resolution=size, steps=steps, progress=shown)
    if not found.widths:
        missing = estimate_picture(config, widths[0], size, device, target, steps=steps)
        raise Refused(missing.reason if isinstance(missing, NoBasis) else f"nothing to sweep at {size[0]}x{size[1]}")
    if output is not None:
        plot_sweep(found, device, output)
    if as_json:
        print_json(_head(config, device, target) | _sweep_as_dict(found))
        return
    size_text = f"{size[0]}x{size[1]}"
    for title, varied, rows in ((f"{steps} steps", "size", found.resolutions), (size_text, "steps", found.steps)):
        out().print(
            f"[bold]{escape(device.name)}[/bold], {target}: one picture of {escape(config.name)}, {title}, in ms",
            soft_wrap=True,
        )
        _print(rows, varied)
    _reasons(found.widths)
    if output is not None:
        say(f"plot: {output}")


def _head(config: ModelConfig, device: EstimatedDevice, target: str) -> dict[str, Any]:
    return {"device": device.id, "model": config.name, "target": target}


def _sweep_as_dict(found: Sweep) -> dict[str, Any]:
    groups = {"widths": found.widths, "resolutions": found.resolutions, "steps": found.steps}
    return {name: [e.as_dict() for e in rows] for name, rows in groups.items()}


def _print(estimates: Sequence[Estimate], varied: str = "") -> None:
    """Print one row per estimate, in ms, with a column for what is varied (size or steps)."""
    from snapgen_deploy.families.names import DECODER, STEP, TEXT_ENCODER, title_of

    table = new_table()
    parts = ("text", "a step", title_of(DECODER), "beside")
    for column in ("width", *([varied] if varied else []), "ms", "from", "to", *parts, "basis"):
        table.add_column(column, justify="left" if column in ("width", "basis") else "right", no_wrap=True)
    for e in estimates:
        place = {"size": f"{e.resolution[0]}x{e.resolution[1]}", "steps": str(e.steps)}
        text = sum(ms for name, ms in e.parts.items() if name.startswith(TEXT_ENCODER))  # of all text encoders
        figures = (e.ms, e.low, e.high, text, *(e.parts[name] for name in (STEP, DECODER, "beside")))
        table.add_row(e.width, *([place[varied]] if varied else []), *(_ms(f) for f in figures), e.basis)
    out().print(table)


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _reasons(estimates: Sequence[Estimate]) -> None:
    """Print what the estimates are based on, each line once."""
    for line in dict.fromkeys(line for e in estimates for line in e.lines):
        say(f"  {line}", "dim")
