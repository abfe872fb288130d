"""What code that knows no terminal calls around a piece of work; `cli.console.progress` shows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

Progress = Callable[[str], AbstractContextManager[None]]  # takes what is being done, e.g. for a line with a spinner and a clock
