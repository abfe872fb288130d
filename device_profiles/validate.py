"""The schema of a profile's TOML file, and its conversion to a Profile."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, ValidationInfo, create_model, field_validator
from pydantic_core import CoreSchema, core_schema

from snapgen_deploy.device_profiles.cores import CORES
from snapgen_deploy.device_profiles.schema import (
    BUDGET_STATUSES,
    BYTES_IN,
    DEVICE_KINDS,
    FIGURES,
    GUARDS,
    LAYOUTS,
    STATUSES,
    Figure,
    Isa,
    LatencyBasis,
    Offer,
    Profile,
    ProfileTarget,
)
from snapgen_deploy.export.precisions import LIMIT_NAMES
from snapgen_deploy.export.registry import find_spec, spec_of, target_keys
from snapgen_deploy.system.typed import Closed, Count, OneOf, Text, read_as

LEAST, MOST = 1e-9, 1e18  # of any figure, in any of the units
ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # a part of the bundle's folder name


def _id(value: str) -> str:
    if value == "host" or not ID.fullmatch(value):
        raise ValueError("up to 64 lower-case letters, digits, - and _, other than host")
    return value


def _known(key: str) -> str:
    if find_spec(key) is None:
        raise ValueError(f"one of {', '.join(target_keys())}")
    return key


TargetKey = Annotated[Text, AfterValidator(_known)]
_Positive = Annotated[float, Field(strict=True, ge=LEAST, le=MOST, description=f"a positive number, {LEAST:g} to {MOST:g}")]
Texts = Annotated[tuple[Text, ...], Field(description="a list of strings")]
Guards = Annotated[tuple[Annotated[str, OneOf(tuple(GUARDS))], ...], Field(description="a list of guards")]


class _Figure(Closed):
    value: _Positive
    unit: str
    status: str
    source: Text


@dataclass(frozen=True)
class In:
    """Marks a figure in one of these units."""

    units: tuple[str, ...]
    statuses: tuple[str, ...] = STATUSES

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        one_of = {"unit": self.units, "status": self.statuses}
        fields: Any = {name: (Annotated[str, OneOf(names)], ...) for name, names in one_of.items()}
        table = handler.generate_schema(create_model("Figure", __base__=_Figure, **fields))
        return core_schema.no_info_after_validator_function(lambda found: Figure(**dict(found)), table)


@dataclass(frozen=True)
class Keys:
    """Marks a table whose keys may all be left out, by the type of each."""

    kinds: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        fields: Any = {name: (kind | None, None) for name, kind in self.kinds.items()}
        table = handler.generate_schema(create_model("Table", __base__=Closed, **fields))
        return core_schema.no_info_after_validator_function(
            lambda found: {name: value for name, value in found if value is not None}, table
        )


Milliseconds = Annotated[Figure, In(("ms",))]
BUDGET = {
    "memory": Annotated[Figure, In(tuple(BYTES_IN), BUDGET_STATUSES)],
    "latency": Annotated[Figure, In(("ms",), BUDGET_STATUSES)],
}


class _System(Closed):
    name: Text
    minimum: Text


class _Target(Closed):
    target: TargetKey
    precision: Text
    layout: Annotated[str, OneOf(LAYOUTS)]
    options: dict[str, Text] = Field(default_factory=dict)
    limits: Annotated[dict[str, float], Keys(dict.fromkeys(LIMIT_NAMES, _Positive))] = Field(default_factory=dict)

    @field_validator("precision")
    @classmethod
    def _offered(cls, precision: str, info: ValidationInfo) -> str:
        spec = find_spec(info.data.get("target", ""))
        if spec is not None and precision not in spec.precisions:
            raise ValueError(f"one of {', '.join(spec.precisions)}")
        return precision

    def made(self) -> ProfileTarget:
        """As a `ProfileTarget`; a bare name stands for the target's first variant."""
        spec, options, limits = spec_of(self.target), tuple(sorted(self.options.items())), tuple(self.limits.items())
        return ProfileTarget(spec.name, spec.variant, self.precision, self.layout, options, limits)


class _Offer(_Target):
    source: Text


class _Isa(Closed):
    cores: Annotated[tuple[Annotated[str, OneOf(tuple(CORES))], ...], Field(min_length=1, description="a list of cores")]
    source: Text


class _Latency(Closed):
    preset: Text
    resolution: Annotated[tuple[Count, Count], Field(description="[height, width] in pixels")]
    target: Text
    step: dict[str, Milliseconds]
    decoder: Milliseconds


class _Profile(Closed):
    id: Annotated[str, AfterValidator(_id)]
    name: Text
    kind: Annotated[str, OneOf(DEVICE_KINDS)]
    soc: Text
    os: _System
    source: Text
    figures: Annotated[dict[str, Figure], Keys({n: Annotated[Figure, In(units)] for n, units in FIGURES.items()})]
    targets: Annotated[tuple[_Target, ...], Field(min_length=1, description="one or more [[targets]] tables")]
    offers: Annotated[tuple[_Offer, ...], Field(description="[[offers]] tables, or none")] = ()
    budget: Annotated[dict[str, Figure], Keys(BUDGET)] = Field(default_factory=dict)
    latency: _Latency | None = None
    isa: _Isa | None = None
    guards: Guards = ()
    notes: Texts = ()

    def made(self) -> Profile:
        """As a `Profile`, without nested tables."""
        flat: dict[str, Any] = {
            "os": self.os.name,
            "os_minimum": self.os.minimum,
            "targets": tuple(t.made() for t in self.targets),
            "offers": tuple(Offer(o.made(), o.source) for o in self.offers),
            "isa": None if self.isa is None else Isa(**dict(self.isa)),
            "latency": None if self.latency is None else LatencyBasis(**dict(self.latency)),
            "memory_budget": self.budget.get("memory"),
            "latency_budget": self.budget.get("latency"),
        }
        return Profile(**{name: value for name, value in self if name not in ("budget", *flat)}, **flat)


def read_profile(table: Mapping[str, Any]) -> tuple[Profile | None, list[str]]:
    """The profile in a parsed file and no problems, or None and all problems, one text each."""
    document, problems = read_as(_Profile, table)
    if document is None:
        return None, problems
    profile = document.made()
    problems = list(_contradictions(profile))
    return (None if problems else profile), problems


def _contradictions(profile: Profile) -> Iterator[str]:
    """Contradictions between valid tables."""
    keys = [t.key for t in profile.targets]
    for key in sorted({k for k in keys if keys.count(k) > 1}):
        yield f"targets: got {key} {keys.count(key)} times, expected each target once"
    for key in keys:
        for name in spec_of(key).from_figures:
            if name not in profile.figures:
                yield f"figures.{name}: got nothing, expected a figure, which {key} needs"
    if profile.latency is not None and profile.latency.target not in keys:
        yield f"latency.target: got {profile.latency.target!r}, expected one of the profile's targets"
