"""Classes of `diffusers` by the configurations that the library writes: their names, their settings, and objects of them.

The library is imported where an object is made, and nowhere before.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snapgen_deploy.errors import BadInput, nearest
from snapgen_deploy.system.documents import shown
from snapgen_deploy.system.quiet import quiet, reason_of

CLASS = "_class_name"  # key of the class in a configuration


def class_named(config: Mapping[str, Any], known: Iterable[str], begin: str) -> str:
    """The class that a configuration names; `begin` is what the message begins with, such as "scheduler: ".

    Raises:
        BadInput: if it is none of `known`.
    """
    kind, names = config.get(CLASS), tuple(known)
    if not isinstance(kind, str) or kind not in names:
        near = nearest(kind, names) if isinstance(kind, str) else ""
        raise BadInput(f"{begin}{CLASS}: got {shown(kind)}, expected one of {', '.join(names)}{near}")
    return kind


def fixed_problems(config: Mapping[str, Any], fixed: Mapping[str, Sequence[Any]]) -> list[str]:
    """Settings that have another value than those that are converted, one line each."""
    return [
        f"{name}: got {shown(config[name])}, expected {'it to be off' if values[-1] is False else shown(values[0])}"
        for name, values in fixed.items()
        if name in config and config[name] not in values
    ]


def library_class(module: str, name: str) -> Any:
    """A class of a module below `diffusers`."""
    with quiet():
        return getattr(importlib.import_module(f"diffusers.{module}"), name)


def built(kind: Any, config: Mapping[str, Any], begin: str) -> Any:
    """An object of a class with the settings that it takes; networks without a checkpoint, on torch's current device.

    Raises:
        BadInput: if the library makes none of these values.
    """
    known = inspect.signature(kind.__init__).parameters
    try:
        return kind(**{name: value for name, value in config.items() if name in known})
    except Exception as error:  # the library checks little: a wrong value may end in any kind of exception
        raise BadInput(f"{begin}{kind.__name__} of diffusers takes no such configuration ({reason_of(error)})") from None


def read_folder(kind: Any, folder: Path, read: Callable[[str], Tensor], adapted: Collection[str], begin: str) -> Any:
    """A network in fp32 from a folder as the library itself reads it; `adapted` names tensors that `read` gives instead.

    Raises:
        BadInput: if the library cannot read the folder.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            whole = kind.from_pretrained(
                str(folder), torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise BadInput(f"{begin}{folder}: diffusers cannot read it ({reason_of(error)})") from None
    whole.load_state_dict({name: read(name).float() for name in adapted}, strict=False)
    return whole.eval()
