"""`snapgen-deploy export`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapgen_deploy.cli.console import UNTRAINED, counting, megabytes, out, parse_bytes, print_json, progress
from snapgen_deploy.errors import BadInput

if TYPE_CHECKING:
    from snapgen_deploy.checkpoint import Checkpoint
    from snapgen_deploy.exporter import Result
    from snapgen_deploy.models import ModelConfig
    from snapgen_deploy.plan import ExportPlan


def export(
    device: Annotated[str, typer.Option(help="Device id (see `devices`) or path of a profile .toml.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Elastic checkpoint; the embedded one when left out.")] = None,
    key_map: Annotated[Path | None, typer.Option(help="Renames the keys of a foreign checkpoint.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:VARIANT, repeatable; the profile's when left out.")
    ] = None,
    width: Annotated[str | None, typer.Option(help="Sub-network; the widest that fits when left out.")] = None,
    precision: Annotated[str | None, typer.Option(help="Precision for all targets; the profile's when left out.")] = None,
    bits: Annotated[
        float | None, typer.Option(help="Bits a weight on average with --precision mixed, 3 to 8; 4.3 when left out.")
    ] = None,
    tune_iterations: Annotated[
        int | None, typer.Option(help="Iterations of self-distillation with --precision mixed; 1000 when left out.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Text file, a prompt a line, that --precision mixed measures and tunes on.")
    ] = None,
    calibration_pictures: Annotated[
        int | None, typer.Option(help="Pictures that --precision mixed draws to measure and tune on; 256 when left out.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where --precision mixed measures layers: here, processes:N or dask://host:port.")
    ] = None,
    resolution: Annotated[str | None, typer.Option(help="Picture size in pixels: N or HEIGHTxWIDTH.")] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Widest width whose upper latency estimate fits: 1.5s or 1500ms.")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Time the kernel forms of the local attention here, and take the quickest."),
    ] = False,
    prompts: Annotated[Path | None, typer.Option(help="Text file, a prompt a line, for the gates and the preview.")] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where the bundle is written.")] = Path("bundles"),
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all when left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is already there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Take up an interrupted export of the same plan.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Convert everything anew, and keep nothing.")] = False,
    cache_limit: Annotated[
        str, typer.Option(envvar="SNAPGEN_DEPLOY_CACHE_LIMIT", help="Size of the cache of converted components.")
    ] = "10GB",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of errors.")] = False,
) -> None:
    """Export a checkpoint for a device, run what was saved, and write the bundle if every gate held."""
    from snapgen_deploy import export_memory
    from snapgen_deploy.checkpoint import open_checkpoint
    from snapgen_deploy.cli.devices import plan_as_dict, render_plan
    from snapgen_deploy.cli.mixed import EXECUTOR, with_mixed
    from snapgen_deploy.device_profiles import load_profile
    from snapgen_deploy.host_memory import available_bytes
    from snapgen_deploy.latency.estimate import plan_estimator
    from snapgen_deploy.plan import make_plan

    limit = parse_bytes(cache_limit, "--cache-limit")
    profile = load_profile(device)
    opened = open_checkpoint(checkpoint, key_map)
    size = parse_resolution(resolution) if resolution else None

    plan = make_plan(
        opened.config,
        profile,
        width=width,
        targets=target or (),
        precision=precision,
        resolution=size,
        estimator=plan_estimator(opened.config, profile, size),
        max_latency_ms=parse_duration(max_latency) if max_latency else None,
    )
    plan = with_mixed(
        plan,
        opened,
        bits=bits,
        iterations=tune_iterations,
        calibration=calibration,
        pictures=calibration_pictures,
        executor=executor,
    )
    if tune:
        from snapgen_deploy.latency.tune import tune_plan

        plan = tune_plan(opened.config, plan, threads or default_threads(), progress(quiet=as_json))
    if dry_run and as_json:
        print_json(plan_as_dict(plan) | {"export_memory": _memory_as_dict(opened.config, plan)})
        return
    if not as_json:
        worst = export_memory.largest(export_memory.predict(opened.config, plan))
        here = export_memory.line(worst, available_bytes())  # shown with the reasons, but of this computer: not in the bundle
        render_plan(replace(plan, reasons=(*plan.reasons, here)), out())
    if dry_run:
        return
    from snapgen_deploy.cache import ExportCache, default_root
    from snapgen_deploy.exporter import Request, run_export
    from snapgen_deploy.latency import foretell

    cache = None if no_cache else ExportCache(default_root(), limit)
    chosen = prompts_of(opened, prompts)
    many = 4 if plan.resolution[0] * plan.resolution[1] <= 512 * 512 else 1  # a full-scale reference picture takes minutes
    foretold = foretell.of_plan(opened.config, plan, profile)
    request = Request(
        checkpoint,
        key_map,
        output_dir,
        tuple(chosen)[:many],
        threads or default_threads(),
        overwrite=overwrite,
        resume=resume,
        cache=cache,
        executor=executor or EXECUTOR,
        macs=foretold.macs,
        estimates=foretold.estimates,
    )
    result = run_export(request, plan, progress(quiet=as_json), counting(quiet=as_json))
    notes = cache.notes if cache is not None else []
    if as_json:
        manifest = result.bundle.manifest
        print_json(
            {
                "bundle": str(result.bundle.path),
                "peak_bytes": result.peak_bytes,
                "run": result.run,
                "notes": notes,
                "gates": manifest["gates"],
                "targets": manifest["targets"],
            }
        )
    else:
        _print_result(result)
        for note in notes:
            out().print(note, style="yellow", soft_wrap=True)


def _memory_as_dict(config: ModelConfig, plan: ExportPlan) -> dict[str, Any]:
    """Predicted peaks of the converting processes, and what this computer has, in bytes."""
    from snapgen_deploy.export_memory import largest, predict
    from snapgen_deploy.host_memory import available_bytes

    predictions = predict(config, plan)
    components: dict[str, dict[str, int]] = {}
    for p in predictions:
        components.setdefault(p.target.key, {})[p.role] = p.bytes
    return {
        "predicted_peak_bytes": largest(predictions).bytes,
        "available_bytes": available_bytes(),
        "components": components,
    }


def default_threads() -> int:
    """The processors that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_resolution(text: str) -> tuple[int, int]:
    """`1024` or `832x1216` (height x width) -> (height, width)."""
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(p.isdigit() and int(p) > 0 for p in parts):
        return int(parts[0]), int(parts[-1])
    raise BadInput(f"resolution: got '{text}', expected N or HEIGHTxWIDTH in pixels, such as 1024 or 832x1216")


def parse_duration(text: str) -> float:
    """`1.5s` or `1500ms` -> milliseconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip().lower())
    if found is None or not float(found[1]) > 0:
        raise BadInput(f"--max-latency: got '{text}', expected a time such as 1.5s or 1500ms")
    return float(found[1]) * (1000 if found[2] == "s" else 1)


def prompts_of(checkpoint: Checkpoint, path: Path | None) -> tuple[str, ...]:
    """The file's prompts, else the checkpoint's; a label for random text where nothing reads prompts."""
    readable = checkpoint.config.text_encoder is not None and checkpoint.tokenizer is not None
    if path is not None and not readable:
        raise BadInput("--prompts: this checkpoint has no text encoder with a tokenizer that could read them; leave it out")
    if path is not None:
        return read_prompts(path)
    return (checkpoint.config.prompts if readable else ()) or ("no prompt: seeded random text",)


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"prompts file {path} cannot be read ({error}); give a UTF-8 text file with a prompt a line") from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise BadInput(f"prompts file {path} is empty; give a prompt a line")
    return prompts


def print_gates(gates: Sequence[dict[str, Any]]) -> None:
    """A table of gates with their values, limits and verdicts."""
    from rich.table import Table

    table = Table(title="gates", title_justify="left")
    for column in ("target", "component", "gate", "value", "limit", "verdict"):
        table.add_column(column, justify="right" if column in ("value", "limit") else "left", overflow="fold")
    colours = {"passed": "green", "failed": "red", "not_run": "yellow"}
    for g in gates:
        value = "—" if g["value"] is None else f"{g['value']:.3g}"
        verdict = f"[{colours[g['verdict']]}]{g['verdict']}[/]"
        name = g["name"].replace("_", " ") + (" (dB)" if g["name"] == "psnr" else "")
        table.add_row(g["target"], g["component"].replace("_", " "), name, value, f"{g['limit']:g}", verdict)
    out().print(table)
    for g in gates:
        if g["name"] == "largest_value":
            out().print(f"{g['target']} {g['component']}, closest to the largest fp16 number:", style="dim")
            for line in g["detail"].split("; "):
                out().print(f"  {line}", style="dim", soft_wrap=True)
        elif g["verdict"] != "passed":
            out().print(f"{g['target']} {g['component']} {g['name']}: {g['verdict']}: {g['detail']}", soft_wrap=True)


def _print_run(result: Result) -> None:
    """Where components came from, and the peak memory of every process; a cached one's is from its conversion."""
    targets = result.run["targets"]
    taken = sum(hit for t in targets.values() for hit in t["cached"].values())
    if taken:
        every = sum(len(t["cached"]) for t in targets.values())
        out().print(f"{taken} of {every} components came from the cache; their gates ran again", style="cyan")
    reference = megabytes(result.run["reference_peak_bytes"])
    out().print(f"peak memory: reference {reference}; largest of all {megabytes(result.peak_bytes)}")
    for key, t in targets.items():
        parts = [
            f"{role.replace('_', ' ')} {megabytes(peak)}" + (" (cached)" if t["cached"][role] else "")
            for role, peak in t["export_peak_bytes"].items()
        ]
        out().print(f"  {key}: {', '.join(parts)}; check {megabytes(t['check_peak_bytes'])}", soft_wrap=True)


def _print_result(result: Result) -> None:
    from rich.table import Table

    manifest = result.bundle.manifest
    table = Table(title="components", title_justify="left")
    for column in ("target", "component", "precision", "size", "operators", "placement"):
        table.add_column(column, justify="right" if column in ("size", "operators") else "left")
    for key in result.bundle.targets:
        for role, c in manifest["targets"][key]["components"].items():
            placed = ", ".join(f"{n} {where}" for where, n in c["placement"].items()) or "—"
            precision = manifest["targets"][key]["precision"]
            table.add_row(key, role, precision, megabytes(c["bytes"]), str(sum(c["ops"].values())), placed)
    out().print(table)
    print_gates(manifest["gates"])
    ran = sum(g.verdict == "passed" for g in result.gates)
    idle = sum(g.verdict == "not_run" for g in result.gates)
    _print_run(result)
    out().print(f"{ran} gates passed, {idle} not run")
    if manifest["trained"] is not True:
        out().print(UNTRAINED, style="yellow")
    out().print(f"bundle: {result.bundle.path}   preview: {result.bundle.path / 'preview.png'}", soft_wrap=True)
