"""Without `-v` nothing that a library prints reaches the screen, from this process or those that it starts."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from io import TextIOWrapper
from typing import TextIO


def silence_libraries() -> None:
    """Suppress warnings, log lines and what native code prints; `sys.stdout` and `sys.stderr` alone still reach the screen.

    Descriptors 1 and 2 lead nowhere from now on, here and in child processes, which inherit them. A library that changes the
    filters of warnings changes nothing.
    """
    warnings.showwarning = lambda *_, **__: None
    logging.disable(logging.CRITICAL)
    sys.stdout, sys.stderr = (_alone(stream, number) for number, stream in ((1, sys.stdout), (2, sys.stderr)))


def _alone(stream: TextIO, number: int) -> TextIO:
    """`stream` on a descriptor of its own; as it is where it does not use descriptor `number`."""
    stream.flush()
    if stream.fileno() != number:
        return stream
    # standard error keeps nothing back: what a full device does not take is not tried again when the process ends
    own = open(os.dup(number), "wb", buffering=0 if number == 2 else -1)  # noqa: SIM115
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), number)
    return TextIOWrapper(
        own, encoding=stream.encoding, errors=stream.errors, line_buffering=own.isatty(), write_through=number == 2
    )
