"""Estimates of the time of a picture before anything is exported: the costs of a graph, and the time they take on a device."""
