"""What a model is made of: the components of a configuration, and the families that students come in.

General code asks `registry.components_of` for a model's components and loops over them; what only a family knows it asks
`registry.family_of`.
"""
