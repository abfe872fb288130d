"""Running command lines on this host, and adb on top of that. Tests replace `run_command` by a fake.

adb's output is documented at https://developer.android.com/tools/adb. `adb shell` ends with the exit status of the device.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.errors import MeasurementFailed

QUICK = 30.0  # timeout in seconds for queries
SLOW = 900.0  # timeout in seconds for copying files, building a runner, one block of pictures


@dataclass(frozen=True)
class Completed:
    """The exit status and output of a command."""

    code: int
    out: str
    err: str = ""

    @property
    def text(self) -> str:
        """Standard output and standard error: tools differ in where they print errors."""
        return f"{self.out}\n{self.err}"

    @property
    def last_line(self) -> str:
        """The last line that is not blank; errors come last."""
        lines = [line.strip() for line in (self.err.strip() or self.out.strip()).splitlines() if line.strip()]
        return lines[-1][:300] if lines else "no output"


Shell = Callable[[Sequence[str], float], Completed]  # (argv, timeout in seconds) -> status and output
Known = Sequence[tuple[str, str]]  # (regular expression over the output, what it means and how to fix it)


def run_command(argv: Sequence[str], timeout: float) -> Completed:
    """Run a command on this host, without a shell.

    Raises:
        MeasurementFailed: if it cannot be started, or does not end within `timeout` seconds.
    """
    try:
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False)
    except FileNotFoundError:
        raise MeasurementFailed(f"`{argv[0]}` is not on this host's PATH; install it, or add its folder to PATH") from None
    except PermissionError:
        raise MeasurementFailed(f"`{argv[0]}` may not be executed; run `chmod +x` on it") from None
    except subprocess.TimeoutExpired:
        raise MeasurementFailed(f"{_shown(argv)} did not end within {timeout:g} s; check that the device answers") from None
    return Completed(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def _shown(argv: Sequence[str]) -> str:
    """A command line for a message, cut to a readable length."""
    text = " ".join(argv)
    return f"`{text if len(text) <= 100 else text[:97] + '...'}`"


def checked(shell: Shell, argv: Sequence[str], timeout: float, known: Known = ()) -> Completed:
    """Run a command that must end with status 0.

    Raises:
        MeasurementFailed: if it does not. The message explains an output in `known`, or quotes the last line of another one.
    """
    done = shell(argv, timeout)
    if done.code == 0:
        return done
    for pattern, meaning in known:
        if found := re.search(pattern, done.text, re.IGNORECASE):
            raise MeasurementFailed(f"{meaning} ({_tool(argv)} printed: {_line_of(done.text, found.start())})")
    raise MeasurementFailed(f"{_shown(argv)} ended with status {done.code}, expected 0: {done.last_line}")


def _tool(argv: Sequence[str]) -> str:
    """The program's name; `env NAME=VALUE ...` only sets its environment."""
    return next(word for word in argv if word != "env" and "=" not in word)


def _line_of(text: str, at: int) -> str:
    """The line that contains a position of a text."""
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0].strip()[:400]


@contextmanager
def restoring(restore: Callable[[], None], *, only_on_failure: bool = False) -> Iterator[None]:
    """Call `restore` at the end, also after an error. If both fail, the message contains both errors, the first one first."""
    try:
        yield
    except MeasurementFailed as error:
        try:
            restore()
        except MeasurementFailed as second:
            raise MeasurementFailed(f"{error}; {second}") from error
        raise
    except BaseException:  # an interrupt from the keyboard too
        restore()
        raise
    if not only_on_failure:
        restore()


GONE = r"device '.*' not found|no devices/emulators found|device offline|error: closed|protocol fault|connection reset"
ADB_ERRORS: Known = (
    (GONE, "the phone is gone, expected it to stay connected: plug it in again and repeat the measurement"),
    ("unauthorized", "the phone does not trust this host: unlock it and accept the question about USB debugging"),
    ("No space left on device", "the phone's storage is full: free space on it, or measure a smaller bundle"),
)


@dataclass(frozen=True)
class Adb:
    """One phone behind adb."""

    run: Shell
    serial: str

    @classmethod
    def connect(cls, run: Shell, wanted: str | None = None) -> Adb:
        """Connect to the phone with the serial number `wanted`, or to the only one.

        Raises:
            MeasurementFailed: if there is none, several are connected, or it is not ready.
        """
        listing = checked(run, ["adb", "devices", "-l"], QUICK).out
        found = dict(re.findall(r"^(\S+)\s+(device|offline|unauthorized|no permissions|recovery|sideload)\b", listing, re.M))
        if wanted is not None and wanted not in found:
            seen = ", ".join(found) or "none"
            raise MeasurementFailed(f"adb knows no phone '{wanted}', it sees: {seen}; check the cable and `adb devices`")
        if not found:
            raise MeasurementFailed("adb sees no phone; connect one by USB, turn on USB debugging in its developer options")
        if wanted is None and len(found) > 1:
            raise MeasurementFailed(f"adb sees {len(found)} phones ({', '.join(found)}), expected one; say which: adb:SERIAL")
        serial = wanted or next(iter(found))
        if found[serial] != "device":
            fix = "unlock it and accept the question about USB debugging" if found[serial] == "unauthorized" else "reconnect it"
            raise MeasurementFailed(f"the phone {serial} is {found[serial]}, expected 'device'; {fix}")
        return cls(run, serial)

    def shell(self, command: str, timeout: float = QUICK, *, check: bool = True) -> Completed:
        """Run a command in the phone's shell.

        Raises:
            MeasurementFailed: if the phone is gone or, with `check`, the command fails.
        """
        return self._call("shell", command, timeout=timeout, check=check)

    def push(self, local: Path, remote: str) -> None:
        """Copy a file to the phone.

        Raises:
            MeasurementFailed: with different messages if the storage is full or the phone is gone.
        """
        self._call("push", str(local), remote, timeout=SLOW, check=True)

    def _call(self, *arguments: str, timeout: float, check: bool) -> Completed:
        argv = ["adb", "-s", self.serial, *arguments]
        done = self.run(argv, timeout)
        if done.code != 0:
            self._insist_on_phone()
            if check:
                checked(lambda _argv, _timeout: done, argv, timeout, ADB_ERRORS)
        return done

    def _insist_on_phone(self) -> None:
        """Ask adb whether the phone is still there: a cable that was pulled often gives no other message."""
        state = self.run(["adb", "-s", self.serial, "get-state"], QUICK)
        if state.out.strip() != "device":
            raise MeasurementFailed(
                f"the phone {self.serial} is gone ({state.last_line}), expected it to stay connected; "
                "plug it in again and repeat the measurement"
            )
