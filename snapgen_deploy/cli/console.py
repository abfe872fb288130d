"""What all commands share: printing results, showing progress, reporting errors, reading common options."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import sys
import threading
import time
import traceback as tracebacks
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement

from snapgen_deploy.errors import BadInput, SnapgenError, one_line
from snapgen_deploy.system.documents import LONGEST_LINE, LONGEST_NAME, cut
from snapgen_deploy.system.files import write_text
from snapgen_deploy.system.host_memory import is_out_of_memory
from snapgen_deploy.system.progress import Counting, OnProgress, OnStep, Progress, ignore_progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.table import Table
    from rich.text import Text

LONGEST_MESSAGE = 4000  # characters, of what is no fault of a file: gates that failed are listed, and each is worth reading
UNEXPECTED = 70  # exit code of an unexpected error (sysexits.h: EX_SOFTWARE)
# System errors caused by a path that the user chose, wherever they occur.
PLACES = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EROFS)
LOG_INTERVAL, LOG_FROM = 60.0, 10.0  # seconds between log lines about one piece of work; shortest work that is logged
UNTRAINED = "untrained weights: pictures are noise"
NO_TOKENIZER = "no tokenizer: prompts cannot be read, gates and preview run on random tokens"


class WholeWords(Console):
    """Breaks lines between words only: a path, a name or a digest that is longer than the line is left whole.

    `soft_wrap` text is one line in a file or pipe; a terminal, which would break it anywhere, gets it wrapped at words.
    """

    def print(self, *objects: Any, **settings: Any) -> None:
        """As `Console.print`."""
        from rich.table import Table
        from rich.text import Text

        whole = settings.get("soft_wrap", False) and not self.is_terminal
        if len(objects) == 1 and isinstance(objects[0], str | Text) and not whole:
            line = objects[0]
            text = self.render_str(line, markup=settings.get("markup")) if isinstance(line, str) else line
            objects = (Text("\n").join(part for line in text.split() for part in self._wrapped(line)),)
            settings["soft_wrap"] = True
        for table in objects:
            if isinstance(table, Table):
                self._fit(table)
                settings["crop"] = False
        super().print(*objects, **settings)

    def _wrapped(self, line: Text) -> list[Text]:
        """A line in pieces of the console's width, and of single words that are wider."""
        breaks, start = [], 0
        for word in re.finditer(r"\S+", line.plain):
            if line.plain[start : word.start()].strip() and cell_len(line.plain[start : word.end()]) > self.width:
                breaks.append(start := word.start())
        pieces = line.divide(breaks)
        for piece in pieces[:-1]:
            piece.rstrip()
        return list(pieces)

    def _fit(self, table: Table) -> None:
        """Set the widths of columns: the widest give way, none gets narrower than its longest word.

        A table whose words need more than the line is as wide as they need.
        """
        table.width = None
        for column in table.columns:
            column.width = None
        options = self.options.update(max_width=10_000)
        sizes = [[Measurement.get(self, options, cell) for cell in (c.header, *c.cells)] for c in table.columns]
        widths = [max(size.maximum for size in cells) for cells in sizes]
        longest = [max(size.minimum for size in cells) for cells in sizes]
        least = [full if c.no_wrap else word for c, full, word in zip(table.columns, widths, longest, strict=True)]
        frame = Measurement.get(self, options, table).maximum - sum(widths)
        while sum(widths) + frame > self.width and widths != least:
            widest = max((i for i, width in enumerate(widths) if width > least[i]), key=widths.__getitem__)
            widths[widest] -= 1
        for column, width in zip(table.columns, widths, strict=True):
            column.width = width
        table.width = sum(widths) + frame


class Output(io.TextIOWrapper):
    """Standard output that reports a failed write, for example on a full disk, as BadInput with one line."""

    @classmethod
    def of(cls, stream: io.TextIOWrapper) -> Output:
        """Replace a stream, which can no longer be used then."""
        encoding, errors, line = stream.encoding, stream.errors, stream.line_buffering
        return cls(stream.detach(), encoding, errors, line_buffering=line, write_through=stream.write_through)

    def write(self, text: str, /) -> int:
        """Write text.

        Raises:
            BadInput: if the system refuses.
        """
        with _refused():
            return super().write(text)

    def flush(self) -> None:
        """Write what is buffered.

        Raises:
            BadInput: if the system refuses.
        """
        with _refused():
            super().flush()


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise BadInput(f"cannot write standard output ({error.strerror})") from None


def out() -> Console:
    """Standard output, for results."""
    return WholeWords(file=sys.stdout, highlight=False)


def err() -> Console:
    """Standard error, for progress and errors."""
    return WholeWords(file=sys.stderr, highlight=False)


def plain(value: object) -> str:
    """A name or a detail of a file that somebody else wrote, for a line of ours: it ends no line, colours nothing, and begins
    no command of a CI runner (`::error::` at the beginning of a line, which may be that of a word; `##[error]` anywhere)."""
    return re.sub(r"(?<!\S)::", ": :", one_line(" ".join(str(value).split())).replace("##[", "## ["))


def cell(value: object) -> str:
    """`plain`, for a table or a title, where brackets would be markup."""
    return escape(plain(value))


def say(text: str, style: str = "") -> None:
    """Print one line of a result as it is: brackets are not markup."""
    out().print(text, style=style, soft_wrap=True, markup=False)


def tell(text: str, style: str = "") -> None:
    """`say` on standard error."""
    err().print(text, style=style, soft_wrap=True, markup=False)


def new_table(title: str | None = None, **settings: Any) -> Table:
    """A table without frames, so that its columns fit 80 characters."""
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, **settings)


def print_json(data: Any) -> None:
    """Print one JSON object, and nothing else, on standard output.

    Raises:
        BadInput: if standard output cannot be written, for example because the disk is full.
    """
    with _refused():
        sys.stdout.write(json.dumps(data, indent=1, sort_keys=True, allow_nan=False, default=str) + "\n")
        sys.stdout.flush()


def drop_output() -> None:
    """Redirect standard output to /dev/null, so that flushing at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_error(error: Exception, *, traceback: bool, as_json: bool = False) -> int | None:
    """Print an error as one line (with `as_json` also as an object on standard output) and return its exit code.

    Returns None for exceptions that click itself must handle.
    """
    if isinstance(error, (typer.Exit, typer.Abort)) or hasattr(error, "format_message"):  # the last: usage errors
        return None
    if traceback:
        tracebacks.print_exception(error, file=sys.stderr)
    if isinstance(error, OSError) and error.filename is not None and error.errno in PLACES:
        error = BadInput(f"{os.fsdecode(error.filename)}: {error.strerror}")
    elif not isinstance(error, SnapgenError) and is_out_of_memory(error):
        error = BadInput(f"too little memory: {cut(str(error), LONGEST_NAME)}; free some, or raise the limit (ulimit -v)")
    if isinstance(error, SnapgenError):
        longest = LONGEST_LINE if isinstance(error, BadInput) else LONGEST_MESSAGE
        message, hint, code, data = _cut_middle(str(error), longest), "", error.exit_code, error.as_dict()
    else:
        message, code, data = f"{type(error).__name__}: {_cut_middle(one_line(str(error)), LONGEST_MESSAGE)}", UNEXPECTED, {}
        hint = "" if traceback else "; run again with -v for the traceback"
    with contextlib.suppress(OSError):  # standard error may be full; the exit code and the object remain
        tell(f"error: {message}{hint}", "red")
    if as_json:
        print_json({**data, "error": message, "exit_code": code})
    return code


def report_interrupt(stopped: KeyboardInterrupt, *, as_json: bool = False) -> int:
    """Print what Ctrl-C stopped and what is left of it as one line (`as_json`: see `report_error`); its exit code."""
    code = 128 + signal.SIGINT
    message = f"interrupted: {'; '.join(notes)}" if (notes := _notes(stopped)) else "interrupted"
    with contextlib.suppress(OSError):
        tell(message, "yellow")
    if as_json:
        print_json({"error": message, "exit_code": code})
    return code


def _cut_middle(text: str, longest: int) -> str:
    """Whatever an error repeats of its input, beginning and end are enough: `longest` characters beside paths that exist."""
    if len(text) <= longest:
        return text
    words = (word.rstrip(":;,.") for word in text.split() if os.sep in word)
    longest += sum(len(word) for word in words if _exists(word))
    return text if len(text) <= longest else f"{text[: longest * 2 // 3]} ... {text[-(longest // 3 - 5) :]}"


def _exists(path: str) -> bool:
    with contextlib.suppress(ValueError):  # a null character
        return os.path.exists(path)
    return False


def progress(*, quiet: bool = False) -> Progress:
    """Show each piece of work with a spinner and a clock, then a line with its time. Without a terminal, see `_log`.

    Usage: `with progress()("exporting") as on_progress: ... on_progress(3, 10)`. Several pieces may run at a time, in threads.
    """
    console = err()
    spinners = _Spinners(console)

    @contextmanager
    def work(what: str) -> Iterator[OnProgress]:
        if quiet:
            with _named_if_interrupted(what):
                yield ignore_progress
            return
        if not console.is_terminal:
            with _named_if_interrupted(what), _log(what) as set_state:
                yield lambda done, total: set_state(f": {done} of {total}")
            return
        start = time.perf_counter()
        with _named_if_interrupted(what), spinners.shown(what) as on_progress:
            yield on_progress
        console.print(f"  [green]✓[/green] {what} [dim]{time.perf_counter() - start:.1f} s[/dim]")

    return work


class _Spinners:
    """A line with a spinner for each piece of work that runs."""

    def __init__(self, console: Console) -> None:
        self._console, self._lock, self._count = console, threading.Lock(), 0
        self._bar: RichProgress | None = None

    @contextmanager
    def shown(self, what: str) -> Iterator[OnProgress]:
        with self._lock:
            bar = self._bar = self._bar or self._started()
            self._count += 1
        task = bar.add_task(what, total=None)
        try:
            yield lambda done, total: bar.update(task, description=f"{what}: {done} of {total}")
        finally:
            bar.remove_task(task)
            with self._lock:
                self._count -= 1
                if not self._count:
                    bar.stop()
                    self._bar = None

    def _started(self) -> RichProgress:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        bar = Progress(*columns, console=self._console, transient=True)
        bar.start()
        return bar


@contextmanager
def _named_if_interrupted(what: str) -> Iterator[None]:
    """Ctrl-C tells `report_interrupt` what it stopped: the innermost piece of work."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if not _notes(stopped):
            stopped.add_note(what)
        raise


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


@contextmanager
def _log(what: str) -> Iterator[Callable[[str], None]]:
    """Progress for logs: a line every minute, so that CI does not kill a silent job, and one at the end of longer work.

    Yields a function that sets a text to append to the lines.
    """
    start, over, state = time.monotonic(), threading.Event(), [""]

    def line() -> None:
        tell(f"{what}{state[0]}, {time.monotonic() - start:.0f} s")

    def beat() -> None:
        while not over.wait(LOG_INTERVAL):
            line()

    def set_state(text: str) -> None:
        state[0] = text

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield set_state
    finally:
        over.set()
        thread.join()
        if time.monotonic() - start >= LOG_FROM and not isinstance(sys.exception(), KeyboardInterrupt):
            line()


def counting(*, quiet: bool = False) -> Counting:
    """Show how many pieces of work are done, with a bar for each kind of work. Without a terminal, see `_log`."""
    console = err()

    @contextmanager
    def work() -> Iterator[OnStep]:
        name = "mixed precision"
        if quiet:
            with _named_if_interrupted(name):
                yield lambda what, done, total: None
            return
        if not console.is_terminal:
            with _named_if_interrupted(name), _log(name) as set_state:
                yield lambda what, done, total: set_state(f": {what}: {done} of {total}")
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        times = (TimeElapsedColumn(), TimeRemainingColumn())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
        with _named_if_interrupted(name), Progress(*columns, console=console) as bar:
            tasks: dict[str, Any] = {}

            def count(what: str, done: int, total: int) -> None:
                kind = what.partition(" (")[0]  # the text in brackets changes as the work goes on
                if kind not in tasks:
                    tasks[kind] = bar.add_task(what, total=total)
                bar.update(tasks[kind], description=what, completed=done, total=total)

            yield count

    return work


@contextmanager
def byte_progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar over `total` bytes; yields a function to call with the number of further bytes. A no-op without a terminal."""
    console = err()
    if quiet or not console.is_terminal:
        with _named_if_interrupted(what):
            yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with _named_if_interrupted(what), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(text: str, option: str) -> int:
    """Parse an amount of memory or disk.

    >>> parse_bytes("500MB", "--cache-limit"), parse_bytes("1.5 GiB", "--cache-limit")
    (500000000, 1610612736)

    Raises:
        BadInput: if the text has another form, or is less than one byte; the message names `option`.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    count = float(found[1]) * _UNITS[found[2]] if found and found[2] in _UNITS else 0.0
    if not 1 <= count < 1e18:
        raise BadInput(f"{option}: got '{text}', expected a size such as 500MB or 1GB")
    return int(count)


def megabytes(count: float) -> str:
    """A number of bytes in decimal units.

    >>> megabytes(2_340_000)
    '2.34 MB'
    """
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def save_text(path: Path, text: str, option: str = "--output") -> None:
    """Write a text file. A failed write leaves no partial file.

    Raises:
        BadInput: if the file cannot be written; the message names `option`.
    """
    write_text(path, text, f"choose another place with {option}")


def check_places(places: Mapping[str, Path | None]) -> None:
    """Check, before any work, that the files of options can be written.

    Raises:
        BadInput: if a file's folder does not exist, the path is a folder, or two options name the same file.
    """
    seen: dict[Path, str] = {}
    for option, path in places.items():
        if path is None:
            continue
        try:
            sound = path.parent.is_dir() and not path.is_dir()
        except OSError as error:
            raise BadInput(
                f"{option}: got {str(path)[:200]} ({error.strerror}), expected a file in a folder that exists"
            ) from None
        if not sound:
            raise BadInput(f"{option}: got {path}, expected a file in a folder that exists")
        if (other := seen.setdefault(path.resolve(), option)) != option and (path.is_file() or not path.exists()):
            raise BadInput(f"{option} and {other}: got {path} for both, expected two files")
