"""What the configuration of a student says whose class is a user's own; the class is not imported for it.

The class is named on the command line, and nowhere else: what a checkpoint or a bundle says imports nothing. A configuration
that was opened with the name is a `NamedModule`; only of such a one a network is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field, StrictBool

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.config import AnyText, Document, Positive, PositiveInt, Settings, TextStream
from snapgen_deploy.models.schedule import Schedule
from snapgen_deploy.models.schedulers import Spacing, schedule_from
from snapgen_deploy.models.students import ONLY
from snapgen_deploy.system.documents import shown

_NEEDED = ("latent", "time_features")  # inputs that every student reads
_Names = Annotated[dict[str, str], Field(description="names of arguments, by name of the input")]


@dataclass(frozen=True)
class ClassRecord(Document):
    """Where a class came from, for a bundle."""

    module: AnyText  # package.module:Class
    distribution: AnyText
    version: AnyText
    sha256: AnyText  # of the file that defines it


@dataclass(frozen=True)
class ModuleStudent(Document):
    """A student that is a class of a user's own package."""

    LATER: ClassVar[frozenset[str]] = frozenset(
        {"inputs", "constants", "time_module", "unit", "timestep_scale", "even_levels", "code"}
    )

    arguments: Settings = field(hash=False)  # of the class
    scheduler: Settings = field(hash=False)  # as diffusers writes scheduler_config.json
    latent_channels: PositiveInt
    latent_factor: PositiveInt  # pixels for each cell of the latent along one axis
    text_streams: Annotated[tuple[TextStream, ...], Field(min_length=1)]
    time_features: Annotated[int, Field(strict=True, ge=2, le=1 << 20, multiple_of=2)]  # sinusoids of the noise level
    # Argument of `forward` by name of the input. Inputs that are not named are not read; {}: all, under their own names.
    inputs: _Names = field(default_factory=dict, hash=False)
    constants: Settings = field(default_factory=dict, hash=False)  # further arguments of `forward`
    time_module: AnyText = ""  # module inside that makes the features of a timestep, which are an input here; "": there is none
    unit: PositiveInt = 1  # both sides of a latent are multiples of it
    timestep_scale: Positive = 1.0  # of the timesteps that the features are of
    even_levels: StrictBool = False  # noise levels before the shift are 1, 1 - 1/n, ..., as Flux's pipeline sets them
    code: ClassRecord | None = None  # of the class, as it was installed

    @property
    def widths(self) -> Mapping[str, float]:
        """The only one."""
        return MappingProxyType({ONLY: 1.0})

    @property
    def arguments_by_input(self) -> Mapping[str, str]:
        """What is read: the argument of `forward` for each input."""
        names = [*_NEEDED, *(name for s in self.text_streams for name in s.shapes)]
        return self.inputs or {name: name for name in names}

    def schedule(self, steps: int) -> Schedule:
        """The noise levels, timesteps and coefficients of its scheduler.

        Raises:
            BadInput: if the scheduler is not one that is taken, or has no such number of steps.
        """
        return schedule_from(self.scheduler, Spacing(steps, self.even_levels, self.timestep_scale), self.time_features)

    def problems(self) -> list[str]:
        """Why this configuration is invalid, one line each; empty if it is valid."""
        known = [*_NEEDED, *(name for s in self.text_streams for name in s.shapes)]
        found = [
            f"inputs: {shown(name)} is no input, expected one of {', '.join(known)}"
            for name in self.inputs if name not in known
        ]  # fmt: skip
        found += [f"inputs: {name} is missing" for name in _NEEDED if self.inputs and name not in self.inputs]
        taken = [*self.inputs.values(), *self.constants]
        found += [f"inputs: {shown(name)} is given twice" for name in dict.fromkeys(taken) if taken.count(name) > 1]
        try:
            self.schedule(1)
        except BadInput as error:
            found.append(str(error))
        return found

    def latent_problems(self, height: int, width: int) -> list[str]:
        """Why a latent of `height` x `width` does not fit."""
        if min(height, width) < 1 or height % self.unit or width % self.unit:
            return [f"latent {height}x{width}: both sides must be positive multiples of {self.unit}"]
        return []


class NamedModule(ModuleStudent):
    """The same, of which a network may be built: its class was named by whoever runs the tool."""

    @classmethod
    def of(cls, student: ModuleStudent, code: ClassRecord) -> NamedModule:
        """A student whose class was named."""
        given: dict[str, Any] = {f.name: getattr(student, f.name) for f in fields(student)}
        return cls(**given | {"code": code})


def module_student_of(student: object) -> ModuleStudent:
    """The student of a configuration of the family."""
    assert isinstance(student, ModuleStudent)  # the registry gave its reader this class
    return student
