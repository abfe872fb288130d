"""Text encoders that are classes of transformers, as components."""

from __future__ import annotations

from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import ComponentSpec
from snapgen_deploy.models.config import LibraryTextEncoder
from snapgen_deploy.system.documents import shown


def library_text_encoder(config: LibraryTextEncoder, index: int) -> ComponentSpec:
    """The component of a text encoder of transformers.

    Raises:
        BadInput: if its class is not one of those that can be exported.
    """
    raise BadInput(f"text encoder of stream {config.stream!r}: got the class {shown(config.config.get('architectures'))}")
