"""What a model is made of: the components of a configuration, and the families that students come in.

General code asks `components_of` for a model's components and loops over them; what only a family knows it asks `family_of`.
"""

from snapgen_deploy.families.base import Family
from snapgen_deploy.families.component import Components, ComponentSpec, Drawing, Port, Ports, Spelling
from snapgen_deploy.families.registry import components_of, family_of, student_types

__all__ = [
    "ComponentSpec", "Components", "Drawing", "Family", "Port", "Ports", "Spelling",
    "components_of", "family_of", "student_types",
]  # fmt: skip
