"""Runs functions of `.aimodel` assets in Apple's Core AI runtime, inside a companion process.

Imports numpy and Apple's runtime, but not torch, so that the process starts quickly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
_LOOP = asyncio.new_event_loop()  # the runtime's calls are coroutines, and a loaded model belongs to its event loop

_functions: dict[tuple[str, str], tuple[Any, Any]] = {}  # (path, function): the loaded model, kept open, and its function


@dataclass(frozen=True)
class Signature:
    """A loaded asset: all functions, and the inputs and outputs of one, (name, shape, dtype) each, in order."""

    functions: tuple[str, ...]
    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    outputs: tuple[tuple[str, tuple[int, ...], str], ...]


def load(path: str, function: str) -> Signature:
    """Load a function for `run`; the signature has no inputs and outputs if there is no such function."""
    from coreai.authoring import AIModelAsset

    model = _wait("cannot load it", AIModelAsset.load(path).executable().__aenter__())
    known = tuple(sorted(model.function_names))
    if function not in known:
        return Signature(known, (), ())
    call = model.load_function(function)
    _functions[path, function] = (model, call)
    desc = call.desc
    return Signature(known, _ports(desc.input_names, desc.input_descriptor), _ports(desc.output_names, desc.output_descriptor))


def run(path: str, function: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Named outputs of one call of a loaded function."""
    from coreai.runtime import NDArray

    _, call = _functions[path, function]
    given = {name: NDArray(array) for name, array in arrays.items()}
    return {name: value.numpy() for name, value in _wait("failed", call(given)).items()}


def _wait(what: str, work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result; the runtime's exceptions become one RuntimeError, since they cannot be pickled."""

    async def waited() -> T:
        return await work

    try:
        return _LOOP.run_until_complete(waited())
    except Exception as error:
        raise RuntimeError(f"Apple's runtime {what}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _ports(names: list[str], describe: Any) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    return tuple((name, tuple(describe(name).shape), str(describe(name).dtype)) for name in names)
