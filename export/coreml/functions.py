"""Several Core ML packages joined into one with a function each, and each weight stored once.

A multifunction package (iOS 18 and later) holds named functions in one ML Program, over one weight file. coremltools makes one
with `save_multifunction`, which loads every program with all its weights into memory at once. Here the functions are copied
unchanged, and only their references into weight files are rewritten: tensors are copied from file to file one at a time, byte
for byte, and equal ones are stored once. The structure is the same (tests compare the two):
https://apple.github.io/coremltools/docs-guides/source/multifunction-models.html

Layout of a weight file: see `snapgen_deploy.export.mil.saved.blob`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.coreml.weight_file import WeightWriter
from snapgen_deploy.export.mil.saved.blob import WeightFile

FIRST_MULTIFUNCTION = 9  # specification version: iOS 18, macOS 15
SINGLE = "main"  # the function of a package that holds one


def blob_values(function: Any) -> Iterator[Any]:
    """Every reference into a weight file of a function's message: attributes and inputs of all its operations."""

    def of(block: Any) -> Iterator[Any]:
        for operation in block.operations:
            bound = (b.value for a in operation.inputs.values() for b in a.arguments if b.WhichOneof("binding") == "value")
            for value in (*operation.attributes.values(), *bound):
                if value.WhichOneof("value") == "blobFileValue":
                    yield value.blobFileValue
            for inner in operation.blocks:
                yield from of(inner)

    for block in function.block_specializations.values():
        yield from of(block)


def join(specs: Mapping[str, tuple[Any, Path]], weights: Path) -> Any:
    """The Model message of one package with a function per entry of `specs`; its weights are written to the file `weights`.

    specs: function name -> (Model message of a package with one function, the folder that its `@model_path` stands for). The
    first is the default function, and its metadata are the package's.

    Raises:
        BadInput: if a package has several functions, or is for systems before iOS 18.
    """
    from coremltools.proto import Model_pb2

    joined = Model_pb2.Model()
    first = next(iter(specs.values()))[0]
    joined.specificationVersion = max(spec.specificationVersion for spec, _ in specs.values())
    if joined.specificationVersion < FIRST_MULTIFUNCTION:
        raise BadInput(
            f"coreml: several picture sizes in one package need iOS 18, these are of specification version "
            f"{joined.specificationVersion}; leave the option deployment out, or export one --resolution a bundle"
        )
    joined.isUpdatable = first.isUpdatable
    joined.mlProgram.CopyFrom(first.mlProgram)
    joined.mlProgram.functions.clear()
    joined.description.metadata.CopyFrom(first.description.metadata)
    joined.description.defaultFunctionName = next(iter(specs))
    with weights.open("wb") as file:
        store = WeightWriter(file)
        for name, (spec, folder) in specs.items():
            if list(spec.mlProgram.functions) != [SINGLE]:
                raise BadInput(
                    f"coreml: got a package with the functions {sorted(spec.mlProgram.functions)}, expected {SINGLE}"
                )
            described = joined.description.functions.add(name=name)
            for kind in ("input", "output", "state"):
                getattr(described, kind).extend(getattr(spec.description, kind))
            joined.mlProgram.functions[name].CopyFrom(spec.mlProgram.functions[SINGLE])
            store.move(blob_values(joined.mlProgram.functions[name]), folder)
        store.finish()
    if not store.places:
        weights.unlink()
    return joined


def shared_bytes(spec: Any, folder: Path) -> int:
    """Bytes of tensors that more than one function of a saved package refers to, each counted once."""
    users: Counter[tuple[str, int]] = Counter()
    for function in spec.mlProgram.functions.values():
        users.update({(v.fileName, int(v.offset)) for v in blob_values(function)})
    files = {name: WeightFile(folder / name.removeprefix("@model_path/")) for name, _ in users}
    return sum(int(files[name].raw(offset)[2].nbytes) for (name, offset), count in users.items() if count > 1)
