"""The Core ML models inside a `.pte` of ExecuTorch's Core ML delegate: extracting, packing and running them.

A delegate's payload is a serialised folder (`executorch_coreml_folder`) with `model.mlpackage` and `metadata.json`: names of
inputs and outputs, in the order of the program's values. Or it is `REFERENCE` and JSON that refers to such a folder in the
program's named data and to one function of its package (executorch 1.4.1,
`backends/apple/coreml/compiler/coreml_preprocess.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Port
from snapgen_deploy.export.coreml.target import SPEC, WEIGHTS, identifier
from snapgen_deploy.export.executorch.coreml_folder import pack, unpack
from snapgen_deploy.export.executorch.program import StoredDelegate
from snapgen_deploy.export.mil import PackageRunner, RunReport

PACKAGE, _METADATA = "model.mlpackage", "metadata.json"
REFERENCE = b"CMJR"
INPUTS, OUTPUTS, METHODS = "inputNames", "outputNames", "methods"  # keys of the metadata
DEBUG = "debug_info.json"  # beside them; it names the operators of one run


@dataclasses.dataclass(frozen=True)
class Model:
    """One delegate's Core ML model."""

    package: Path
    function: str  # "" if the package has one
    inputs: tuple[str, ...]  # names, in the order of the program's arguments
    outputs: tuple[str, ...]

    def names(self) -> dict[str, Sequence[str]]:
        """Its inputs and outputs in the form of metadata.json."""
        return {INPUTS: self.inputs, OUTPUTS: self.outputs}


def model_of(stored: StoredDelegate, folder: Path) -> Model:
    """The model of a delegate of a saved program, extracted into the empty folder `folder`.

    Raises:
        BadInput: if the delegate's data are not a Core ML model.
    """
    payload = stored.payload()
    if not payload.startswith(REFERENCE):
        return model_in(payload, folder)
    reference = json.loads(payload.removeprefix(REFERENCE))
    return model_in(stored.named(reference["key"]), folder, reference["functionName"])


def model_in(data: bytes, folder: Path, function: str = "") -> Model:
    """The model in a delegate's serialised folder; `function` names one of several.

    Raises:
        BadInput: if the folder has no package.
    """
    unpack(data, folder)
    if not (folder / PACKAGE).is_dir() or not (folder / _METADATA).is_file():
        raise BadInput(f"the Core ML delegate's folder holds {sorted(p.name for p in folder.iterdir())}, expected {PACKAGE}")
    about = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
    names = about[METHODS][function] if function else about
    return Model(folder / PACKAGE, function, tuple(names[INPUTS]), tuple(names[OUTPUTS]))


def pack_model(package: Path, about: Mapping[str, Any]) -> bytes:
    """The delegate's serialised folder around a package, with an identifier derived from the package.

    The delegate stores the compiled model in the app's cache under that identifier.
    """
    folder = package.parent
    weights = sorted((package / WEIGHTS).iterdir()) if (package / WEIGHTS).is_dir() else []
    name = f"executorch_{identifier(package / SPEC, *weights)}"
    (folder / _METADATA).write_text(json.dumps({"identifier": name, **about}, sort_keys=True), encoding="utf-8")
    (folder / DEBUG).unlink(missing_ok=True)
    return pack(folder)


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call of a delegate: its model, ready to run, and the indices of its inputs and outputs among the program's values."""

    runner: PackageRunner
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


class Chain:
    """A program that only calls delegates: values are passed from model to model by their indices."""

    def __init__(self, calls: Sequence[_Call], plan: Any, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        self.calls = calls
        self.inputs = {port.name: place for port, place in zip(inputs, plan.inputs, strict=True)}
        self.outputs = {port.name: place for port, place in zip(outputs, plan.outputs, strict=True)}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Named outputs for named inputs."""
        values = {place: arrays[name] for name, place in self.inputs.items()}
        for call in self.calls:
            found = call.runner({name: values[place] for name, place in call.inputs.items()})
            values.update({place: found[name] for name, place in call.outputs.items()})
        return {name: values[place] for name, place in self.outputs.items()}

    def report(self) -> RunReport:
        """The records of all models."""
        reports = [call.runner.report() for call in self.calls]
        return dataclasses.replace(reports[0], ops=tuple(stat for report in reports for stat in report.ops))


def calls_of(plan: Any, runners: Mapping[int, tuple[Model, PackageRunner]]) -> tuple[_Call, ...]:
    """The calls of a program's method in order; `runners` by the number of the delegate."""
    found = []
    for instruction in (i.instr_args for chain in plan.chains for i in chain.instructions):
        model, runner = runners[instruction.delegate_index]
        places = instruction.args
        if len(places) != len(model.inputs) + len(model.outputs):
            raise BadInput(f"a delegate is called with {len(places)} values, its model has {model.inputs} and {model.outputs}")
        count = len(model.inputs)
        names = dict(zip(model.inputs, places[:count], strict=True)), dict(zip(model.outputs, places[count:], strict=True))
        found.append(_Call(runner, *names))
    return tuple(found)
