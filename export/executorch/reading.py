"""What ExecuTorch's exporter knows of saved programs, without the exporter: their schemas, and how their bytes are read."""

from __future__ import annotations

from snapgen_deploy.export.executorch.exporter import without_exporter
from snapgen_deploy.system.quiet import quiet

with quiet(), without_exporter():
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
    from executorch.exir._serialize._flatbuffer import _flatc_decompile as flatc_decompile
    from executorch.exir._serialize._program import _ExtendedHeader as ExtendedHeader
    from executorch.exir._serialize._program import _flatbuffer_to_program as flatbuffer_to_program
    from executorch.exir._serialize._program import _get_extended_header as extended_header
    from executorch.exir.schema import DataLocation, DelegateCall, KernelCall, Tensor

    XNNPACK_SCHEMA = _get_schema_bytes()  # it is found beside its package, as long as that is imported

__all__ = [
    "XNNPACK_SCHEMA", "DataLocation", "DelegateCall", "ExtendedHeader", "KernelCall", "Tensor", "XNNHeader", "extended_header",
    "flatbuffer_to_program", "flatc_decompile",
]  # fmt: skip
