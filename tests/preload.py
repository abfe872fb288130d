"""Imported by the fork server of the tests before its first child: all that a child needs, so that it starts at once."""

import contextlib
import gc
import importlib
import sys

from snapgen_deploy.export.onnx.palettes import OPSET
from snapgen_deploy.export.onnx.rules import rules_of_linear_time
from snapgen_deploy.export.onnx.write import OnnxSettings
from snapgen_deploy.export.shared import coremltools
from snapgen_deploy.export.shared.tracing import quick_tracing
from snapgen_deploy.system.quiet import quiet

MODULES = (
    "onnx", "onnxruntime", "onnxscript", "onnx_ir", "torch._dynamo", "torch.onnx", "optimum.exporters.onnx", "executorch.exir",
    "executorch.backends.xnnpack.partition.xnnpack_partitioner", "coreai_torch", "coreai_opt", "snapgen_deploy.cli",
    "snapgen_deploy.job.run", "snapgen_deploy.check.fidelity", "snapgen_deploy.check.verify", "snapgen_deploy.quantise.stage",
    "snapgen_deploy.latency.compare.duel", "snapgen_deploy.latency.measure.host", "snapgen_deploy.export.coreml.target",
    "snapgen_deploy.export.executorch.target", "snapgen_deploy.export.onnx.target", "snapgen_deploy.export.coreai.target",
    "snapgen_deploy.export.qnn.target", "snapgen_deploy.export.onnx.optimum_exporter", "torch.export._trace",
    "torch.onnx._internal.exporter._core", "onnxscript.function_libs.torch_lib.ops",
)  # fmt: skip

gc.disable()
with quiet():
    coremltools.load()
    SCIKIT_LEARN = "sklearn" in sys.modules  # for tests/export/test_coreml_thrift.py
    for name in MODULES:
        with contextlib.suppress(ImportError):  # of an extra that is not installed here
            importlib.import_module(name)
    # The first lowering and the first ONNX export of a process prepare what all later ones use.
    from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa
    from torch.onnx._internal.exporter._registration import ONNXRegistry
    from tqdm import tqdm

    FOR_GOOD = contextlib.ExitStack()  # held: a context that nothing holds ends at once
    FOR_GOOD.enter_context(quick_tracing())  # all operators are there
    tqdm.monitor_interval = 0  # no thread, which would not be there after a fork
    bilinear_2d.get_graphs()
    sdpa.get_graphs()
    with rules_of_linear_time():
        for opset in (OnnxSettings().opset, OPSET):  # of most files, and of those with palettes
            ONNXRegistry.from_torchlib(opset_version=opset)
gc.set_threshold(100_000, 20, 100)  # as in tests/conftest.py
gc.enable()
gc.collect()
gc.freeze()  # a child's collections need not look at it, nor copy its pages
