"""`python -m snapgen_deploy.golden FILE.py:FUNCTION -o golden.safetensors`: golden vectors from your own modules.

FUNCTION gets a `Recorder` and runs your code while it watches (docs/golden.md has one).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from snapgen_deploy.asked import AskedModel, asked_options
from snapgen_deploy.checkpoint import CheckpointPlace
from snapgen_deploy.errors import BadInput, SnapgenError
from snapgen_deploy.golden.recorder import Recorder
from snapgen_deploy.golden.vectors import open_golden
from snapgen_deploy.system.functions import EXPECTED, function_of
from snapgen_deploy.system.quiet import first_line


def write_golden_vectors(words: list[str] | None = None) -> int:
    """Record, write, and check against a checkpoint where one is given; returns the exit code."""
    parser = argparse.ArgumentParser("python -m snapgen_deploy.golden", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("function", metavar="FUNCTION", help=f"{EXPECTED.removeprefix('expected ')}; it takes a Recorder")
    parser.add_argument("--output", "-o", type=Path, default=Path("golden.safetensors"), metavar="FILE", help="file to write")
    parser.add_argument("--width", default="", metavar="NAME", help="sub-network that the student is")
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="checkpoint whose ports the file is to fit")
    _add_model(parser)
    given = parser.parse_args(words)
    try:
        recorder = Recorder(given.width)
        _record(given.function, recorder)
        recorder.save(given.output)
        model = AskedModel(**{o.name: getattr(given, o.name) for o in asked_options()})
        if given.checkpoint is None and model != AskedModel():
            raise BadInput("what is said of a model needs --checkpoint, to which the file is to fit")
        if given.checkpoint is not None:
            opened = CheckpointPlace.of(given.checkpoint, model).open()
            open_golden(given.output, opened.config, tokenizers=opened.tokenizers)
    except SnapgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{given.output}: " + ", ".join(f"{name} {list(rows.shape)}" for name, rows in recorder.arrays().items()))
    return 0


def _add_model(parser: argparse.ArgumentParser) -> None:
    """The options of `AskedModel`."""
    for o in asked_options():
        name = f"--{o.name.replace('_', '-')}"
        if o.kind is bool:
            parser.add_argument(name, action="store_true", help=o.said.help)
            continue
        kind, action = Path if o.kind == Path | None else str, "append" if o.kind == list[str] | None else "store"
        parser.add_argument(name, type=kind, action=action, metavar=o.said.metavar, help=o.said.help)


def _record(name: str, recorder: Recorder) -> None:
    """Call a user's function with a recorder; whatever it raises is one line."""
    function = function_of(name, "FUNCTION", "a function of a Recorder")
    try:
        function(recorder)
    except SnapgenError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise BadInput(f"{name}: {type(error).__name__}: {first_line(error)}") from error


if __name__ == "__main__":
    sys.exit(write_golden_vectors())
