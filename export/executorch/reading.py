"""What ExecuTorch's exporter knows of saved programs, without the exporter: their schemas, and how their bytes are read."""

from __future__ import annotations

from snapgen_deploy.export.executorch.exporter import without_exporter
from snapgen_deploy.system.quiet import quiet

with quiet(), without_exporter():
    from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize
    from executorch.exir._serialize._flatbuffer import _flatc_decompile
    from executorch.exir._serialize._program import _ExtendedHeader, _flatbuffer_to_program, _get_extended_header
    from executorch.exir.schema import DataLocation, DelegateCall, KernelCall, Tensor

    XNNPACK_SCHEMA = xnnpack_graph_serialize._get_schema_bytes()  # found beside its package, as long as that is imported

XNNHeader = xnnpack_graph_serialize.XNNHeader
ExtendedHeader = _ExtendedHeader
flatc_decompile = _flatc_decompile
flatbuffer_to_program = _flatbuffer_to_program
extended_header = _get_extended_header
__all__ = ["DataLocation", "DelegateCall", "KernelCall", "Tensor"]
