"""What code that knows no terminal calls around a piece of work; `cli.console.progress` shows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

OnStep = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much
Counting = Callable[[], AbstractContextManager[OnStep]]  # for work of many like pieces; `cli.console.counting` shows a bar
OnProgress = Callable[[int, int], None]  # how much of a work of like pieces is done, of how much
Progress = Callable[
    [str], AbstractContextManager[OnProgress]
]  # takes what is being done, e.g. for a line with a spinner and a clock


def ignore_progress(done: int, total: int) -> None:
    """Tells nobody."""


def no_progress(what: str) -> AbstractContextManager[OnProgress]:
    """Progress that shows nothing."""
    return nullcontext(ignore_progress)


def silent() -> AbstractContextManager[OnStep]:
    """Counting that shows nothing."""
    return nullcontext(lambda what, done, total: None)
