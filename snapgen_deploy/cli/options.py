"""Options that several commands have, declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from snapgen_deploy.asked import AskedModel, asked_options

YOUR_MODEL = "Your model"  # panel of --help
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of errors, and what libraries print.")]
Packages = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the archives that `npm pack` writes, for computers without a connection. Default: npm's registry, "
        "once.",
        metavar="FOLDER",
    ),
]


def with_your_model(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `AskedModel` in the place of its parameter `model`."""
    own = _parameters()
    signature = inspect.signature(command, eval_str=True)
    parameters = [q for p in signature.parameters.values() for q in (own if p.name == "model" else [p])]

    @functools.wraps(command)
    def call(**given: Any) -> None:
        model = AskedModel(**{p.name: given.pop(p.name) for p in own})
        command(**given, model=model)

    vars(call)["__signature__"] = signature.replace(parameters=parameters)
    return call


def _parameters() -> list[inspect.Parameter]:
    """The options as parameters that typer reads."""
    found, annotated = [], cast(Any, Annotated)
    for o in asked_options():
        names = (f"--{o.name}",) if o.kind is bool else ()  # else typer adds one that begins with --no
        option = typer.Option(*names, help=o.said.help, metavar=o.said.metavar, rich_help_panel=YOUR_MODEL)
        kind = annotated[o.kind, option]
        found.append(inspect.Parameter(o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=kind))
    return found
