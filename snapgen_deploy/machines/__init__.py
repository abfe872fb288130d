"""Machines besides this one that run saved files here: emulated processors."""
