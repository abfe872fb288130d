"""Code for targets that start from a `torch.export` program: tracing, rank checks, input checks, quiet libraries."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from snapgen_deploy.errors import BadInput, Refused, SnapgenError
from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.system.quiet import first_line, quiet

if TYPE_CHECKING:
    import torch

S = TypeVar("S")

log = logging.getLogger(__name__)


@contextlib.contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Suppress what libraries print, and turn their exceptions into one RuntimeError that begins with `what`.

    File descriptor 2 is redirected as well, since native runtimes write there, and their exceptions often have only a number:
    the last suppressed error line becomes part of the message. Our own errors (`SnapgenError`) pass unchanged.

    Raises:
        RuntimeError: if the block raises another exception, which is kept as the cause.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as held:
        try:
            with _quiet(held.fileno()):
                yield
        except SnapgenError:
            raise
        except Exception as error:
            held.seek(0)
            lines = [first_line(error), *native_errors(held.read())]
            raise RuntimeError(f"{what}: {'; '.join(dict.fromkeys(lines))}") from error
        held.seek(0)
        if text := held.read().strip():
            log.debug("%s: held back: %s", what, text)


@contextlib.contextmanager
def _quiet(sink: int) -> Iterator[None]:
    """Send file descriptor 2, sys.stdout and sys.stderr to the open file `sink`; suppress warnings and logs below ERROR."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    before = os.dup(2)
    try:
        os.dup2(sink, 2)
        with (
            os.fdopen(os.dup(sink), "w", encoding="utf-8", errors="replace") as words,
            contextlib.redirect_stdout(words),
            contextlib.redirect_stderr(words),
            quiet(),
        ):
            yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def native_errors(text: str) -> list[str]:
    """The message of the last line of `text` that a native runtime wrote as `[file.cpp:line] message`."""
    lines = [line.strip() for line in text.splitlines() if ".cpp:" in line and "cpuinfo" not in line]
    return [line.rpartition("] ")[2] for line in lines[-1:]]


def parse_options(kind: type[S], target: str, options: Mapping[str, str]) -> S:
    """A dataclass of text fields from the plan's options.

    Raises:
        BadInput: if the dataclass has no field of an option's name.
    """
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(options) - set(known)):
        raise BadInput(f"{target}: unknown option {unknown[0]!r}; known are {', '.join(known)}")
    return kind(**options)


def check_offered(target: str, got: tuple[str, str], variants: Sequence[str], precisions: Sequence[str]) -> None:
    """Check that (variant, precision) is offered; the variant is '' for a target without variants.

    Raises:
        BadInput: if it is not offered.
    """
    variant, precision = got
    if variant not in (variants or ("",)) or precision not in precisions:
        raise BadInput(
            f"{target}: got variant {variant!r} and precision {precision!r}; "
            f"offered are {', '.join(variants) or 'no variants'} and {', '.join(precisions)}"
        )


def trace(component: Component) -> torch.export.ExportedProgram:
    """`torch.export` of the component's module with static shapes; its outputs are checked against the ports.

    Non-strict tracing: the rewritten networks are straight-line code, and the strict way costs more time and memory for
    the same graph.

    Raises:
        RuntimeError: if the traced outputs are not the component's.
    """
    import torch

    with torch.no_grad():
        program = torch.export.export(component.module, component.example, strict=False)
    nodes = {node.name: node for node in program.graph.nodes}
    got = [_shape_and_type(nodes[name]) for name in program.graph_signature.user_outputs if isinstance(name, str)]
    expected = [(p.shape, p.dtype) for p in component.outputs]
    if got != expected:
        raise RuntimeError(f"outputs of the traced graph are {got}, expected {expected}")
    return program


def _shape_and_type(node: torch.fx.Node) -> tuple[tuple[int, ...], str]:
    value = node.meta["val"]
    return tuple(int(n) for n in value.shape), str(value.dtype).removeprefix("torch.")


def check_rank(nodes: Iterable[torch.fx.Node], limit: int, what: str) -> None:
    """Check that no tensor has more than `limit` dimensions.

    Raises:
        Refused: if an operation makes such a tensor; the message names the first one.
    """
    import torch

    for node in nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, tuple | list) else (values,):
            if isinstance(value, torch.Tensor) and value.dim() > limit:
                raise Refused(
                    f"{what}: operation '{node.name}' ({node.target}) makes a tensor of rank {value.dim()} "
                    f"{list(value.shape)}; the limit is {limit}: split its reshapes and permutes"
                )


def check_inputs(file: str, ports: Sequence[Port], inputs: Mapping[str, np.ndarray]) -> None:
    """Check that `inputs` are exactly the ports.

    Raises:
        BadInput: if a name, dtype or shape differs.
    """
    if set(inputs) != {p.name for p in ports}:
        raise BadInput(f"{file}: got inputs {sorted(inputs)}, expected {[p.name for p in ports]}")
    for port in ports:
        array = inputs[port.name]
        if (str(array.dtype), tuple(array.shape)) != (port.dtype, port.shape):
            raise BadInput(
                f"{file}: input {port.name!r} is {array.dtype} {list(array.shape)}, expected {port.dtype} {list(port.shape)}"
            )
