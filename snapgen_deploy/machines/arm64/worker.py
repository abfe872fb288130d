"""Runs ONNX files in this process for another one, which talks through two pipes. Also the talk itself, for both ends.

As a script it is run by the emulated Python, which has onnxruntime and numpy only: it imports nothing of this package.

A message is a JSON document and arrays: the length of the document as 4 bytes, the document, then the bytes of each array. The
document's `arrays` has name, dtype and shape of each.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

Message = tuple[dict[str, Any], dict[str, np.ndarray]]
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
    """Answer requests until there are no more: `open` a file, or run an opened one."""
    import onnxruntime

    sessions: list[Any] = []
    send(answers, {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__})
    while True:
        try:
            said, arrays = receive(requests)
        except EOFError:
            return
        try:
            if "open" in said:
                sessions.append(_session(onnxruntime, said))
                ports = {i.name: [i.type, list(i.shape)] for i in sessions[-1].get_inputs()}
                send(answers, {"session": len(sessions) - 1, "ports": ports})
            else:
                session = sessions[said["run"]]
                names = [o.name for o in session.get_outputs()]
                send(answers, {}, dict(zip(names, session.run(names, arrays), strict=True)))
        except Exception as error:  # of whatever kind: the other end raises it
            send(answers, {"error": (str(error).splitlines() or [type(error).__name__])[0][:300]})


def _session(onnxruntime: Any, said: Mapping[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = said["threads"], 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors
    for name, value in said["config"].items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(said["open"], options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
