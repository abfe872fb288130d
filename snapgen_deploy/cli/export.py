"""`snapgen-deploy export`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapgen_deploy.cli.console import NO_TOKENIZER, counting, out, parse_bytes, print_json, progress, say
from snapgen_deploy.cli.result import print_gates, print_result
from snapgen_deploy.errors import BadInput, GatesFailed

if TYPE_CHECKING:
    from snapgen_deploy.checkpoint import Checkpoint
    from snapgen_deploy.drawing.prompts import Sample
    from snapgen_deploy.models import ModelConfig
    from snapgen_deploy.plan.plan import ExportPlan

FEWER, FIDELITY, HERE = "Fewer bits", "Still the same picture?", "This computer"  # panels of --help


def export(
    device: Annotated[str, typer.Option(help="Device id (see `devices`) or path of a profile .toml.", metavar="ID")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Elastic checkpoint; the embedded one when left out.", metavar="PATH")
    ] = None,
    key_map: Annotated[Path | None, typer.Option(help="Renames the keys of a foreign checkpoint.", metavar="FILE")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:VARIANT, repeatable; the profile's when left out.", metavar="NAME")
    ] = None,
    width: Annotated[str | None, typer.Option(help="Sub-network; the widest that fits when left out.", metavar="NAME")] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precision for all targets (see `devices --precisions`); the profile's when left out.", metavar="NAME"
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            help="Bits a weight on average with --precision mixed, 3 to 8 (onnx from 4); 4.3 when left out.",
            metavar="N",
            rich_help_panel=FEWER,
        ),
    ] = None,
    tune_iterations: Annotated[
        int | None,
        typer.Option(
            help="Iterations of self-distillation with --precision mixed; 1000 when left out.",
            metavar="N",
            rich_help_panel=FEWER,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="For calibrated and mixed precisions: text file, a prompt a line; or, not for mixed, .npz of arrays "
            "'<component>.<input>'.",
            metavar="FILE",
            rich_help_panel=FEWER,
        ),
    ] = None,
    calibration_pictures: Annotated[
        int | None,
        typer.Option(
            help="Pictures that --precision mixed draws to measure and tune on; 256 when left out.",
            metavar="N",
            rich_help_panel=FEWER,
        ),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            help="Where --precision mixed measures layers: here, processes:N or dask://host:port.",
            metavar="WHERE",
            rich_help_panel=FEWER,
        ),
    ] = None,
    fidelity: Annotated[
        bool,
        typer.Option(
            "--fidelity", help="Hold exact precisions against the reference over many prompts, too.", rich_help_panel=FIDELITY
        ),
    ] = False,
    fidelity_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help="Pictures of the fidelity gate; 100 when left out, 8 above 512x512.",
            metavar="N",
            rich_help_panel=FIDELITY,
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            help="MODULE:FUNCTION that scores prompts and pictures in the fidelity gate.",
            metavar="NAME",
            rich_help_panel=FIDELITY,
        ),
    ] = None,
    resolution: Annotated[
        list[str] | None,
        typer.Option(
            help="Picture size in pixels, N or HEIGHTxWIDTH, repeatable: one bundle for several sizes, whose graphs share the "
            "weights; the first is the default one. The checkpoint's own size when left out.",
            metavar="SIZE",
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            help="What the model may take on the device, such as 5GB, in place of the profile's budget.", metavar="SIZE"
        ),
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Widest width whose upper latency estimate fits: 1.5s or 1500ms.", metavar="TIME")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Time the kernel forms of the local attention here, and take the quickest."),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file, a prompt a line (a tab and a seed may follow): the first 4 (1 above 512x512) for gates and "
            "preview, all for the fidelity gate.",
            metavar="FILE",
            rich_help_panel=FIDELITY,
        ),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Where the bundle is written.", metavar="FOLDER")
    ] = Path("bundles"),
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads; all when left out.", metavar="N", rich_help_panel=HERE)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is already there.", rich_help_panel=HERE)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Take up an export of the same plan that was killed; keep what is done if this one is interrupted.",
            rich_help_panel=HERE,
        ),
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Convert everything anew, and keep nothing.", rich_help_panel=HERE)
    ] = False,
    cache_limit: Annotated[
        str,
        typer.Option(
            envvar="SNAPGEN_DEPLOY_CACHE_LIMIT",
            help="Size of the cache of converted components.",
            metavar="SIZE",
            rich_help_panel=HERE,
        ),
    ] = "10GB",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of errors.")] = False,
) -> None:
    """Export a checkpoint for a device, run what was saved, and write the bundle if every gate held."""
    from snapgen_deploy.check.fidelity import COUNT, Fidelity, scorer_of
    from snapgen_deploy.checkpoint import open_checkpoint
    from snapgen_deploy.cli.devices import plan_as_dict, render_plan
    from snapgen_deploy.cli.mixed import EXECUTOR, with_mixed
    from snapgen_deploy.device_profiles import load_profile
    from snapgen_deploy.drawing.prompts import check_prompts
    from snapgen_deploy.job import memory as export_memory
    from snapgen_deploy.job.calibration import calibration_of, is_calibrated
    from snapgen_deploy.latency.estimate.estimate import plan_estimator
    from snapgen_deploy.plan.make import make_plan
    from snapgen_deploy.system.host_memory import available_bytes

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
    judged = fidelity_samples_of(opened, own, fidelity_samples or (COUNT if small else 8))
    wanted = Fidelity(judged, None, every=fidelity)
    judging = any(wanted.judges(t) for t in plan.targets)
    if not judging:
        refuse_idle({"--scorer": scorer, "--fidelity-samples": fidelity_samples}, "the fidelity gate", "add --fidelity")
    else:
        chosen_scorer, unscored = scorer_of(opened, scorer, judged, plan.resolution)
        wanted = replace(wanted, scorer=chosen_scorer, unscored=unscored)
    if plan.mixed is None and not any(is_calibrated(t) for t in plan.targets):
        refuse_idle({"--calibration": calibration}, "calibrated and mixed precisions", "choose one by --precision")
    calibrating = calibration_of(opened, plan, calibration)
    drawn = (*chosen, *judged, *calibrating.samples)
    check_prompts(opened, (*(s.prompt for s in drawn), *(plan.mixed.prompts if plan.mixed else ())))
    if tune:
        from snapgen_deploy.latency.estimate.tune import tune_plan

        plan = tune_plan(opened.config, plan, threads or default_threads(), progress(quiet=as_json))
    if dry_run and as_json:
        print_json(plan_as_dict(plan) | {"export_memory": _memory_as_dict(opened.config, plan, executor)})
        return
    if not as_json:
        worst = export_memory.largest(export_memory.predict(opened.config, plan, executor))
        here = export_memory.line(worst, available_bytes())  # shown with the reasons, but of this computer: not in the bundle
        render_plan(replace(plan, reasons=(*plan.reasons, here)), out())
        if opened.config.text_encoder is not None and opened.tokenizer is None:
            say(NO_TOKENIZER, "yellow")
        if own[many:]:
            more = f", the fidelity gate {len(judged)} pictures" if judging else ""
            say(f"gates and preview draw {many} of the {len(own)} prompts{more}", "yellow")
    if dry_run:
        return
    from snapgen_deploy.job.cache import ExportCache, default_root
    from snapgen_deploy.job.request import Request
    from snapgen_deploy.job.run import run_export
    from snapgen_deploy.latency.estimate import foretell

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
    try:
        result = run_export(request, plan, progress(quiet=as_json), counting(quiet=as_json))
    except GatesFailed as error:
        if not as_json:
            print_gates(error.gates)
        raise
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
        print_result(result)
        for note in notes:
            say(note, "yellow")


def _memory_as_dict(config: ModelConfig, plan: ExportPlan, executor: str) -> dict[str, Any]:
    """Predicted peaks of all processes, and what this computer has, in bytes."""
    from snapgen_deploy.job.memory import largest, predict
    from snapgen_deploy.system.host_memory import available_bytes

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


def refuse_idle(options: Mapping[str, object], user: str, mend: str) -> None:
    """BadInput for the first of options that nothing of the plan would use, where one was given (is not None)."""
    for option, value in options.items():
        if value is not None:
            raise BadInput(f"{option} is for {user}, which no target of this plan has; {mend}, or leave it out")


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
    from snapgen_deploy.drawing.prompts import read_samples, samples_of
    from snapgen_deploy.quantise.trajectories import NO_PROMPT

    if path is not None and not checkpoint.reads_prompts:
        raise BadInput("--prompts: this checkpoint has no text encoder with a tokenizer that could read them; leave it out")
    if path is not None:
        return read_samples(path, 0)
    own = (checkpoint.config.prompts if checkpoint.reads_prompts else ()) or (NO_PROMPT,)
    return samples_of(own, len(own), 0)


def fidelity_samples_of(checkpoint: Checkpoint, own: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """`count` pictures of the fidelity gate: the user's prompts, gone round with new seeds where they are fewer, else ours."""
    from snapgen_deploy.drawing.prompts import FIDELITY, own_samples, samples_of
    from snapgen_deploy.quantise.trajectories import NO_PROMPT

    if own:
        free = 1 + max(s.seed for s in own)
        return (*own, *samples_of([s.prompt for s in own], max(0, count - len(own)), free))[:count]
    prompts = (checkpoint.config.prompts if checkpoint.tokenizer else ()) or (NO_PROMPT,)
    return own_samples(checkpoint, FIDELITY, prompts, count, 0)
