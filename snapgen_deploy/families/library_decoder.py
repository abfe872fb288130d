"""Decoders of autoencoders that are classes of diffusers, as components."""

from __future__ import annotations

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.models.config import LibraryDecoder
from snapgen_deploy.system.documents import shown


def library_decoder(config: LibraryDecoder) -> ComponentSpec:
    """The component of a decoder of diffusers.

    Raises:
        BadInput: if its class is not one of those that can be exported.
    """
    raise BadInput(f"decoder: got the class {shown(config.config.get('_class_name'))}")
