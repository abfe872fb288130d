"""Checks of what was exported: gates, fidelity, layers, a bundle's facts, and `verify`."""
