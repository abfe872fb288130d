"""The families by name. A new family is one module and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.base import Family
from snapgen_deploy.families.component import Components
from snapgen_deploy.families.elastic_dit import ElasticDiTFamily
from snapgen_deploy.models.config import ModelConfig

FAMILIES: dict[str, Family] = {
    "elastic-dit": ElasticDiTFamily(),
}


def family_of(config: ModelConfig) -> Family:
    """The family of a configuration's student; BadInput that lists the known ones for another name."""
    if config.family not in FAMILIES:
        raise BadInput(f"family: got {config.family!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[config.family]


def components_of(config: ModelConfig) -> Components:
    """The components of a configuration, in the order in which a picture uses them."""
    return family_of(config).components(config)


def student_types() -> Mapping[str, type]:
    """What `models.serialise` reads the `student` of a configuration as, by family."""
    return {name: family.student_type for name, family in FAMILIES.items()}
