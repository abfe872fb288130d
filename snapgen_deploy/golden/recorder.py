"""Writes golden vectors from any PyTorch modules: forward hooks keep what goes in and what comes out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput

Pick = str | int | Callable[[Any], Tensor]  # of a call's arguments by name, or of its result


class Recorder:
    """Keeps rows of named arrays, and writes them as a file of golden vectors."""

    def __init__(self, width: str = "", computed_in: str = "") -> None:
        self.width, self.computed_in = width, computed_in
        self.prompts: list[str] = []
        self._rows: dict[str, list[Tensor]] = {}

    def add(self, component: str, **arrays: Any) -> None:
        """Rows of a component's arrays by port: tensors or arrays whose first axis counts calls."""
        for name, value in arrays.items():
            self._keep(f"{component}.{name}", torch.as_tensor(value))

    def picture(self, prompt: str, **arrays: Any) -> None:
        """One whole picture: the prompt, `noise`, `picture` or `latent`, and text that no encoder of the checkpoint makes."""
        self.prompts.append(prompt)
        self.add("pipeline", **arrays)

    @contextmanager
    def watch(
        self,
        component: str,
        module: nn.Module,
        *,
        inputs: Mapping[str, Pick],
        output: tuple[str, Pick | None],
        layers: Mapping[str, nn.Module] | None = None,
    ) -> Iterator[None]:
        """While open, every call of `module` is a row.

        `inputs` maps ports to names of the module's arguments, or to functions of all of them (a dictionary by name). `output`
        is the port and where it lies in the result: an attribute or index, a function, or None for the result itself. `layers`
        maps the reference's names of modules to modules inside this one, whose results are kept as well.
        """
        inside: dict[str, Tensor] = {}

        def called(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            arguments = _arguments(module, args, kwargs)
            rows = {port: _picked(arguments, pick, f"{component}.{port}") for port, pick in inputs.items()}
            rows[output[0]] = _picked(result, output[1], f"{component}.{output[0]}")
            for name, value in (rows | {f"layers.{n}": v for n, v in inside.items()}).items():
                self._keep(f"{component}.{name}", value)
            inside.clear()

        def kept(name: str) -> Callable[..., None]:
            return lambda layer, args, result: inside.update({name: _picked(result, None, f"{component}.layers.{name}")})

        with ExitStack() as hooks:
            for name, layer in (layers or {}).items():
                hooks.callback(layer.register_forward_hook(kept(name)).remove)
            hooks.callback(module.register_forward_hook(called, with_kwargs=True).remove)
            yield

    def arrays(self) -> dict[str, Tensor]:
        """All rows, stacked.

        Raises:
            BadInput: if there are none, or rows of one array have different shapes.
        """
        if not self._rows:
            raise BadInput("nothing was recorded: no watched module was called, and nothing was added")
        found = {}
        for name, rows in sorted(self._rows.items()):
            shapes = sorted({tuple(row.shape[1:]) for row in rows})
            if len(shapes) > 1:
                raise BadInput(
                    f"{name}: rows have the shapes {', '.join(map(str, shapes))}; pad texts to one length, draw one size"
                )
            found[name] = torch.cat(rows).contiguous()
        return found

    def save(self, path: Path) -> None:
        """Write the file."""
        import json

        from safetensors.torch import save_file

        said = {"width": self.width, "computed_in": self.computed_in or _arithmetic()}
        metadata = {name: value for name, value in said.items() if value}
        metadata |= {"prompts": json.dumps(self.prompts)} if self.prompts else {}
        try:
            save_file(self.arrays(), path, metadata)
        except OSError as error:
            raise BadInput(f"{path}: cannot be written ({error.strerror or error})") from None

    def _keep(self, name: str, value: Tensor) -> None:
        if value.ndim == 0:
            value = value[None]
        self._rows.setdefault(name, []).append(value.detach().cpu().clone())


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a module was called with, by name; positions too, as numbers."""
    numbered: dict[Any, Any] = dict(enumerate(args))
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {}
    return numbered | dict(bound) | kwargs


def _picked(found: Any, pick: Pick | None, name: str) -> Tensor:
    """The tensor that is meant."""
    try:
        if callable(pick):
            value = pick(found)
        elif pick is None:
            value = found if isinstance(found, Tensor) else found[0]
        elif isinstance(found, Mapping) or isinstance(pick, int):
            value = found[pick]
        else:
            value = getattr(found, pick)
    except (KeyError, IndexError, AttributeError, TypeError):
        there = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise BadInput(f"{name}: the call has no {pick!r}; it has {there}") from None
    if not isinstance(value, Tensor):
        raise BadInput(f"{name}: {pick!r} is a {type(value).__name__}, expected a tensor")
    return value


def _arithmetic() -> str:
    """`tf32` where products of fp32 are rounded to it here; "" where the dtype of the outputs says it."""
    return "tf32" if torch.cuda.is_available() and torch.get_float32_matmul_precision() != "highest" else ""
