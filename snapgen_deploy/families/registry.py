"""The families by name. A new family is one module and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.base import Family
from snapgen_deploy.families.component import Components
from snapgen_deploy.families.diffusers import DiffusersFamily
from snapgen_deploy.families.elastic_dit import ElasticDiTFamily
from snapgen_deploy.families.module import ModuleFamily
from snapgen_deploy.families.unet import UNetFamily
from snapgen_deploy.models.config import ModelConfig

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
    found = family_of(config).components(config)
    return replace(found, denoiser=replace(found.denoiser, guidance=config.guidance_scale)) if config.guided else found


def student_types() -> Mapping[str, type]:
    """The dataclass of a configuration's `student` by family, for `models.serialise`."""
    return {name: family.student_type for name, family in FAMILIES.items()}
