"""The errors of a Core ML package; both exit with code 2, as every BadInput does."""

from __future__ import annotations

from snapgen_deploy.errors import BadInput


class PackageError(BadInput):
    """The package cannot be read, or its inputs are not what it declares."""


class OpError(BadInput):
    """An operation is not supported, or has inputs that its definition forbids."""
