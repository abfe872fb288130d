"""Progress callbacks for code that knows nothing of terminals; `cli.console` shows them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

OnStep = Callable[[str, int, int], None]  # what is being done, how many pieces of it are done, of how many
Counting = Callable[[], AbstractContextManager[OnStep]]  # for work in several steps; `cli.console.counting` shows a bar
OnProgress = Callable[[int, int], None]  # how many pieces of the work are done, of how many
Progress = Callable[
    [str], AbstractContextManager[OnProgress]
]  # takes what is being done, e.g. for a line with a spinner and a clock


def ignore_progress(done: int, total: int) -> None:
    """A no-op."""


def no_progress(what: str) -> AbstractContextManager[OnProgress]:
    """Progress that shows nothing."""
    return nullcontext(ignore_progress)


def silent() -> AbstractContextManager[OnStep]:
    """Counting that shows nothing."""
    return nullcontext(lambda what, done, total: None)
