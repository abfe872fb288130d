"""The families by name. A new family is one module and one line here."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.base import Family
from snapgen_deploy.families.component import Components
from snapgen_deploy.families.diffusers import DiffusersFamily
from snapgen_deploy.families.elastic_dit import ElasticDiTFamily
from snapgen_deploy.families.module import ModuleFamily
from snapgen_deploy.families.unet import UNetFamily
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.serialise import config_to_json

FAMILIES: dict[str, Family] = {
    "elastic-dit": ElasticDiTFamily(),
    "unet": UNetFamily(),
    "diffusers": DiffusersFamily(),
    "module": ModuleFamily(),
}


def family_of(config: ModelConfig) -> Family:
    """The family of a configuration's student.

    Raises:
        BadInput: if the configuration names an unknown family; the message lists the known ones.
    """
    if config.family not in FAMILIES:
        raise BadInput(f"family: got {config.family!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[config.family]


def components_of(config: ModelConfig) -> Components:
    """The components of a configuration, in the order in which a picture uses them.

    >>> from snapgen_deploy.models.presets import shapes
    >>> components_of(shapes()).names
    ('text_encoder', 'student', 'decoder')

    Raises:
        BadInput: if the configuration names an unknown family.
    """
    family = family_of(config)
    found = family.components(config)
    if config.guided:
        found = replace(found, denoiser=replace(found.denoiser, guidance=config.guidance_scale))
    if any(spec.needs_vectors for spec in found):
        return found  # its class is a user's, which equal configurations need not both be allowed to build
    return _first(_Configured(config_to_json(config), family, found))


@dataclass(frozen=True)
class _Configured:
    """The components of a configuration, compared by its text and its family."""

    text: str
    family: Family
    components: Components = field(compare=False)


@functools.lru_cache(maxsize=64)
def _first(configured: _Configured) -> Components:
    """The same objects for equal configurations: they remember what was counted."""
    return configured.components


def student_types() -> Mapping[str, type]:
    """The dataclass of a configuration's `student` by family, for `models.serialise`."""
    return {name: family.student_type for name, family in FAMILIES.items()}
