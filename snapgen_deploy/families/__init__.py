"""What a model is made of: the components of a configuration, and the families of students.

General code gets a model's components from `registry.components_of` and loops over them; what depends on the family it gets
from `registry.family_of`.
"""
