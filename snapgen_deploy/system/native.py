"""Calls into native code that panics: Rust prints a stack to standard error and raises what is no `Exception`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()  # two that change the descriptor at once would leave it closed


class NativeError(Exception):
    """What native code said when it panicked."""


@contextmanager
def no_panic() -> Iterator[None]:
    """Turn a panic into a NativeError; what is printed meanwhile to the descriptor of standard error goes nowhere."""
    with _LOCK, _without_standard_error():
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # pyo3's PanicException, which no module exports
            raise NativeError(str(error)) from None


@contextmanager
def no_panic_escapes() -> Iterator[None]:
    """Turn a panic into a NativeError, where nobody is nearer to it."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise NativeError(str(error)) from None


@contextmanager
def _without_standard_error() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing can be printed there
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
