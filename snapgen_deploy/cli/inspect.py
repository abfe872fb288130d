"""`snapgen-deploy inspect`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from snapgen_deploy.asked import AskedModel
from snapgen_deploy.cli.console import NO_TOKENIZER, UNTRAINED, megabytes, new_table, out, plain, print_json, progress, say
from snapgen_deploy.cli.options import AsJson, Verbose, with_your_model
from snapgen_deploy.system.documents import several

if TYPE_CHECKING:
    from snapgen_deploy.checkpoint import Checkpoint, CheckpointPlace, TensorInfo


TITLES = {"kv_heads": "KV heads"}
CAUSE_SECONDS = 300.0  # to look for the cause of each component that disagrees with golden vectors


@with_your_model
def inspect(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Checkpoint, or an embedded one: shapes, the default, or shapes-unet.")
    ] = None,
    *,
    model: AskedModel,
    golden: Annotated[
        Path | None,
        typer.Option(help="Golden vectors to hold the reference against; names the likely cause where it disagrees."),
    ] = None,
    width: Annotated[
        str | None, typer.Option(help="With --golden: the sub-network. Default: the file's, else the widest.")
    ] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Their tensors beside ours: what matched by which rule, and what nearly fits.")
    ] = False,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Draft a key map from shapes, order and usual names, for you to check.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With --suggest: write the key map to this file.", metavar="FILE")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Read every tensor and check that it is finite.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show a checkpoint's components, widths, parameters, bytes, dtypes and configuration."""
    from snapgen_deploy.checkpoint import CheckpointPlace, validate
    from snapgen_deploy.errors import BadInput, WrongFile

    if width is not None and golden is None:
        raise BadInput("--width belongs to --golden; add --golden FILE, or leave it out")
    if output is not None and not suggest:
        raise BadInput("--output belongs to --suggest; add --suggest, or leave it out")
    if names and suggest:
        raise BadInput("--names and --suggest: expected one of them")
    if model.module is not None and (names or suggest):
        raise BadInput("--names and --suggest are for key maps, which do not go with --module")
    place = CheckpointPlace.of(checkpoint, model)
    if names or suggest:
        from snapgen_deploy.cli.names import show_names, suggest_map

        if suggest:
            suggest_map(place, output, as_json=as_json)
        else:
            show_names(place, as_json=as_json)
        return
    opened = place.open()
    data = summary(opened)
    if not as_json:
        _print(data)  # before the check, so that a broken checkpoint is shown too
    with progress(quiet=as_json)("checking every tensor" if check else "checking names, shapes and dtypes"):
        try:
            validate(opened, values=check)
        except WrongFile as error:
            if not as_json:  # where the object has them
                for problem in error.problems:
                    say(plain(problem))
            raise
    held = None
    if golden is not None:
        held = _hold(opened, place, golden, width, quiet=as_json)
        data["golden"] = held
    if as_json:
        print_json(data)
    else:
        done = "names, shapes, dtypes and every value" if check else "names, shapes and dtypes; --check reads every value too"
        out().print(f"[green]valid[/]: {done}")
        if held is not None:
            _print_golden(held)
    if held is not None and any(g["verdict"] == "failed" for g in held["gates"]):
        raise typer.Exit(1)


def _hold(checkpoint: Checkpoint, place: CheckpointPlace, golden: Path, width: str | None, *, quiet: bool) -> dict[str, Any]:
    """Gates and causes of a checkpoint's reference on golden vectors."""
    from snapgen_deploy.check.golden import GoldenTask, hold_reference
    from snapgen_deploy.checkpoint.networks import widths_of
    from snapgen_deploy.errors import BadInput
    from snapgen_deploy.golden.vectors import open_golden
    from snapgen_deploy.system.processors import default_threads

    vectors, widths = open_golden(golden, checkpoint.config, tokenizers=checkpoint.tokenizers), widths_of(checkpoint)
    chosen = width or vectors.width or widths[-1]
    if chosen not in widths:
        raise BadInput(f"--width: got '{chosen}', the checkpoint holds {several(list(widths))}")
    task = GoldenTask(place, chosen, vectors, default_threads(), CAUSE_SECONDS)
    with progress(quiet=quiet)("holding the reference against golden vectors") as on_progress:
        held = hold_reference(task, on_progress)
    said = {"width": chosen, "computed_in": vectors.computed_in, "rows": vectors.counts}
    return said | {"gates": [g.as_dict() for g in held.gates], "causes": held.causes, "found": held.found}


def _print_golden(held: Mapping[str, Any]) -> None:
    """A line for every gate, and one for the cause of each that failed."""
    from snapgen_deploy.check.gates import limit_text

    console = out()
    console.print(f"golden vectors, computed in {held['computed_in']}, width {held['width']}:")
    for g in held["gates"]:
        value = "not finite" if g["value"] is None else f"{g['value']:.3g}"
        colour = "red" if g["verdict"] == "failed" else "green"
        line = f"{g['component']} {g['name']} {value}, limit {limit_text(g['name'], g['limit'])}"
        console.print(f"  [{colour}]{g['verdict']}[/] {escape(line.replace('_', ' '))}")
        if g["component"] in held["causes"] and g["verdict"] == "failed":
            console.print(f"    {escape(held['causes'][g['component']])}", soft_wrap=True)


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `inspect` prints, as plain data."""
    from snapgen_deploy.families.names import DECODER, TEXT_ENCODER
    from snapgen_deploy.families.registry import components_of, family_of
    from snapgen_deploy.models.serialise import config_to_dict

    config, specs = checkpoint.config, components_of(checkpoint.config)
    components = {}
    for prefix in dict.fromkeys([*(spec.name for spec in specs.largest_first), DECODER, TEXT_ENCODER]):
        infos = {n: i for n, i in checkpoint.tensors.items() if n.startswith(f"{prefix}.")}
        if infos:
            components[prefix] = _component(infos)
    widths = {}
    for width, ratio in config.student.widths.items():
        count = specs.denoiser.parameters(width)
        widths[width] = {
            "ratio": ratio,
            **family_of(config).facts(config, width),
            "parameters": count,
            "bytes_fp16": 2 * count,
            "bytes_fp32": 4 * count,
        }
    return {
        "path": str(checkpoint.path),
        "sha256": checkpoint.sha256(),
        "name": config.name,
        "trained": config.trained,
        "license": checkpoint.license,
        "licenses": dict(checkpoint.licences),
        "tokenizer": bool(checkpoint.tokenizers) and all(s.name in checkpoint.tokenizers for s in specs.encoders),
        "notes": list(checkpoint.notes),
        "components": components,
        "widths": widths,
        "config": config_to_dict(config),
    }


def _component(infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    return {
        "tensors": len(infos),
        "parameters": sum(math.prod(i.shape) for i in infos.values()),
        "bytes": sum(i.nbytes for i in infos.values()),
        "dtypes": sorted({i.dtype for i in infos.values()}),
    }


def _print(data: dict[str, Any]) -> None:
    from snapgen_deploy.checkpoint.licences import licences_line

    console = out()
    trained = "trained" if data["trained"] else "[yellow]not trained[/yellow]"
    console.print(
        f"[bold]{escape(data['name'])}[/bold] {escape(data['path'])}   {trained}, "
        f"licence {escape(licences_line(data['licenses']))}",
        soft_wrap=True,
    )
    encoders = _encoders(data["config"])
    if encoders and not data["tokenizer"]:
        console.print(NO_TOKENIZER, style="yellow")
    if not data["trained"]:
        console.print(UNTRAINED, style="yellow")
    for note in data["notes"]:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    console.print(f"sha256 {data['sha256']}", style="dim")
    table = new_table(title="components")
    for column in ("component", "tensors", "parameters", "bytes", "dtype"):
        table.add_column(column, justify="left" if column in ("component", "dtype") else "right")
    for name, c in data["components"].items():
        table.add_row(name, str(c["tensors"]), f"{c['parameters']:,}", megabytes(c["bytes"]), ", ".join(c["dtypes"]))
    console.print(table)
    table = new_table(title="widths of the student")
    common = ("ratio", "parameters", "bytes_fp16", "bytes_fp32")
    facts = [name for name in next(iter(data["widths"].values())) if name not in common]  # of the student's family
    for column in ("width", "ratio", *(TITLES.get(name, name) for name in facts), "parameters", "fp16", "fp32"):
        table.add_column(column, justify="left" if column == "width" else "right")
    for name, w in data["widths"].items():
        sizes = (megabytes(w["bytes_fp16"]), megabytes(w["bytes_fp32"]))
        table.add_row(name, f"{w['ratio']:g}", *(str(w[fact]) for fact in facts), f"{w['parameters']:,}", *sizes)
    console.print(table)
    table = new_table(title="configuration", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    sections = {name: value for name, value in data["config"].items() if isinstance(value, Mapping)} | encoders
    for section, values in sections.items():
        for i, (name, value) in enumerate(values.items()):
            table.add_row(section.replace("_", " ") if i == 0 else "", name.replace("_", " "), _shown(value))
    console.print(table)


def _encoders(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The configurations of all text encoders, by component."""
    from snapgen_deploy.families.names import TEXT_ENCODER, numbered

    listed = [config[TEXT_ENCODER], *config.get("other_text_encoders", ())]
    return {numbered(TEXT_ENCODER, i): encoder for i, encoder in enumerate(listed) if encoder is not None}


def _shown(value: Any) -> str:
    """A configuration value as text: lists and tables without brackets."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(v)}" for name, v in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_shown(v) for v in value) if value and isinstance(value[0], Mapping) else ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
