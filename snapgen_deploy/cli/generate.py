"""`snapgen-deploy generate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snapgen_deploy.cli.console import print_json, progress, say
from snapgen_deploy.cli.options import AsJson, Verbose
from snapgen_deploy.cli.parsing import parse_resolution
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.processors import default_threads

if TYPE_CHECKING:
    from snapgen_deploy.bundle.draw import WantedPicture


def generate(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `export` wrote.")],
    *,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What to draw; repeatable. Leave it out if the bundle has no text encoder; see --embeddings.", metavar="TEXT"
        ),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Seed of the noise, below 2^63; one for all prompts, or one for each. One seed, one picture on every target. "
            "Default: 0.",
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="NAME or NAME:VARIANT. Default: the quickest that runs here.")] = None,
    resolution: Annotated[
        str | None, typer.Option(help="One of the bundle's picture sizes, N or HEIGHTxWIDTH. Default: its first.")
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="With guidance: what to draw away from. Default: the bundle's own.", metavar="TEXT"),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="With guidance: its scale, 0 or more; 1 draws the prompt alone. Default: the bundle's own.", metavar="S"
        ),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help=".npz with the text streams that the bundle does not encode: NAME (1, L, D) and NAME_mask (1, L) for each, "
            "NAME_pooled (1, P) where the student takes one; with guidance also negative.NAME and so on."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG file to write; of several, NAME-1.png, NAME-2.png, …")
    ] = Path("out.png"),
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: all.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Draw pictures with a bundle's own files."""
    from snapgen_deploy.bundle.draw import Guidance, choose_target, draw, save_png
    from snapgen_deploy.bundle.reader import check_hashes, open_bundle
    from snapgen_deploy.drawing.prompts import SEEDS
    from snapgen_deploy.plan.sizes import size_name
    from snapgen_deploy.system.files import read_arrays

    if too_large := [one for one in seed or () if one >= SEEDS]:
        raise BadInput(f"--seed: got {too_large[0]}, expected a whole number below 2^63")
    wanted = _wanted(prompt or [None], seed or [0])
    whole = open_bundle(bundle)
    check_hashes(whole)  # a runtime may draw something else from a damaged file, or crash
    opened = whole.at(size_name(parse_resolution(resolution)) if resolution else None)
    key = choose_target(opened, target)
    if output.suffix.lower() != ".png" or not output.parent.is_dir():
        raise BadInput(f"output: got {output}, expected a .png file in a folder that exists")
    given = read_arrays(embeddings, f"--embeddings {embeddings}") if embeddings else {}
    with progress(quiet=as_json)(f"drawing with {key}"):
        away = Guidance(guidance, negative_prompt)
        pictures = draw(opened, key, wanted, threads or default_threads(), given, guidance=away)
        places = [output.with_stem(f"{output.stem}-{i + 1}") for i in range(len(pictures))] if len(pictures) > 1 else [output]
        for picture, place in zip(pictures, places, strict=True):
            save_png(picture, place)
    size = pictures[0].shape
    if as_json:
        told = [
            {"picture": str(place), "target": key, "prompt": one.prompt, "seed": one.seed, "size": list(size[:2])}
            for place, one in zip(places, wanted, strict=True)
        ]
        print_json(told[0] if len(told) == 1 else {"pictures": told})
        return
    for place, one in zip(places, wanted, strict=True):
        say(f"{place}: {size_name(size)}, {key}, seed {one.seed}")
    if spare := -len(wanted) % opened.batch:
        say(f"a call draws {opened.batch} pictures: {spare} of the last call were filled up and dropped", "yellow")


def _wanted(prompts: Sequence[str | None], seeds: Sequence[int]) -> list[WantedPicture]:
    """The pictures: prompts with their seeds, where one of either is for all."""
    from snapgen_deploy.bundle.draw import WantedPicture

    count = max(len(prompts), len(seeds))
    if {len(prompts), len(seeds)} - {1, count}:
        raise BadInput(
            f"got {len(prompts)} --prompt and {len(seeds)} --seed, expected one seed for all prompts, or one for each"
        )
    return [WantedPicture(prompts[i % len(prompts)], seeds[i % len(seeds)]) for i in range(count)]
