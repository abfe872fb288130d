"""Imported by the fork server of the tests before its first child: all that a child needs, so that it starts at once."""

import contextlib
import gc
import importlib
import sys

from snapgen_deploy.export.shared import coremltools
from snapgen_deploy.export.shared.quiet import quiet

MODULES = (
    "onnx", "onnxruntime", "onnxscript", "onnx_ir", "torch._dynamo", "torch.onnx", "optimum.exporters.onnx", "executorch.exir",
    "executorch.backends.xnnpack.partition.xnnpack_partitioner", "coreai_torch", "coreai_opt", "snapgen_deploy.cli",
    "snapgen_deploy.job.run", "snapgen_deploy.check.fidelity", "snapgen_deploy.check.verify", "snapgen_deploy.quantise.stage",
    "snapgen_deploy.latency.compare.duel", "snapgen_deploy.latency.measure.host", "snapgen_deploy.export.coreml.target",
    "snapgen_deploy.export.executorch.target", "snapgen_deploy.export.onnx.target", "snapgen_deploy.export.coreai.target",
    "snapgen_deploy.export.qnn.target",
)  # fmt: skip

with quiet():
    coremltools.load()
    SCIKIT_LEARN = "sklearn" in sys.modules  # for tests/export/test_coreml_thrift.py
    for name in MODULES:
        with contextlib.suppress(ImportError):  # of an extra that is not installed here
            importlib.import_module(name)
gc.collect()
gc.freeze()  # a child's collections need not look at it, nor copy its pages
