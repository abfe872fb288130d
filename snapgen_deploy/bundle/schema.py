"""Schema of manifest.json: what its readers rely on, checked once when it is opened. Unknown keys are ignored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, field_validator

from snapgen_deploy.device_profiles.validate import TargetKey
from snapgen_deploy.export.precisions import LIMIT_NAMES, PRECISIONS
from snapgen_deploy.models.schedule import EULER, LINEAR
from snapgen_deploy.system.documents import refuse
from snapgen_deploy.system.typed import Amount, Count, Number, OneOf, Table, Text, read_as


def _inside(name: str) -> str:
    """A path inside the bundle: the hashes would not cover a file outside of it."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError("files of this bundle")
    return name


def _size(name: str) -> str:
    """A picture size, which also becomes a part of file names."""
    if not re.fullmatch(r"[0-9]{1,6}x[0-9]{1,6}", name):
        raise ValueError("HEIGHTxWIDTH")
    return name


Inside = Annotated[str, AfterValidator(_inside)]
SizeName = Annotated[str, AfterValidator(_size)]
Counts = dict[str, Amount]
_Picture = Annotated[tuple[Count, Count], Field(description="[height, width]")]
Latent = Annotated[tuple[Count, Count, Count], Field(description="[channels, height, width]")]
Numbers = Annotated[list[Number], Field(min_length=2, description="a list of numbers")]


class _Device(BaseModel):
    id: Text
    name: Text
    guards: Annotated[list[Text], Field(description="a list of texts")] = []


class _Latent(BaseModel):
    shape: Latent


class _TimeFeatures(BaseModel):
    count: Annotated[Count, Field(le=1 << 20)]
    values: list[list[Number]] = []


class _Schedule(BaseModel):
    sampler: Annotated[str, OneOf((EULER, LINEAR))]
    shift: Number
    sigmas: Numbers
    time_features: _TimeFeatures
    timesteps: list[Number] = []
    start: Number = 1.0
    coefficients: Annotated[list[tuple[Number, Number, Number]], Field(description="[keep, scale, noise] of each step")] = []

    @field_validator("coefficients")
    @classmethod
    def _of_each_step(cls, rows: list[tuple[float, float, float]], info: ValidationInfo) -> list[tuple[float, float, float]]:
        steps = len(info.data.get("sigmas", ())) - 1
        if len(rows) != (steps if info.data.get("sampler") == LINEAR else 0):
            raise ValueError("[keep, scale, noise] of each step of the linear sampler")
        return rows


class _Gate(BaseModel):
    target: Text
    component: Text
    name: Text
    verdict: Text
    size: str = ""
    on: str = ""
    value: Number | None = None
    limit: Number | None = None


class _Size(BaseModel):
    name: SizeName
    resolution: _Picture
    latent: Latent


class _File(BaseModel):
    bytes: Amount
    sha256: str


class _Port(BaseModel):
    name: Text
    shape: list[Amount]
    dtype: Text


class _Graph(BaseModel):
    inputs: list[_Port] = []
    outputs: list[_Port] = []
    entry: str = ""
    macs: Amount | None = None
    notes: list[str] = []
    ops: Counts = {}
    placement: Counts = {}
    portable_ops: Counts = {}
    lint: Counts = {}


class _AtSize(_Graph):
    path: Inside | None = None
    files: list[Inside] = []


class _Component(_Graph):
    path: Inside
    files: dict[Inside, _File]
    bytes: Amount
    weight_dtypes: Counts = {}
    sizes: dict[SizeName, _AtSize] = {}

    @field_validator("sizes")
    @classmethod
    def _of_the_component(cls, sizes: dict[str, _AtSize], info: ValidationInfo) -> dict[str, _AtSize]:
        if not {name for own in sizes.values() for name in own.files} <= set(info.data.get("files", ())):
            raise ValueError("files of the component")
        return sizes


class _Target(BaseModel):
    precision: Annotated[str, OneOf(tuple(PRECISIONS))]
    components: dict[str, _Component]
    attention_form: str = ""
    layout: str = ""
    versions: dict[str, str] = {}
    limits: dict[Annotated[str, OneOf(LIMIT_NAMES)], Number] = {}


class _Lora(BaseModel):
    name: str
    sha256: str
    scale: Number


class _Checkpoint(BaseModel):
    sha256: str
    license: str | None
    loras: list[_Lora] = []


class _Stage(BaseModel):
    share: Number
    days: Count


class _Rollout(BaseModel):
    stages: list[_Stage]
    least_pictures: Count
    watch: dict[str, Table]


class _Manifest(BaseModel):
    name: Text
    width: Text
    device: _Device
    config: Table
    licenses: dict[str, str | None] = {}  # of components and LoRAs; not in bundles of earlier releases
    resolution: _Picture
    latent: _Latent
    schedule: _Schedule
    prompts: list[str]
    seeds: list[Amount]
    gates: list[_Gate]
    checkpoint: _Checkpoint | None = None
    reasons: list[str] = []
    warnings: list[str] = []
    compared_with: str = ""
    batch: Count = 1
    rollout: _Rollout | None = None
    estimates: list[Table] = []
    vectors_of: SizeName | None = None
    sizes: Annotated[list[_Size], Field(min_length=1)] = []
    files: dict[Inside, _File]
    targets: dict[TargetKey, _Target]
    target_order: Annotated[list[Text], Field(min_length=1)]

    @field_validator("target_order")
    @classmethod
    def _of_its_targets(cls, order: list[str], info: ValidationInfo) -> list[str]:
        if set(order) != set(info.data.get("targets", order)):
            raise ValueError("the names of its targets")
        return order


def refuse_misshapen(path: Path, manifest: Mapping[str, Any]) -> None:
    """Check a manifest against the schema.

    Raises:
        BadInput: if a field is missing or has the wrong type, or a file lies outside the bundle; lists all problems.
    """
    _, problems = read_as(_Manifest, manifest)
    refuse(str(path), problems, "; export the bundle again")
