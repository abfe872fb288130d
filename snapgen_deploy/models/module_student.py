"""Students that are a class of a user's own package: the reference is that module, with this package's ports."""

from __future__ import annotations

import functools
import inspect
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.library_student import ByStream, GivenFeatures, StudentText
from snapgen_deploy.models.module_config import ModuleStudent, NamedModule
from snapgen_deploy.models.student import Student
from snapgen_deploy.models.students import ONLY
from snapgen_deploy.system.distributions import InstalledClass, installed_class
from snapgen_deploy.system.quiet import first_line, quiet, reason_of


class ModuleReference(Student):
    """Latent (B, C, h, w), features (B, F), text and masks -> the network's output (B, C, h, w)."""

    def __init__(self, config: ModuleStudent) -> None:
        """Raises:
        BadInput: if the class was not named by the caller, or makes no network of the configuration.
        """
        super().__init__()
        self.config: ModuleStudent = config
        self.width = ONLY
        self.network: Any = build_module(config)
        self.eval()

    def forward(
        self,
        latent: Tensor,
        features: Tensor,
        text: ByStream,
        mask: ByStream,
        pooled: ByStream = MappingProxyType({}),
    ) -> Tensor:
        """The module called with the inputs that it reads.

        Raises:
            BadInput: if the module fails, or its output is no latent.
        """
        values = {"latent": latent, "time_features": features}
        values |= StudentText(text, mask, pooled).arrays(self.config.text_streams)
        given = {argument: values[name] for name, argument in self.config.arguments_by_input.items()}
        try:
            out = self.network(**given, **self.config.constants)
        except Exception as error:  # whatever a user's code raises, also where it cannot be traced
            kind, reason = type(self.network).__name__, reason_of(error)
            raise BadInput(f"student: forward of {kind} fails on its inputs ({reason})") from error
        out = out[0] if isinstance(out, tuple | list) and out else out
        if not isinstance(out, Tensor) or out.shape != latent.shape:
            got = f"shape {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise BadInput(f"student: its output is {got}, expected a tensor of the latent's shape {list(latent.shape)}")
        return out


@functools.cache
def module_class(name: str) -> InstalledClass:
    """The class of a network, `package.module:Class`, imported here and nowhere before.

    Raises:
        BadInput: as `installed_class`; if it is no `torch.nn.Module`.
    """
    found = installed_class(name)
    if not issubclass(found.kind, nn.Module):
        raise BadInput(f"--module {name}: is a class, but no torch.nn.Module")
    return found


def build_module(config: ModuleStudent) -> nn.Module:
    """The user's network, without a checkpoint, on torch's current device where it can be built there.

    Raises:
        BadInput: if the class was not named by the caller, takes no such arguments or inputs, or has no such module inside.
    """
    if not isinstance(config, NamedModule) or config.code is None:
        raise BadInput("student: its class is named with --module package.module:Class; no checkpoint and no bundle names it")
    kind = module_class(config.code.module).kind
    network = _made(kind, config.arguments)
    if config.time_module:
        try:
            network.get_submodule(config.time_module)
        except AttributeError:
            raise BadInput(f"student: time_module: {kind.__name__} has no module {config.time_module!r}") from None
        network.set_submodule(config.time_module, GivenFeatures())
    given = dict.fromkeys(config.arguments_by_input.values()) | config.constants
    try:
        inspect.signature(network.forward).bind(**given)
    except TypeError as error:
        raise BadInput(
            f"student: forward of {kind.__name__} cannot be called with {', '.join(given)} ({first_line(error)}); "
            "say with student.inputs which input is which argument"
        ) from None
    return network


def _made(kind: type[Any], arguments: dict[str, Any]) -> nn.Module:
    """An object; one that computes numbers when it is built needs a device that has them."""
    try:
        with quiet():
            made: nn.Module = kind(**arguments)
    except Exception as error:  # whatever a user's class raises
        if torch.get_default_device().type == "meta":
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                return _made(kind, arguments).to("meta")
        reason = reason_of(error)
        raise BadInput(f"student: {kind.__name__} takes no such arguments ({reason})") from None
    return made
