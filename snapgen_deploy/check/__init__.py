"""Checks of exported files and bundles: gates, fidelity, layers, a manifest's facts, and `verify`."""
