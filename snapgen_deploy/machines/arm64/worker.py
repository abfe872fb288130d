"""Runs saved files in this process for another one, which talks through two pipes. Also the talk itself, for both ends.

As a script it is run by the emulated Python, which has onnxruntime, numpy and maybe executorch: it imports nothing of this
package.

A message is a JSON document and arrays: the length of the document as 4 bytes, the document, then the bytes of each array. The
document's `arrays` has name, dtype and shape of each.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

Message = tuple[dict[str, Any], dict[str, np.ndarray]]
_Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
_LENGTH = struct.Struct("<I")


def send(pipe: IO[bytes], said: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a message."""
    given = {name: np.ascontiguousarray(value) for name, value in (arrays or {}).items()}
    listed = [[name, str(value.dtype), list(value.shape)] for name, value in given.items()]
    head = json.dumps({**said, "arrays": listed}).encode()
    pipe.write(_LENGTH.pack(len(head)) + head)
    for value in given.values():
        pipe.write(value.tobytes())
    pipe.flush()


def receive(pipe: IO[bytes]) -> Message:
    """Read a message.

    Raises:
        EOFError: if the other end has gone.
    """
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    said = json.loads(_exactly(pipe, length))
    arrays = {}
    for name, kind, shape in said.pop("arrays"):
        dtype = np.dtype(kind)
        count = int(np.prod(shape, dtype=np.int64))
        data = bytearray(_exactly(pipe, count * dtype.itemsize))  # arrays that may be written to
        arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    return said, arrays


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more: `open` an ONNX file, `load` a program, or `run` either."""
    import onnxruntime

    opened: list[_Run] = []
    send(answers, {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__})
    while True:
        try:
            said, arrays = receive(requests)
        except EOFError:
            return
        try:
            if "run" in said:
                send(answers, {}, opened[said["run"]](arrays))
            elif "programs" in said:
                send(answers, _program_versions())
            else:
                run, about = _session(onnxruntime, said) if "open" in said else _program(said)
                opened.append(run)
                send(answers, {"session": len(opened) - 1, **about})
        except Exception as error:  # of whatever kind: the other end raises it
            send(answers, {"error": (str(error).splitlines() or [type(error).__name__])[0][:300]})


def _session(onnxruntime: Any, said: Mapping[str, Any]) -> tuple[_Run, dict[str, Any]]:
    """Open an ONNX file; returns also type and shape of its inputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = said["threads"], 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors
    for name, value in said["config"].items():
        options.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(said["open"], options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]

    def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, arrays), strict=True))

    return run, {"ports": {i.name: [i.type, list(i.shape)] for i in session.get_inputs()}}


def _program(said: Mapping[str, Any]) -> tuple[_Run, dict[str, Any]]:
    """Load a method of a `.pte`; returns also the text that its method of ports gives.

    The method takes its inputs in the order in which they come. Outputs are named by their numbers.
    """
    import torch
    from executorch.extension.pybindings import _portable_lib as executorch

    executorch._unsafe_reset_threadpool(said["threads"])
    program = executorch._load_program(said["load"])
    (ports,) = program.load_method(said["ports"]).call([])
    method = program.load_method(said["method"])

    def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = method.call([torch.from_numpy(value) for value in arrays.values()])
        return {str(i): value.numpy() for i, value in enumerate(made)}

    return run, {"ports": ports}


def _program_versions() -> dict[str, str]:
    """Of what `_program` imports."""
    from importlib import metadata

    import torch
    from executorch.extension.pybindings import _portable_lib  # noqa: F401 (to see that it can be loaded)

    return {"executorch": metadata.version("executorch"), "torch": torch.__version__.partition("+")[0]}


if __name__ == "__main__":
    talk = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print about the processor to standard output
    _serve(sys.stdin.buffer, talk)
