"""Messages for a path that is not a .mlpackage, and for kinds of models that cannot run here."""

from __future__ import annotations

from pathlib import Path

from snapgen_deploy.system.lfs import is_pointer, pointer_line

AS_PROGRAM = "convert it again with coremltools and convert_to='mlprogram'"
MODELS = (".mlpackage", ".mlmodel", ".mlmodelc", ".zip")
"""Endings of what someone may give for a Core ML model."""

_HEAD = 64  # bytes that are enough to recognise the kind of a file


def not_a_package(path: Path) -> str:
    """What a path is instead of a .mlpackage directory, and how to get one."""
    if path.is_dir():
        return _directory(path)
    if not path.is_file():
        return f"{path}: no such .mlpackage directory"
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    if is_pointer(head):
        return pointer_line(path)
    if head.startswith(b"PK\x03\x04"):
        return f"{path}: got a zip archive, expected a .mlpackage directory; unpack it and give the directory inside"
    if path.suffix == ".mlmodel":
        return f"{path}: got a .mlmodel file, expected a .mlpackage directory with an ML Program; {AS_PROGRAM}"
    return f"{path}: got a file, expected a .mlpackage directory"


def _directory(path: Path) -> str:
    if path.suffix == ".mlmodelc" or (path / "coremldata.bin").is_file():
        return (
            f"{path}: got a compiled model (.mlmodelc), expected the .mlpackage that it was compiled from; "
            "a compiled one cannot be turned back"
        )
    inside = sorted(p.name for p in path.glob("*.mlpackage"))
    if inside:
        return f"{path}: got a directory around {inside[0]}, expected the .mlpackage itself; give {path / inside[0]}"
    return f"{path}: got a directory without Manifest.json, expected a .mlpackage"


def not_a_program(path: Path, kind: str | None) -> str:
    """Why a model of `kind` (the field of the specification that is set) does not run, and what to do."""
    if kind is None:
        return f"{path}: holds a model of unknown kind, expected an ML Program"
    if kind.startswith("neuralNetwork"):
        fix = AS_PROGRAM
    elif kind.startswith("pipeline"):
        fix = "save each of its models as a package of its own"
    else:
        fix = "only Core ML on a Mac runs this kind"
    return f"{path}: holds a {kind}, expected an ML Program; {fix}"
