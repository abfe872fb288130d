"""The named errors of the tool; each carries the process exit code that `EXIT_CODES` documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

EXIT_CODES: Mapping[int, str] = MappingProxyType(
    {
        0: "done, and all gates passed",
        1: "a gate failed, or a regression was found",
        2: "bad usage or bad input",
        3: "refused (does not fit, not comparable) or inconclusive",
        4: "a measurement could not be made",
        70: "unexpected error",
        129: "hung up (SIGHUP)",
        130: "interrupted (Ctrl-C)",
        143: "terminated (SIGTERM)",
    }
)


class SnapgenError(Exception):
    """Base class: the message says what was found, what was expected and how to fix it, as `one_line`."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))

    def as_dict(self) -> dict[str, Any]:
        """What a caller can use besides the message, as plain data."""
        return {}


class BadInput(SnapgenError):
    """A file, option or value that cannot be used as it is."""

    exit_code = 2


class WrongFile(BadInput):
    """A file with so many problems that the message has only the first ones; `problems` are all of them, a line each."""

    def __init__(self, message: str, problems: Sequence[str]) -> None:
        super().__init__(message)
        self.problems = tuple(one_line(problem) for problem in problems)

    def as_dict(self) -> dict[str, Any]:
        """All problems."""
        return {"problems": list(self.problems)}


class GateFailed(SnapgenError):
    """An exported file differs from the reference by more than its limit."""

    exit_code = 1


class GatesFailed(GateFailed):
    """An export whose files did not hold all gates; `gates` are the values of all of them, as in a manifest."""

    def __init__(self, message: str, gates: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.gates = gates

    def as_dict(self) -> dict[str, Any]:
        """The gates; there is no bundle."""
        return {"bundle": None, "gates": self.gates}


class Refused(SnapgenError):
    """The request is well formed, but carrying it out cannot end well (does not fit, not comparable)."""

    exit_code = 3


class MeasurementFailed(SnapgenError):
    """A runtime or device did not deliver the measurement."""

    exit_code = 4


def one_line(text: str) -> str:
    """The text on one line, with escapes for what a terminal would act on instead of showing: files hold such names.

    >>> one_line("tensor 'a\\n  b': got \\x1b[31m")
    "tensor 'a b': got \\\\x1b[31m"
    """
    lines = text.splitlines()
    line = text if len(lines) < 2 and text.isprintable() else " ".join(filter(None, map(str.strip, lines)))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def nearest(got: str, known: Iterable[str]) -> str:
    """The end of a message: `; did you mean X?` where a known name is close, else nothing."""
    import difflib

    near = difflib.get_close_matches(got, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
