"""The emulated processor as a machine: files are opened in a process of the emulator."""

from __future__ import annotations

import select
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from snapgen_deploy.errors import BadInput, nearest
from snapgen_deploy.export.base import Arrays, Runner
from snapgen_deploy.export.executorch.program import method_of, parse_ports, ports_method_of
from snapgen_deploy.export.shared.graph import check_inputs
from snapgen_deploy.export.spec import TargetSpec
from snapgen_deploy.machines.arm64 import worker
from snapgen_deploy.machines.arm64.cpus import CPUS, DEFAULT
from snapgen_deploy.machines.arm64.installed import Installed, installed
from snapgen_deploy.system.child import ChildDied, cause

NAME = "arm64"
ANSWER_SECONDS = 3600.0  # that one call may take
_PROGRAM = ".pte"  # suffix of ExecuTorch's files; all others are ONNX
_LAST = 300  # characters of what a dead process has printed
# As on this host: each session's threads would busy-wait for the next run while another session computes.
_SESSION_CONFIG = {"session.force_spinning_stop": "1"}


def arm64(processor: str, folder: Path | None = None) -> Arm64:
    """The machine with one of `CPUS`, by default `DEFAULT`; `folder` is that of another setup than the cache's.

    Raises:
        BadInput: if there is no such processor.
    """
    cpu = processor or DEFAULT
    if cpu not in CPUS:
        raise BadInput(f"{NAME} has no processor '{cpu}': expected {', '.join(CPUS)}{nearest(cpu, CPUS)}")
    return Arm64(f"{NAME}:{cpu}", cpu, folder)


@dataclass
class Arm64:
    """An Arm processor under qemu-user. All files that it opens are run by one process."""

    key: str
    cpu: str
    folder: Path | None = None
    name: str = NAME
    _process: EmulatedProcess | None = field(default=None, repr=False)

    def unavailable(self, spec: TargetSpec) -> str | None:
        """Why it cannot run a target's files here, or None if it can."""
        found = installed(self.folder)
        if isinstance(found, str):
            return f"{NAME}: {found}"
        if (package := spec.runtime.package) not in found.versions:
            return f"{NAME}: its setup has no {package}; run `snapgen-deploy setup {NAME} --{package}`"
        return None

    def versions(self) -> dict[str, str]:
        """Versions of the emulator and of what it runs; {} without a setup."""
        found = installed(self.folder)
        return {} if isinstance(found, str) else found.versions

    @property
    def pid(self) -> int | None:
        """The emulator's process; None before a file was opened."""
        return None if self._process is None else self._process.pid

    def open(self, path: Path, *, threads: int, entry: str = "") -> Runner:
        """Load a saved file there and return a function from named inputs to named outputs.

        Raises:
            BadInput: if the file cannot be loaded, or there is no setup.
            ChildDied: if the emulator ends.
        """
        if self._process is None:
            found = installed(self.folder)
            if isinstance(found, str):
                raise BadInput(f"{NAME}: {found}")
            self._process = EmulatedProcess(self.key, found, self.cpu)
        opened = _program if path.suffix == _PROGRAM else _session
        return opened(self._process, path, threads, entry)


def _session(process: EmulatedProcess, path: Path, threads: int, entry: str) -> Runner:
    """An ONNX file in onnxruntime there; it has one entry."""
    del entry
    request = {"open": str(path.absolute()), "threads": threads, "config": _SESSION_CONFIG}
    said = _opened(process, path, "onnxruntime", request)
    ports = said["ports"]

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        if inputs.keys() != ports.keys():
            raise BadInput(f"{path.name}: got inputs {sorted(inputs)}, expected {list(ports)}")
        return _ran(process, path, "onnxruntime", said["session"], inputs)

    return run


def _program(process: EmulatedProcess, path: Path, threads: int, entry: str) -> Runner:
    """A method of a `.pte` in ExecuTorch there."""
    request = {"load": str(path.absolute()), "threads": threads, "method": method_of(entry), "ports": ports_method_of(entry)}
    said = _opened(process, path, "ExecuTorch", request)
    inputs, outputs = parse_ports(said["ports"])

    def run(arrays: Mapping[str, np.ndarray]) -> Arrays:
        check_inputs(path.name, inputs, arrays)
        made = _ran(process, path, "ExecuTorch", said["session"], {port.name: arrays[port.name] for port in inputs})
        return {port.name: made[str(i)] for i, port in enumerate(outputs)}

    return run


def _opened(process: EmulatedProcess, path: Path, runtime: str, request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return process.ask(request)[0]
    except RuntimeError as error:
        raise BadInput(f"{path.name} on {process.what}: {runtime} cannot load it: {error}") from None


def _ran(process: EmulatedProcess, path: Path, runtime: str, session: int, inputs: Mapping[str, np.ndarray]) -> Arrays:
    try:
        return process.ask({"run": session}, inputs)[1]
    except RuntimeError as error:
        raise RuntimeError(f"{path.name} on {process.what}: {runtime} failed: {error}") from None


class EmulatedProcess:
    """A process of the emulator that answers `worker`'s requests; it ends with this object, or with this process."""

    def __init__(self, what: str, setup: Installed, cpu: str) -> None:
        self.what = what
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with the process)
        self._process = subprocess.Popen(
            setup.command(cpu, Path(worker.__file__).absolute()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            start_new_session=True,  # Ctrl-C is for this process alone
        )
        self._end = weakref.finalize(self, _end, self._process, self._printed)
        self.versions, _ = self._answer()

    @property
    def pid(self) -> int:
        """Of the emulator."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> worker.Message:
        """The answer to a request.

        Raises:
            RuntimeError: if the process says that the request failed.
            ChildDied: if the process ends or has not answered after `ANSWER_SECONDS`.
        """
        assert self._process.stdin is not None
        try:
            worker.send(self._process.stdin, request, arrays)
        except OSError:
            raise self._died() from None
        said, made = self._answer()
        if "error" in said:
            raise RuntimeError(said["error"])
        return said, made

    def _answer(self) -> worker.Message:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_SECONDS)[0]:
            self._end()
            raise ChildDied(f"{self.what}: no answer after {ANSWER_SECONDS:.0f} s; its process was ended")
        try:
            return worker.receive(self._process.stdout)
        except EOFError:
            raise self._died() from None

    def _died(self) -> ChildDied:
        code = self._process.wait()
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        self._end()
        return ChildDied("; ".join([f"{self.what}: {cause(code)}", *(line[-_LAST:] for line in lines[-1:])]))


def _end(process: subprocess.Popen[bytes], printed: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, printed):
        if pipe is not None:
            pipe.close()
