"""`snapgen-deploy export`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    from snapgen_deploy.quantise.trajectories import Sample


def export(
    device: Annotated[str, typer.Option(help="Device id (see `devices`) or path of a profile .toml.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Elastic checkpoint; the embedded one when left out.")] = None,
    key_map: Annotated[Path | None, typer.Option(help="Renames the keys of a foreign checkpoint.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:VARIANT, repeatable; the profile's when left out.")
    ] = None,
    width: Annotated[str | None, typer.Option(help="Sub-network; the widest that fits when left out.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Precision for all targets (see `devices --precisions`); the profile's when left out.")
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(help="Bits a weight on average with --precision mixed, 3 to 8 (onnx from 4); 4.3 when left out."),
    ] = None,
    tune_iterations: Annotated[
        int | None, typer.Option(help="Iterations of self-distillation with --precision mixed; 1000 when left out.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="For calibrated and mixed precisions: text file, a prompt a line; or, not for mixed, .npz of arrays "
            "'<component>.<input>'."
        ),
    ] = None,
    calibration_pictures: Annotated[
        int | None, typer.Option(help="Pictures that --precision mixed draws to measure and tune on; 256 when left out.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where --precision mixed measures layers: here, processes:N or dask://host:port.")
    ] = None,
    fidelity: Annotated[
        bool, typer.Option("--fidelity", help="Hold exact precisions against the reference over many prompts, too.")
    ] = False,
    fidelity_samples: Annotated[
        int | None, typer.Option(min=1, help="Pictures of the fidelity gate; 100 when left out, 8 above 512x512.")
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="MODULE:FUNCTION that scores prompts and pictures in the fidelity gate.")
    ] = None,
    resolution: Annotated[
        list[str] | None,
        typer.Option(
            help="Picture size in pixels, N or HEIGHTxWIDTH, repeatable: one bundle for several sizes, whose graphs share the "
            "weights; the first is the default one. The checkpoint's own size when left out."
        ),
    ] = None,
    memory_budget: Annotated[
        str | None, typer.Option(help="What the model may take on the device, such as 5GB, in place of the profile's budget.")
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Widest width whose upper latency estimate fits: 1.5s or 1500ms.")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Time the kernel forms of the local attention here, and take the quickest."),
    ] = False,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, a prompt a line (a tab and a seed may follow), for gates and preview.")
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where the bundle is written.")] = Path("bundles"),
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; all when left out.")] = None,
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
    from snapgen_deploy.calibration import calibration_of
    from snapgen_deploy.checkpoint import open_checkpoint
    from snapgen_deploy.cli.devices import plan_as_dict, render_plan
    from snapgen_deploy.cli.mixed import EXECUTOR, with_mixed
    from snapgen_deploy.device_profiles import load_profile
    from snapgen_deploy.fidelity import COUNT, Fidelity, scorer_of
    from snapgen_deploy.host_memory import available_bytes
    from snapgen_deploy.latency.estimate import plan_estimator
    from snapgen_deploy.planning import make_plan

    limit = parse_bytes(cache_limit, "--cache-limit")
    profile = load_profile(device)
    if memory_budget:
        profile = profile.with_memory_budget(parse_bytes(memory_budget, "--memory-budget"))
    opened = open_checkpoint(checkpoint, key_map)
    sizes = [parse_resolution(text) for text in resolution or ()]
    size = sizes[0] if sizes else None

    plan = make_plan(
        opened.config,
        profile,
        width=width,
        targets=target or (),
        precision=precision,
        resolution=size,
        other_resolutions=sizes[1:],
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
    executor = executor or EXECUTOR
    chosen = samples_from(opened, prompts)
    small = plan.resolution[0] * plan.resolution[1] <= 512 * 512
    many = 4 if small else 1  # a full-scale reference picture takes minutes
    own = () if prompts is None else chosen
    wanted = Fidelity(
        fidelity_samples_of(opened, own, fidelity_samples or (COUNT if small else 8)), scorer_of(opened, scorer), fidelity
    )
    calibrating = calibration_of(opened, plan, calibration)
    if tune:
        from snapgen_deploy.latency.tune import tune_plan

        plan = tune_plan(opened.config, plan, threads or default_threads(), progress(quiet=as_json))
    if dry_run and as_json:
        print_json(plan_as_dict(plan) | {"export_memory": _memory_as_dict(opened.config, plan, executor)})
        return
    if not as_json:
        worst = export_memory.largest(export_memory.predict(opened.config, plan, executor))
        here = export_memory.line(worst, available_bytes())  # shown with the reasons, but of this computer: not in the bundle
        render_plan(replace(plan, reasons=(*plan.reasons, here)), out())
    if dry_run:
        return
    from snapgen_deploy.cache import ExportCache, default_root
    from snapgen_deploy.exporter import run_export
    from snapgen_deploy.latency import foretell
    from snapgen_deploy.request import Request

    cache = None if no_cache else ExportCache(default_root(), limit)
    foretold = foretell.of_plan(opened.config, plan, profile)
    request = Request(
        checkpoint,
        key_map,
        output_dir,
        tuple(s.prompt for s in chosen[:many]),
        threads or default_threads(),
        overwrite=overwrite,
        resume=resume,
        cache=cache,
        seeds=tuple(s.seed for s in chosen[:many]),
        calibration=calibrating,
        fidelity=wanted,
        executor=executor,
        macs=foretold.macs,
        estimates=foretold.estimates,
        macs_of_sizes={s: foretell.of_plan(opened.config, plan.at(s), profile).macs for s in plan.sizes[1:]}
        | {plan.sizes[0]: foretold.macs},
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
            | ({"sizes": manifest["sizes"]} if "sizes" in manifest else {})
        )
    else:
        _print_result(result)
        for note in notes:
            out().print(note, style="yellow", soft_wrap=True)


def _memory_as_dict(config: ModelConfig, plan: ExportPlan, executor: str) -> dict[str, Any]:
    """Predicted peaks of all processes, and what this computer has, in bytes."""
    from snapgen_deploy.export_memory import largest, predict
    from snapgen_deploy.host_memory import available_bytes

    predictions = predict(config, plan, executor)
    targets: dict[str, dict[str, int]] = {}
    for p in predictions:
        if p.target is not None:
            targets.setdefault(p.target.key, {})[p.role or "check"] = p.bytes
    return {
        "predicted_peak_bytes": largest(predictions).bytes,
        "available_bytes": available_bytes(),
        **{p.what: p.bytes for p in predictions if p.target is None},
        "targets": targets,
    }


def default_threads() -> int:
    """The processors that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_resolution(text: str) -> tuple[int, int]:
    """`1024` or `832x1216` (height x width) -> (height, width)."""
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(p.isdecimal() and len(p) <= 5 and int(p) > 0 for p in parts):
        return int(parts[0]), int(parts[-1])
    raise BadInput(f"resolution: got '{text}', expected N or HEIGHTxWIDTH in pixels, such as 1024 or 832x1216")


def parse_duration(text: str) -> float:
    """`1.5s` or `1500ms` -> milliseconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip().lower())
    if found is None or not float(found[1]) > 0:
        raise BadInput(f"--max-latency: got '{text}', expected a time such as 1.5s or 1500ms")
    return float(found[1]) * (1000 if found[2] == "s" else 1)


def samples_from(checkpoint: Checkpoint, path: Path | None) -> tuple[Sample, ...]:
    """The file's prompts, else the checkpoint's; a label for random text where nothing reads prompts."""
    from snapgen_deploy.prompts import read_samples
    from snapgen_deploy.quantise.trajectories import NO_PROMPT, samples_of

    if path is not None and not checkpoint.reads_prompts:
        raise BadInput("--prompts: this checkpoint has no text encoder with a tokenizer that could read them; leave it out")
    if path is not None:
        return read_samples(path, 0)
    own = (checkpoint.config.prompts if checkpoint.reads_prompts else ()) or (NO_PROMPT,)
    return samples_of(own, len(own), 0)


def fidelity_samples_of(checkpoint: Checkpoint, own: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """`count` pictures of the fidelity gate: the user's prompts, gone round with new seeds where they are fewer, else ours."""
    from snapgen_deploy.prompts import FIDELITY, own_samples
    from snapgen_deploy.quantise.trajectories import NO_PROMPT, samples_of

    if own:
        free = 1 + max(s.seed for s in own)
        return (*own, *samples_of([s.prompt for s in own], max(0, count - len(own)), free))[:count]
    prompts = (checkpoint.config.prompts if checkpoint.tokenizer else ()) or (NO_PROMPT,)
    return own_samples(checkpoint, FIDELITY, prompts, count, 0)


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
        name = g["name"].replace("_", " ") + (" (dB)" if g["name"].endswith("psnr") else "")
        table.add_row(g["target"], _component(g), name, value, f"{g['limit']:g}", verdict)
    out().print(table)
    for g in gates:
        if g["name"] == "largest_value":
            out().print(f"{g['target']} {_component(g)}, closest to the largest fp16 number:", style="dim")
            for line in g["detail"].split("; "):
                out().print(f"  {line}", style="dim", soft_wrap=True)
        elif g["verdict"] != "passed":
            line = f"{g['target']} {_component(g)} {g['name']}: {g['verdict']}: {g['detail']}"
            out().print(line, soft_wrap=True, markup=False)  # a reason may name an extra in brackets


def _component(gate: dict[str, Any]) -> str:
    """The component of a gate, with the picture size in a bundle of several."""
    return " ".join((gate["component"].replace("_", " "), gate.get("size", ""))).strip()


def _print_sizes(manifest: Mapping[str, Any]) -> None:
    """What the sizes share, and what that saves against a bundle for each, from the bytes of the files."""
    from rich.table import Table

    names = [s["name"] for s in manifest["sizes"]]
    table = Table(title=f"{len(names)} picture sizes: {', '.join(names)}", title_justify="left")
    for column in ("target", "component", "one bundle a size", "here", "saved", "weights used by several"):
        table.add_column(column, justify="left" if column in ("target", "component") else "right")
    for key in manifest["target_order"]:
        target = manifest["targets"][key]
        rows = {r: c["sharing"] for r, c in target["components"].items() if "sharing" in c} | {"all": target["sharing"]}
        for role, s in rows.items():
            shared = megabytes(s["shared_bytes"]) if "shared_bytes" in s else ""
            table.add_row(key, role, *(megabytes(s[k]) for k in ("separate_bytes", "bytes", "bytes_saved")), shared)
    out().print(table)


def _print_run(result: Result) -> None:
    """Where components came from, peak memory and time of every process; a cached one's are from its conversion."""
    targets = result.run["targets"]
    taken = sum(hit for t in targets.values() for hit in t["cached"].values())
    if taken:
        every = sum(len(t["cached"]) for t in targets.values())
        out().print(f"{taken} of {every} components came from the cache; their gates ran again", style="cyan")
    shared = {name: result.run[f"{name}_peak_bytes"] for name in ("reference", "recipe")}
    said = ", ".join(f"{name} {megabytes(peak)}" for name, peak in shared.items() if peak)
    out().print(f"peak memory: {said}; largest of all {megabytes(result.peak_bytes)}")
    for key, t in targets.items():
        parts = [
            f"{role.replace('_', ' ')} {megabytes(peak)} in {t['export_seconds'][role]:.0f} s"
            + (" (cached)" if t["cached"][role] else "")
            for role, peak in t["export_peak_bytes"].items()
        ]
        out().print(f"  {key}: {', '.join(parts)}; check {megabytes(t['check_peak_bytes'])}", soft_wrap=True)


def _print_result(result: Result) -> None:
    from rich.table import Table

    manifest = result.bundle.manifest
    table = Table(title="components", title_justify="left")
    numbers = ("size", "bits", "left", "operators")
    for column in ("target", "component", "precision", *numbers, "placement"):
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for key in result.bundle.targets:
        for role, c in manifest["targets"][key]["components"].items():
            placed = ", ".join(f"{n} {where}" for where, n in c["placement"].items()) or "—"
            precision = manifest["targets"][key]["precision"]
            bits = "—" if c["average_bits"] is None else f"{c['average_bits']:.2f}"
            left, operators = str(len(c["skipped"])), str(sum(c["ops"].values()))
            table.add_row(key, role, precision, megabytes(c["bytes"]), bits, left, operators, placed)
    out().print(table)
    out().print("bits: of a stored weight, on average; left: layers that a quantiser left as they were", style="dim")
    if "sizes" in manifest:
        _print_sizes(manifest)
    print_gates(manifest["gates"])
    ran = sum(g.verdict == "passed" for g in result.gates)
    idle = sum(g.verdict == "not_run" for g in result.gates)
    _print_run(result)
    out().print(f"{ran} gates passed, {idle} not run")
    if manifest["trained"] is not True:
        out().print(UNTRAINED, style="yellow")
    out().print(f"bundle: {result.bundle.path}   preview: {result.bundle.path / 'preview.png'}", soft_wrap=True)
