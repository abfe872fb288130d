"""Apple's Core AI runtime in a process of its own: one for every opened function, whose crash or hang is one line here.

The process imports Apple's runtime and numpy, and not torch. It ends with its owner: when the pipe closes, or the owner does.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.child import cause, note_children

# Of one load or call. Apple's runtime for Linux interprets: it took 1.2 s for a step of 9M parameters over 256 tokens in fp16.
LIMIT_S = 4 * 3600.0
IDLE_S = 120.0  # without any processor time: what waits that long waits for ever
STEP_S = 2.0  # between two looks


@dataclass(frozen=True)
class Signature:
    """What was loaded: all functions, and the inputs and outputs of the one asked for, (name, shape, dtype) each, in order."""

    functions: tuple[str, ...]
    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    outputs: tuple[tuple[str, tuple[int, ...], str], ...]


class CoreAIProcess:
    """A function of an `.aimodel`, loaded in its own process; RuntimeError, in one line, where the runtime fails."""

    def __init__(self, path: Path, function: str) -> None:
        self._log = tempfile.NamedTemporaryFile("r", prefix="coreai-", encoding="utf-8", errors="replace")  # noqa: SIM115
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        work = (theirs, str(path), function, self._log.name)
        self._process: BaseProcess = context.Process(target=_serve, args=work, name=f"Core AI {path.name}", daemon=True)
        self._process.start()
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process, self._pipe)
        self.signature: Signature = self._answer("loading")

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Named outputs of one call."""
        try:
            self._pipe.send({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        except OSError:  # it ended since the last call
            raise self._died("running") from None
        found: dict[str, np.ndarray] = self._answer("running")
        return found

    def _answer(self, doing: str) -> Any:
        """What the process sends back."""
        start = moved = time.monotonic()
        spent = -1.0
        while not self._pipe.poll(min(STEP_S, LIMIT_S, IDLE_S)):
            now, used = time.monotonic(), _processor_seconds(self._process.pid)
            if used is None or used > spent:
                moved, spent = now, used if used is not None else spent
            if now - moved > IDLE_S or now - start > LIMIT_S:
                self._end()
                how = f"has done nothing for {IDLE_S:g} s" if now - moved > IDLE_S else f"took more than {LIMIT_S:g} s"
                raise RuntimeError(f"Apple's runtime {how} while {doing}; it was ended")
        try:
            ok, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._died(doing) from None
        if not ok:
            raise RuntimeError(value)
        return value

    def _died(self, doing: str) -> RuntimeError:
        self._process.join()
        said = [line.strip() for line in self._log.read().splitlines() if line.strip() and "[default]" not in line]
        return RuntimeError("; ".join([f"Apple's runtime failed while {doing}: {cause(self._process.exitcode)}", *said[-1:]]))


def _end(process: BaseProcess, pipe: Connection) -> None:
    note_children()
    pipe.close()
    process.kill()
    process.join()


def _processor_seconds(pid: int | None) -> float | None:
    """Processor time of a process so far; None where this system does not tell (no /proc)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5), fields 14 and 15


def _serve(pipe: Connection, path: str, function: str, log: str) -> None:
    """In the process: load, say what was loaded, and answer calls until the pipe closes."""
    sink = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):  # the runtime says what it loads
        os.dup2(sink, stream)
    asyncio.run(_answer_calls(pipe, path, function))


async def _answer_calls(pipe: Connection, path: str, function: str) -> None:
    try:
        from coreai.authoring import AIModelAsset
        from coreai.runtime import NDArray

        async with AIModelAsset.load(path).executable() as model:
            known = tuple(sorted(model.function_names))
            if function not in known:
                pipe.send((True, Signature(known, (), ())))
                return
            call = model.load_function(function)
            pipe.send((True, _signature(known, call.desc)))
            while True:
                arrays = pipe.recv()
                try:
                    results = await call({name: NDArray(array) for name, array in arrays.items()})
                    pipe.send((True, {name: value.numpy() for name, value in results.items()}))
                except Exception as error:
                    pipe.send((False, f"Apple's runtime: {_line(error)}"))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        pipe.send((False, f"Apple's runtime cannot load it: {_line(error)}"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _signature(functions: tuple[str, ...], desc: Any) -> Signature:
    def ports(names: list[str], describe: Any) -> tuple[tuple[str, tuple[int, ...], str], ...]:
        return tuple((name, tuple(describe(name).shape), str(describe(name).dtype)) for name in names)

    return Signature(
        functions, ports(desc.input_names, desc.input_descriptor), ports(desc.output_names, desc.output_descriptor)
    )
