"""`snapgen-deploy init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snapgen_deploy.cli.console import UNTRAINED, byte_progress, megabytes, out, parse_bytes, print_json, say
from snapgen_deploy.cli.options import AsJson, Verbose
from snapgen_deploy.errors import BadInput, nearest


def init(
    *,
    preset: Annotated[str | None, typer.Option(help="Configuration: snapgenpp (full scale) or shapes.")] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="File with a configuration of your own, JSON or TOML.", metavar="FILE"),
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder of the new checkpoint.")],
    seed: Annotated[int, typer.Option(min=0, help="One seed gives the same weights.")] = 0,
    dtype: Annotated[str, typer.Option(help="Type of the stored weights: fp32, fp16 or bf16.")] = "fp32",
    shard_size: Annotated[str, typer.Option(help="Maximum data per file, such as 500MB or 1GB.")] = "1GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write an untrained checkpoint with seeded weights, to try every step at scale before training is done."""
    from snapgen_deploy.checkpoint.about import read_configuration
    from snapgen_deploy.checkpoint.directory import new_directory
    from snapgen_deploy.checkpoint.initial import WEIGHT_DTYPES, initial_bytes, write_initial
    from snapgen_deploy.models import PRESETS

    if (preset is None) == (config is None):
        raise BadInput(f"--preset and --config: expected one of them; presets are {' and '.join(PRESETS)}")
    if preset is not None and preset not in PRESETS:
        raise BadInput(f"unknown preset '{preset}': expected {' or '.join(PRESETS)}{nearest(preset, PRESETS)}")
    if dtype not in WEIGHT_DTYPES:
        raise BadInput(f"--dtype: got '{dtype}', expected one of {', '.join(WEIGHT_DTYPES)}")
    largest = parse_bytes(shard_size, "--shard-size")
    if config is not None:
        model, tokenizers = read_configuration(config)
    else:
        assert preset is not None
        model, tokenizers = PRESETS[preset](), []
    name = preset or model.name
    total = initial_bytes(model, dtype)
    with (
        new_directory(output_dir, total, overwrite=overwrite) as root,
        byte_progress(f"writing {name}, {dtype}", total, quiet=as_json) as advance,
    ):
        shards = write_initial(
            model, root, seed=seed, max_shard_bytes=largest, dtype=dtype, tokenizers=tokenizers, on_tensor=advance
        )
    if as_json:
        data = {"path": str(output_dir), "preset": preset, "seed": seed, "dtype": dtype, "bytes": total, "trained": False}
        print_json(data | {"shards": [s.name for s in shards]})
        return
    many = f"{len(shards)} shard{'s' if len(shards) > 1 else ''}"
    say(f"{output_dir}: {name}, {dtype}, {megabytes(total)} in {many}, seed {seed}")
    out().print(UNTRAINED, style="yellow")
