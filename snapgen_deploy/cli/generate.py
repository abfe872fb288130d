"""`snapgen-deploy generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snapgen_deploy.cli.console import print_json, progress, say
from snapgen_deploy.cli.options import AsJson, Verbose
from snapgen_deploy.cli.parsing import parse_resolution
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.processors import default_threads


def generate(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `export` wrote.")],
    *,
    prompt: Annotated[
        str | None, typer.Option(help="What to draw. Leave it out if the bundle has no text encoder; see --embeddings.")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Seed of the noise, below 2^63. One seed, one picture on every target."),
    ] = 0,
    target: Annotated[str | None, typer.Option(help="NAME or NAME:VARIANT. Default: the quickest that runs here.")] = None,
    resolution: Annotated[
        str | None, typer.Option(help="One of the bundle's picture sizes, N or HEIGHTxWIDTH. Default: its first.")
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help=".npz with the text streams that the bundle does not encode: NAME (1, L, D) and NAME_mask (1, L) for each."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")] = Path("out.png"),
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: all.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Draw a picture with a bundle's own files."""
    from snapgen_deploy.bundle.draw import choose_target, draw, save_png
    from snapgen_deploy.bundle.reader import check_hashes, open_bundle
    from snapgen_deploy.drawing.prompts import SEEDS
    from snapgen_deploy.plan.sizes import size_name
    from snapgen_deploy.system.files import read_arrays

    if seed >= SEEDS:
        raise BadInput(f"--seed: got {seed}, expected a whole number below 2^63")

    whole = open_bundle(bundle)
    check_hashes(whole)  # a runtime may draw something else from a damaged file, or crash
    opened = whole.at(size_name(parse_resolution(resolution)) if resolution else None)
    key = choose_target(opened, target)
    if output.suffix.lower() != ".png" or not output.parent.is_dir():
        raise BadInput(f"output: got {output}, expected a .png file in a folder that exists")
    given = read_arrays(embeddings, f"--embeddings {embeddings}") if embeddings else {}
    with progress(quiet=as_json)(f"drawing with {key}"):
        picture = draw(opened, key, prompt, seed, threads or default_threads(), given)
        save_png(picture, output)
    if as_json:
        print_json({"picture": str(output), "target": key, "prompt": prompt, "seed": seed, "size": list(picture.shape[:2])})
    else:
        say(f"{output}: {size_name(picture.shape)}, {key}, seed {seed}")
