"""`snapgen-deploy init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snapgen_deploy.cli.console import UNTRAINED, byte_progress, megabytes, out, parse_bytes, print_json, say
from snapgen_deploy.cli.options import AsJson, Verbose
from snapgen_deploy.errors import BadInput, nearest


def init(
    preset: Annotated[str, typer.Option(help="Configuration: snapgenpp (full scale) or shapes.")],
    *,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder of the new checkpoint.")],
    seed: Annotated[int, typer.Option(min=0, help="One seed gives the same weights.")] = 0,
    dtype: Annotated[str, typer.Option(help="Type of the stored weights: fp32, fp16 or bf16.")] = "fp32",
    shard_size: Annotated[str, typer.Option(help="Maximum data per file, such as 500MB or 1GB.")] = "1GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write an untrained checkpoint with seeded weights, to try every step at scale before training is done."""
    from snapgen_deploy.checkpoint.directory import new_directory
    from snapgen_deploy.checkpoint.initial import WEIGHT_DTYPES, initial_bytes, write_initial
    from snapgen_deploy.models import PRESETS

    if preset not in PRESETS:
        raise BadInput(f"unknown preset '{preset}': expected {' or '.join(PRESETS)}{nearest(preset, PRESETS)}")
    if dtype not in WEIGHT_DTYPES:
        raise BadInput(f"--dtype: got '{dtype}', expected one of {', '.join(WEIGHT_DTYPES)}")
    largest = parse_bytes(shard_size, "--shard-size")
    config = PRESETS[preset]()
    total = initial_bytes(config, dtype)
    with (
        new_directory(output_dir, total, overwrite=overwrite) as root,
        byte_progress(f"writing {preset}, {dtype}", total, quiet=as_json) as advance,
    ):
        shards = write_initial(config, root, seed=seed, max_shard_bytes=largest, dtype=dtype, on_tensor=advance)
    if as_json:
        data = {"path": str(output_dir), "preset": preset, "seed": seed, "dtype": dtype, "bytes": total, "trained": False}
        print_json(data | {"shards": [s.name for s in shards]})
        return
    many = f"{len(shards)} shard{'s' if len(shards) > 1 else ''}"
    say(f"{output_dir}: {preset}, {dtype}, {megabytes(total)} in {many}, seed {seed}")
    out().print(UNTRAINED, style="yellow")
