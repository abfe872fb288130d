"""`snapgen-deploy export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snapgen_deploy.asked import AskedModel
from snapgen_deploy.cli.console import NO_TOKENIZER, counting, out, parse_bytes, print_json, progress, say
from snapgen_deploy.cli.options import YOUR_MODEL, AsJson, Verbose, with_your_model
from snapgen_deploy.cli.parsing import parse_duration, parse_resolution
from snapgen_deploy.cli.result import print_gates, print_result, result_as_dict, warnings_of
from snapgen_deploy.errors import BadInput, GatesFailed
from snapgen_deploy.system.processors import default_threads

if TYPE_CHECKING:
    from snapgen_deploy.apps.registry import App
    from snapgen_deploy.bundle.reader import Bundle
    from snapgen_deploy.checkpoint import Checkpoint
    from snapgen_deploy.job.pictures import Pictures
    from snapgen_deploy.plan.plan import ExportPlan

_MOST_PICTURES = 256  # of a call
FEWER, SAME_PICTURE, HERE = "Fewer bits", "Still the same picture?", "This computer"  # panels of --help


@with_your_model
def export(
    device: Annotated[str, typer.Option(help="Device id (see `devices`) or path of a profile .toml.", metavar="ID")],
    *,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="File or folder of the checkpoint, or the name of an embedded one: shapes, the default, or shapes-unet.",
            metavar="PATH",
        ),
    ] = None,
    model: AskedModel,
    target: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:VARIANT, repeatable. Default: the profile's.", metavar="NAME")
    ] = None,
    width: Annotated[str | None, typer.Option(help="Sub-network. Default: the widest that fits.", metavar="NAME")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Precision for all targets (see `devices --precisions`). Default: the profile's.", metavar="NAME"),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            help="With --precision mixed: average bits per weight, 3 to 8 (some targets start higher). Default: 4.3.",
            metavar="N",
            rich_help_panel=FEWER,
        ),
    ] = None,
    tune_iterations: Annotated[
        int | None,
        typer.Option(
            help="With --precision mixed: iterations of self-distillation. Default: 1000.",
            metavar="N",
            rich_help_panel=FEWER,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="For calibrated and mixed precisions: text file with one prompt per line. Calibrated ones also take an .npz "
            "of arrays '<component>.<input>'.",
            metavar="FILE",
            rich_help_panel=FEWER,
        ),
    ] = None,
    calibration_pictures: Annotated[
        int | None,
        typer.Option(
            help="With --precision mixed: pictures to measure and tune on. Default: 256.",
            metavar="N",
            rich_help_panel=FEWER,
        ),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            help="With --precision mixed: where layers are measured: here, processes:N or dask://host:port.",
            metavar="WHERE",
            rich_help_panel=FEWER,
        ),
    ] = None,
    fidelity: Annotated[
        bool,
        typer.Option(
            "--fidelity",
            help="Also run the fidelity gate for a target's default precision.",
            rich_help_panel=SAME_PICTURE,
        ),
    ] = False,
    fidelity_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help="Pictures of the fidelity gate. Default: 100, 8 above 512x512.",
            metavar="N",
            rich_help_panel=SAME_PICTURE,
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            help="FILE.py:FUNCTION, or MODULE:FUNCTION of an installed module, that scores pictures in the fidelity gate.",
            metavar="NAME",
            rich_help_panel=SAME_PICTURE,
        ),
    ] = None,
    resolution: Annotated[
        list[str] | None,
        typer.Option(
            help="Picture size in pixels, N or HEIGHTxWIDTH, repeatable: one bundle with a graph per size over shared weights. "
            "The first is the bundle's default. Default: the checkpoint's own size.",
            metavar="SIZE",
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            min=1,
            max=_MOST_PICTURES,
            help="Pictures that a call of student and decoder draws, for servers.",
            metavar="N",
        ),
    ] = 1,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            help="Memory that the model may use on the device, such as 5GB. Default: the profile's budget.", metavar="SIZE"
        ),
    ] = None,
    max_latency: Annotated[
        str | None,
        typer.Option(help="Take the widest sub-network whose upper latency estimate fits: 1.5s or 1500ms.", metavar="TIME"),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Time the kernel forms of the local attention on this host and take the fastest."),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file with one prompt per line, optionally a tab and a seed. Gates and preview draw the first 4 (1 above "
            "512x512), the fidelity gate draws all.",
            metavar="FILE",
            rich_help_panel=SAME_PICTURE,
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            help="Golden vectors: inputs and outputs that your own code wrote, to which reference and files are held.",
            metavar="FILE",
            rich_help_panel=SAME_PICTURE,
        ),
    ] = None,
    no_library_golden: Annotated[
        bool,
        typer.Option(
            "--no-library-golden",
            help="Do not hold components of transformers and diffusers to what the library itself computes.",
            rich_help_panel=SAME_PICTURE,
        ),
    ] = False,
    check_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Also run the saved files on another machine, such as arm64 or arm64:cortex-a53 (see `setup`). Repeatable.",
            metavar="MACHINE",
            rich_help_panel=SAME_PICTURE,
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            help="What makes noise from a seed: philox4x32-10, which every language can make (default), or torch.",
            metavar="NAME",
            rich_help_panel=YOUR_MODEL,
        ),
    ] = None,
    app: Annotated[
        list[str] | None,
        typer.Option(
            help="Also write an app that draws with the bundle: web, android, ios, triton. Repeatable.", metavar="NAME"
        ),
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the bundle.", metavar="FOLDER")] = Path(
        "bundles"
    ),
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="CPU threads, and processes side by side. Default: all; 1 converts one after the other.",
            metavar="N",
            rich_help_panel=HERE,
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            help="Private key (PEM, elliptic curve) to sign the bundle with, by OpenSSF model signing.",
            metavar="KEY",
            rich_help_panel=HERE,
        ),
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(help="The same for servers: triton, a model repository beside the bundle. Repeatable.", metavar="NAME"),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail where a picture size was not trained at; otherwise this is a warning.",
            rich_help_panel=SAME_PICTURE,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all that can be checked before work starts, print the plan and stop.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.", rich_help_panel=HERE)] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue an interrupted export of the same plan. Keep finished parts if this one is interrupted.",
            rich_help_panel=HERE,
        ),
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither read nor write the cache of converted components.", rich_help_panel=HERE)
    ] = False,
    cache_limit: Annotated[
        str,
        typer.Option(
            envvar="SNAPGEN_DEPLOY_CACHE_LIMIT",
            help="Maximum size of the cache of converted components.",
            metavar="SIZE",
            rich_help_panel=HERE,
        ),
    ] = "10GB",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Export a checkpoint for a device, run the saved files, and write the bundle if every gate passed."""
    from snapgen_deploy.checkpoint import CheckpointPlace, validate
    from snapgen_deploy.checkpoint.licences import refuse_forbidden, refuse_unknown
    from snapgen_deploy.device_profiles import load_profile
    from snapgen_deploy.golden.vectors import open_golden, refuse_without_vectors
    from snapgen_deploy.job.pictures import Asked, pictures_of
    from snapgen_deploy.job.strict import refuse_warnings
    from snapgen_deploy.latency.estimate.estimate import plan_estimator
    from snapgen_deploy.machines.registry import machine_of
    from snapgen_deploy.plan.make import make_plan
    from snapgen_deploy.quantise.settings import EXECUTOR, with_mixed
    from snapgen_deploy.system.files import stamps

    limit = parse_bytes(cache_limit, "--cache-limit")
    if sign is not None:
        from snapgen_deploy.bundle.signature import check_signing_key

        check_signing_key(sign)
    profile = load_profile(device)
    if memory_budget:
        profile = profile.with_memory_budget(parse_bytes(memory_budget, "--memory-budget"))
    place = CheckpointPlace.of(checkpoint, model)
    opened = place.open()
    checked = tuple(stamps(opened.files))
    if model.license is None:
        refuse_forbidden(opened.license, place.folders)
    refuse_unknown(opened.licences)
    validate(opened, values=False)  # here: no plan is printed for a checkpoint that cannot be exported
    if golden is None:
        refuse_without_vectors(None, opened.config)
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
        estimator=plan_estimator(opened.config, profile, size, batch),
        max_latency_ms=parse_duration(max_latency) if max_latency else None,
        batch=batch,
    )
    apps = _apps((*(app or ()), *(layout or ())), plan)
    plan = _with_noise(plan, noise, apps)
    plan = with_mixed(
        plan,
        opened,
        bits=bits,
        iterations=tune_iterations,
        calibration=calibration,
        pictures=calibration_pictures,
        executor=executor,
    )
    executor, threads = executor or EXECUTOR, threads or default_threads()
    pictures = pictures_of(opened, plan, Asked(prompts, fidelity, fidelity_samples, scorer, calibration))
    held = open_golden(golden, opened.config, plan, opened.tokenizers) if golden is not None else None
    if held is not None:
        refuse_without_vectors(held, opened.config)
    if tune:
        from snapgen_deploy.latency.estimate.tune import tune_plan

        plan = tune_plan(opened.config, plan, threads, progress(quiet=as_json))
    from snapgen_deploy.job.cache import ExportCache, export_cache_root
    from snapgen_deploy.job.request import Request

    request = Request(
        place,
        checked,
        output_dir,
        pictures.samples,
        threads,
        overwrite=overwrite,
        resume=resume,
        cache=None if no_cache else ExportCache(export_cache_root(), limit),
        calibration=pictures.calibration,
        fidelity=pictures.fidelity,
        golden=held,
        hold_to_libraries=not no_library_golden,
        sign=sign,
        check_on=tuple(dict.fromkeys(machine_of(name).key for name in check_on or ())),
        executor=executor,
    )
    if not as_json:
        _show_plan(opened, plan, pictures, executor, as_json=False)
    if strict:
        refuse_warnings(plan)
    if dry_run:
        from snapgen_deploy.job.begin import refuse_what_cannot_begin

        refuse_what_cannot_begin(request, plan, progress(quiet=as_json))
        if as_json:
            _show_plan(opened, plan, pictures, executor, as_json=True)
        return
    for kind in apps:
        kind.prepare(None)
    from snapgen_deploy.job.run import run_export
    from snapgen_deploy.latency.estimate import bundle_estimate

    try:
        result = run_export(
            request,
            plan,
            estimate_speed=partial(bundle_estimate.of_plan, profile=profile),
            progress=progress(quiet=as_json),
            counting=counting(quiet=as_json),
        )
    except GatesFailed as error:
        if not as_json:
            print_gates(error.gates)
        raise
    notes = request.cache.notes if request.cache is not None else []
    written = [_write_app(kind, result.bundle, overwrite=overwrite) for kind in apps]
    if as_json:
        said = {"notes": notes, "warnings": warnings_of(result.bundle.manifest)}
        print_json(result_as_dict(result) | said | ({"apps": [str(folder) for folder in written]} if written else {}))
    else:
        print_result(result)
        for folder in written:
            say(f"app: {folder}")
        for note in notes:
            say(note, "yellow")
        say(result.bundle.manifest["compared_with"], "yellow" if "golden" not in result.bundle.manifest else "")


def _apps(names: Sequence[str], plan: ExportPlan) -> list[App]:
    """The apps that are to be written, each of which draws with a target of the plan."""
    from snapgen_deploy.apps.registry import app_of
    from snapgen_deploy.system.documents import several

    found, exported = [app_of(name) for name in names], {target.key for target in plan.targets}
    for kind in found:
        if exported.isdisjoint(kind.targets):
            wanted, first = several(list(kind.targets), " or "), kind.targets[0]
            raise BadInput(f"--app {kind.name} draws with {wanted}, which is not exported: add --target {first}")
    return found


def _write_app(kind: App, bundle: Bundle, *, overwrite: bool) -> Path:
    from snapgen_deploy.apps.registry import app_folder, write_app

    return write_app(kind, bundle, app_folder(bundle.path, kind.name), overwrite=overwrite)


def _with_noise(plan: ExportPlan, noise: str | None, apps: Sequence[App]) -> ExportPlan:
    from snapgen_deploy.models.noise import GENERATORS

    if noise is not None and noise not in GENERATORS:
        raise BadInput(f"--noise: got '{noise}', expected one of {', '.join(GENERATORS)}")
    if apps:
        from snapgen_deploy.apps.registry import APP_NOISE

        if noise not in (None, APP_NOISE):
            raise BadInput(f"--noise {noise}: --app {apps[0].name} makes {APP_NOISE} only; leave --noise out")
    return plan if noise is None else replace(plan, noise=noise)


def _show_plan(checkpoint: Checkpoint, plan: ExportPlan, pictures: Pictures, executor: str, *, as_json: bool) -> None:
    """Print the plan, the memory that exporting needs here, and notes about prompts."""
    from snapgen_deploy.cli.devices import plan_as_dict, render_plan
    from snapgen_deploy.job import memory
    from snapgen_deploy.system.host_memory import available_bytes

    predictions, available = memory.predict(checkpoint.config, plan, executor), available_bytes()
    if as_json:
        said = {"export_memory": memory.as_dict(predictions, available), "notes": list(checkpoint.notes)}
        print_json(plan_as_dict(plan) | said)
        return
    for note in checkpoint.notes:
        say(note, "yellow")
    here = memory.line(memory.largest(predictions), available)  # about this computer, so it is not in the bundle
    render_plan(replace(plan, reasons=(*plan.reasons, here)), out())
    if checkpoint.config.text_encoders and not checkpoint.reads_prompts:
        say(NO_TOKENIZER, "yellow")
    if pictures.given > (many := len(pictures.samples)):
        more = f", the fidelity gate {len(pictures.fidelity.samples)} pictures" if pictures.judged else ""
        say(f"gates and preview draw {many} of the {pictures.given} prompts{more}", "yellow")
