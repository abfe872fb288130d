"""The extras of this package, what each brings, and what is said where one is not installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import util

from snapgen_deploy.errors import BadInput

_SHOWN = 4  # modules that a message names


@dataclass(frozen=True)
class Extra:
    """An optional extra, `pip install 'snapgen-deploy[name]'`, and its modules."""

    name: str
    modules: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """Its modules that are not installed; none is imported."""
        return [name for name in self.modules if util.find_spec(name) is None]


TO_DRAW = Extra("runtime", ("numpy", "onnxruntime", "PIL", "tokenizers"))
# What has the name of a target (ExecuTorch, ONNX) is not looked for: pip brings it together with the others.
TO_EXPORT = Extra(
    "export",
    (
        *TO_DRAW.modules, "torch", "torchao", "coremltools", "onnxscript", "optimum", "transformers", "diffusers", "scipy",
        "safetensors", "sklearn", "threadpoolctl", "matplotlib", "jinja2", "license_expression", "typer", "pydantic", "rich",
    ),
)  # fmt: skip


class NotInstalled(BadInput, ImportError):
    """What was asked for needs an extra of this package that is not installed."""


def need(extra: Extra, what: str) -> None:
    """Check that an extra is installed that `what` needs.

    Raises:
        NotInstalled: if it is not; the message has the command that installs it.
    """
    if missing := extra.missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise NotInstalled(
            f"{what} needs packages that are not installed ({', '.join(missing[:_SHOWN])}{more}): "
            f'python -m pip install "snapgen-deploy[{extra.name}]"'
        )
