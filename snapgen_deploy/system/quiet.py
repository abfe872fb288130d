"""Suppresses the warnings of libraries, and shortens their errors."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from snapgen_deploy.system.documents import LONGEST_REASON, cut


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log lines below ERROR."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or the error's type.

    >>> first_line(ValueError("bad shape"))
    'bad shape'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def reason_of(error: BaseException) -> str:
    """The same, as long as a message of ours has room for it.

    >>> reason_of(ValueError()), len(reason_of(ValueError("x" * 1000)))
    ('ValueError', 160)
    """
    return cut(first_line(error), LONGEST_REASON)
