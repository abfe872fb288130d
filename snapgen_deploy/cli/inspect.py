"""`snapgen-deploy inspect`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapgen_deploy.cli.console import megabytes, out, print_json, progress

if TYPE_CHECKING:
    from snapgen_deploy.checkpoint import Checkpoint, TensorInfo


def inspect(
    checkpoint: Annotated[Path | None, typer.Argument(help="Checkpoint; the embedded one when left out.")] = None,
    key_map: Annotated[Path | None, typer.Option(help="Renames the keys of a foreign checkpoint.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Read every tensor and check that it is finite.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of errors.")] = False,
) -> None:
    """Show a checkpoint's components, widths, parameters, bytes, dtypes and configuration."""
    from snapgen_deploy.checkpoint import open_checkpoint, validate

    opened = open_checkpoint(checkpoint, key_map)
    with progress(quiet=as_json)("checking"):
        validate(opened, values=check)
    data = summary(opened)
    if as_json:
        print_json(data)
    else:
        _print(data)


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `inspect` shows, as plain data."""
    import torch

    from snapgen_deploy.models import DiT
    from snapgen_deploy.models.serialise import config_to_dict

    config = checkpoint.config
    components = {}
    for prefix in ("student", "decoder", "text_encoder"):
        infos = {n: i for n, i in checkpoint.tensors.items() if n.startswith(f"{prefix}.")}
        if infos:
            components[prefix] = _component(infos)
    widths = {}
    for width in config.student.widths:
        with torch.device("meta"):
            count = sum(p.numel() for p in DiT(config.student, width).parameters())
        student = config.student
        widths[width] = {
            "ratio": student.widths[width],
            "hidden": student.hidden_at(width),
            "heads": student.heads_at(width),
            "kv_heads": student.kv_heads_at(width),
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
        "tokenizer": checkpoint.tokenizer is not None,
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
    from rich.table import Table

    console = out()
    trained = "trained" if data["trained"] else "[yellow]not trained[/yellow]"
    console.print(
        f"[bold]{data['name']}[/bold] {data['path']}   {trained}, licence {data['license'] or 'not stated'}", soft_wrap=True
    )
    console.print(f"sha256 {data['sha256']}", style="dim")
    table = Table(title="components", title_justify="left")
    for column in ("component", "tensors", "parameters", "bytes", "dtype"):
        table.add_column(column, justify="left" if column in ("component", "dtype") else "right")
    for name, c in data["components"].items():
        table.add_row(name, str(c["tensors"]), f"{c['parameters']:,}", megabytes(c["bytes"]), ", ".join(c["dtypes"]))
    console.print(table)
    table = Table(title="widths of the student", title_justify="left")
    for column in ("width", "ratio", "hidden", "heads", "KV heads", "parameters", "fp16", "fp32"):
        table.add_column(column, justify="left" if column == "width" else "right")
    for name, w in data["widths"].items():
        sizes = (megabytes(w["bytes_fp16"]), megabytes(w["bytes_fp32"]))
        table.add_row(
            name, f"{w['ratio']:g}", str(w["hidden"]), str(w["heads"]), str(w["kv_heads"]), f"{w['parameters']:,}", *sizes
        )
    console.print(table)
    for section in ("student", "decoder", "text_encoder"):
        values = data["config"][section]
        if values is not None:
            text = ", ".join(f"{k} {v}" for k, v in values.items())
            console.print(f"[bold]{section}[/bold] {text}", style="dim", soft_wrap=True)
