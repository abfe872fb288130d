"""Programs that run a network on an Android phone: ExecuTorch's `executor_runner`, ONNX Runtime's `onnxruntime_perf_test`.

The user builds both, since no package contains them (the first like executorch/devtools/scripts/benchmark_android.sh, the
second with onnxruntime's `build.sh --android`). This module relies on the following, read in their sources:
- executor_runner (1.3 and later; examples/portable/executor_runner) takes raw input files and logs `Iteration 1 of 9: 1.5 ms`
  with the tag ExecuTorch, the time of `method->execute()` alone. Without `--method_name` it runs the program's first method.
- onnxruntime_perf_test (onnxruntime/test/perftest) makes one untimed run, then `-r` timed ones. It writes them to the result
  file as `model,seconds,peak bytes,CPU,run`. Its inputs are protobuf files in a folder beside the model.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from snapgen_deploy.errors import MeasurementFailed
from snapgen_deploy.export.base import Role
from snapgen_deploy.latency.links.base import LinkJob
from snapgen_deploy.latency.links.shell import Adb, Completed

RESULT = "result.csv"  # result file of onnxruntime_perf_test, in the component's folder
_LOG = "logcat -d -v threadtime -s ExecuTorch:V"
LOG_LINE = re.compile(r"^\S+ \S+\s+(\d+)\s+\d+ [VDIWEF] ExecuTorch\s*: (.*?)\s*$", re.M)
OLD_RUNNER = (
    "this executor_runner prints only a mean, expected a time for each iteration; build it from ExecuTorch 1.3 or later"
)


@dataclass(frozen=True)
class Ran:
    """Times that one process of a runner reported, in ms."""

    load: float
    samples: tuple[float, ...]


class Engine(Protocol):
    """A runner: its command line and its output."""

    @property
    def binary(self) -> Path:
        """The runner's file on this host."""
        ...

    def inputs(self, job: LinkJob, role: Role, scratch: Path) -> list[tuple[Path, str]]:
        """The input files: their paths on this host, and their names in the component's folder on the phone."""
        ...

    def command(self, job: LinkJob, role: Role, times: int) -> str:
        """The command that runs a component `times` times in one process, from the component's folder."""
        ...

    def read(self, adb: Adb, folder: str, done: Completed, times: int) -> Ran:
        """Read the times of the process that ended with `done`.

        Raises:
            MeasurementFailed: if the process failed, or times are missing.
        """
        ...


@dataclass(frozen=True)
class ExecuTorchEngine:
    """executor_runner 1.3 or later."""

    binary: Path

    def inputs(self, job: LinkJob, role: Role, scratch: Path) -> list[tuple[Path, str]]:
        """The raw files, unchanged."""
        return [(path, f"input_{i}.bin") for i, path in enumerate(job.inputs[role])]

    def command(self, job: LinkJob, role: Role, times: int) -> str:
        """The command, with inputs in the ports' order. It names the method, since the program has another one, `ports`."""
        names = ",".join(name for _, name in self.inputs(job, role, Path()))
        return (
            f"../{self.binary.name} --model_path={shlex.quote(job.components[role].name)} --method_name=forward "
            f"--inputs={names} --num_executions={times} --cpu_threads={job.threads} --print_output=none"
        )

    def read(self, adb: Adb, folder: str, done: Completed, times: int) -> Ran:
        """Read the times from logcat. The log may lag behind the process, so an incomplete log is read once more."""
        if "unknown command line flag" in done.text:
            raise MeasurementFailed(f"{OLD_RUNNER} (it printed: {done.last_line})")
        found = re.search(r"^pid=(\d+)$", done.out, re.M)
        pid = found[1] if found else ""
        log = adb.shell(_LOG).out
        if "Model executed successfully" not in log:
            log = adb.shell(f"sleep 1; {_LOG}").out
        messages = [message for owner, message in LOG_LINE.findall(log) if owner == pid]
        if done.code != 0:
            last = messages[-1] if messages else done.last_line
            raise MeasurementFailed(f"executor_runner ended with status {done.code}: {last}")
        return parse_log(messages, times)


def parse_log(messages: list[str], times: int) -> Ran:
    """Parse load and iteration times from executor_runner's log messages.

    >>> parse_log(["Model loaded in 12.5 ms.", "Iteration 1 of 2: 3.1 ms", "Iteration 2 of 2: 3.0 ms"], 2)
    Ran(load=12.5, samples=(3.1, 3.0))

    Raises:
        MeasurementFailed: if a time is missing.
    """
    text = "\n".join(messages)
    load = re.search(r"^Model loaded in ([\d.]+) ms\.", text, re.M)
    found = {
        int(i): float(ms) for i, n, ms in re.findall(r"^Iteration (\d+) of (\d+): ([\d.]+) ms", text, re.M) if int(n) == times
    }
    if not found and "is loaded." in text and "Model executed successfully" in text:  # a complete log without iterations
        raise MeasurementFailed(OLD_RUNNER)
    if load is None or sorted(found) != list(range(1, times + 1)):
        raise MeasurementFailed(
            f"logcat holds {len(found)} of {times} iteration lines and {'the' if load else 'no'} load line: its buffer dropped "
            "some; enlarge it with `adb logcat -G 4M` and measure again"
        )
    return Ran(float(load[1]), tuple(found[i] for i in sorted(found)))


@dataclass(frozen=True)
class OnnxEngine:
    """onnxruntime_perf_test."""

    binary: Path

    def inputs(self, job: LinkJob, role: Role, scratch: Path) -> list[tuple[Path, str]]:
        """The raw files as ONNX tensors with the model's names, types and shapes."""
        import onnx

        ports = onnx.load(job.components[role], load_external_data=False).graph.input
        made = []
        for i, (port, path) in enumerate(zip(ports, job.inputs[role], strict=True)):
            kind = port.type.tensor_type
            shape = [d.dim_value for d in kind.shape.dim]
            tensor = onnx.helper.make_tensor(port.name, kind.elem_type, shape, path.read_bytes(), raw=True)
            local = scratch / f"{role}_{i}.pb"
            local.write_bytes(tensor.SerializeToString())
            made.append((local, f"test_data_set_0/input_{i}.pb"))
        return made

    def command(self, job: LinkJob, role: Role, times: int) -> str:
        """The command, in `times` mode, which appends to the result file."""
        provider = job.target.partition(":")[2] or "cpu"
        model = shlex.quote(job.components[role].name)
        return f"../{self.binary.name} -m times -r {times} -e {provider} -x {job.threads} -y 1 {model} {RESULT}"

    def read(self, adb: Adb, folder: str, done: Completed, times: int) -> Ran:
        """Read the times from the result file, and the load time from the output."""
        if done.code != 0:
            raise MeasurementFailed(f"onnxruntime_perf_test ended with status {done.code}, expected 0: {done.last_line}")
        load = re.search(r"Session creation time cost: ([\d.e+-]+) s", done.out)
        rows = adb.shell(f"cat {folder}/{RESULT}", check=False).out
        found = [float(s) * 1000 for s in re.findall(r"^[^,\n]*,([\d.e+-]+),\d+,-?\d+,\d+\s*$", rows, re.M)]
        if load is None or len(found) != times:
            raise MeasurementFailed(
                f"onnxruntime_perf_test wrote {len(found)} raw samples, expected {times}, and {'a' if load else 'no'} load "
                "time; use a build whose result file has a line for each run"
            )
        return Ran(float(load[1]) * 1000, tuple(found))
