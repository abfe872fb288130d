"""A model repository for NVIDIA Triton: a bundle's components, and the loop of a picture around them (docs/servers.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy import __version__
from snapgen_deploy.apps.parts import AppFiles, app_mark, refuse_undrawable, runners_of, write_files
from snapgen_deploy.apps.registry import APP_MARK, App
from snapgen_deploy.assets import server_code
from snapgen_deploy.bundle.reader import CONFORMANCE, MANIFEST, Bundle
from snapgen_deploy.bundle.vectors import port_values
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.runtime import noise

_NAME = "triton"
# target -> where Triton puts an instance of its components
_KINDS = runners_of(_NAME)
LOOP_MODEL = "snapgen"  # the model that draws
_MODELS = "models"  # the repository, in the folder
INSTANCES = 2  # of every model
QUEUE_MICROSECONDS = 20_000  # that a request waits for others to share a call
_DTYPES = {"float32": "TYPE_FP32", "int32": "TYPE_INT32"}


def triton_repository(bundle: Bundle, target: str) -> AppFiles:
    """All files for a bundle's files of one target.

    Raises:
        BadInput: if no server can draw with the bundle, or a file of a component has no place in a repository.
    """
    refuse_undrawable(bundle, "a server")
    files: dict[str, Path | bytes] = {}
    warm = port_values(bundle)
    for role, part in bundle.manifest["targets"][target]["components"].items():
        files |= _component(bundle, role, part, _KINDS[target], warm[role])
    files |= _loop(bundle, target)
    files |= app_mark(_NAME, bundle, target)
    files["kserve.yaml"] = _kserve(bundle, _KINDS[target]).encode()
    files["README.md"] = _readme(bundle, target).encode()
    return files


def _component(bundle: Bundle, role: str, part: Mapping[str, Any], kind: str, warm: Arrays) -> AppFiles:
    """One component as a model: its files, its configuration, and the inputs that it is warmed up with."""
    folder, main = f"{_MODELS}/{role}", Path(part["path"])
    files: dict[str, Path | bytes] = {}
    for name in part["files"]:
        inside = Path(name)
        if inside.parent != main.parent:
            raise BadInput(f"{bundle.name}: {name} lies in another folder than {part['path']}")
        files[f"{folder}/1/{'model.onnx' if inside == main else inside.name}"] = bundle.path / name
    for name, value in warm.items():
        files[f"{folder}/warmup/{name}"] = np.ascontiguousarray(value).tobytes()
    inputs, outputs = ([_port(port) for port in part[side]] for side in ("inputs", "outputs"))
    warming = [
        f'inputs {{\n    key: "{port["name"]}"\n    value {{ {_port_type(port)} input_data_file: "{port["name"]}" }}\n  }}'
        for port in part["inputs"]
    ]
    files[f"{folder}/config.pbtxt"] = _text(
        f'name: "{role}"',
        'backend: "onnxruntime"',
        "max_batch_size: 0  # the file has calls of one size",
        _list("input", inputs),
        _list("output", outputs),
        f"instance_group [ {{ count: {INSTANCES} kind: {kind} }} ]",
        _list("model_warmup", ['name: "test vectors"\n  batch_size: 1\n  ' + "\n  ".join(warming)]),
    )
    return files


def _loop(bundle: Bundle, target: str) -> AppFiles:
    """The loop as a model of the Python backend, with what it reads of the bundle."""
    folder, (height, width) = f"{_MODELS}/{LOOP_MODEL}", bundle.resolution
    texts = {spec.reads.file for spec in components_of(bundle.config).encoders}
    inside = {f"{folder}/picture/{name}": bundle.path / name for name in (MANIFEST, CONFORMANCE, *sorted(texts))}
    inputs = ['name: "prompt" data_type: TYPE_STRING dims: [ 1 ]', 'name: "seed" data_type: TYPE_UINT64 dims: [ 1 ]']
    if bundle.config.guided:
        inputs.append('name: "negative_prompt" data_type: TYPE_STRING dims: [ 1 ] optional: true')
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}"
    return {
        **inside,
        f"{folder}/1/model.py": server_code("triton_model").replace("@TARGET@", target).encode(),
        f"{folder}/picture/__init__.py": b"",
        f"{folder}/picture/server_loop.py": server_code("server_loop").encode(),
        f"{folder}/picture/philox.py": Path(noise.__file__).read_bytes(),
        f"{folder}/config.pbtxt": _text(
            f'name: "{LOOP_MODEL}"',
            'backend: "python"',
            f"max_batch_size: {bundle.batch}",
            _list("input", inputs),
            _list("output", [f'name: "picture" data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ]']),
            f"instance_group [ {{ count: {INSTANCES} kind: KIND_CPU }} ]",
            batching,
        ),
    }


def _port(port: Mapping[str, Any]) -> str:
    return f'name: "{port["name"]}" {_port_type(port)}'


def _port_type(port: Mapping[str, Any]) -> str:
    return f"data_type: {_DTYPES[port['dtype']]} dims: [ {', '.join(map(str, port['shape']))} ]"


def _list(name: str, entries: Iterable[str]) -> str:
    return f"{name} [\n" + ",\n".join(f"  {{ {entry} }}" for entry in entries) + "\n]"


def _text(*fields: str) -> bytes:
    return ("\n".join(fields) + "\n").encode()


def _kserve(bundle: Bundle, kind: str) -> str:
    """KServe's InferenceService for the repository; its place is to be filled in."""
    name = re.sub(r"[^a-z0-9]+", "-", bundle.name.lower()).strip("-")[:50]
    gpu: Sequence[str] = ('          nvidia.com/gpu: "1"',) if kind == "KIND_GPU" else ()
    lines = [
        "apiVersion: serving.kserve.io/v1beta1",
        "kind: InferenceService",
        "metadata:",
        f"  name: {name}",
        "spec:",
        "  predictor:",
        "    model:",
        "      modelFormat:",
        "        name: triton",
        "      protocolVersion: v2",
        f"      storageUri: pvc://models/{name}/{_MODELS}  # where you copy the folder {_MODELS} to",
        "      resources:",
        "        limits:",
        '          cpu: "4"',
        "          memory: 8Gi",
        *gpu,
    ]
    return "\n".join(lines) + "\n"


def _readme(bundle: Bundle, target: str) -> str:
    return f"""# {bundle.manifest["name"]} for Triton

Written by snapgen-deploy {__version__} from the bundle {bundle.name}, target {target}. `{_MODELS}/` is a model repository:

    tritonserver --model-repository={_MODELS}

`{LOOP_MODEL}` draws: inputs `prompt` and `seed`, output `picture`, (H, W, 3) in bytes. It calls the other models. Its Python
needs the packages numpy and tokenizers (numpy<2 for Triton 2.51, which garbles texts with 2.4).
Requests that wait share a call, {bundle.batch} at most (`export --batch`).

`kserve.yaml` is an InferenceService of KServe: fill in where the repository lies. The server must have the onnxruntime and the
Python backend.
"""


def _write(bundle: Bundle, target: str, folder: Path, archives: Path | None) -> None:
    write_files(triton_repository(bundle, target), folder)


TRITON_APP = App(_NAME, tuple(_KINDS), APP_MARK, lambda archives: None, _write)
