"""The ASSA rewrite: graphs with the same mathematics as `snapgen_deploy.models` in operations that phones run well."""

from snapgen_deploy.sparse.decoder import UpsampleForm
from snapgen_deploy.sparse.decoder_range import norm_scales
from snapgen_deploy.sparse.forms import FORMS, Kernel
from snapgen_deploy.sparse.rewrite import (
    Layout,
    rewrite_decoder,
    rewrite_library_decoder,
    rewrite_library_student,
    rewrite_library_text,
    rewrite_module,
    rewrite_student,
    rewrite_text_encoder,
    rewrite_unet,
)
from snapgen_deploy.sparse.token_layers import OpForm

__all__ = [
    "FORMS", "Kernel", "Layout", "OpForm", "UpsampleForm",
    "norm_scales", "rewrite_decoder", "rewrite_library_decoder", "rewrite_library_student", "rewrite_library_text",
    "rewrite_module", "rewrite_student", "rewrite_text_encoder", "rewrite_unet",
]  # fmt: skip
