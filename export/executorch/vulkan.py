"""ExecuTorch with Vulkan's delegate: `.pte` programs for the GPU of an Android phone.

ExecuTorch's partitioner takes the networks of the token layout in one partition (executorch 1.4.1). Weights are in the
program's named data under the SHA-256 of their bytes, so that methods for several picture sizes share them, as for XNNPACK.

With `fp16` the delegate stores every tensor, and the file every weight, in half precision (`force_fp16`); inputs and outputs
stay fp32 and are converted when they enter and leave the GPU.

The wheels of executorch for Linux have no Vulkan runtime (their backends are named by `unavailable`); a build with
`EXECUTORCH_BUILD_VULKAN=ON` runs these files on any Vulkan driver, a software one included.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

from snapgen_deploy.export.base import Component, Weight
from snapgen_deploy.export.executorch.program import StoredDelegate
from snapgen_deploy.export.executorch.spec import VULKAN
from snapgen_deploy.export.executorch.target import ExecuTorch, ExecuTorchSettings
from snapgen_deploy.export.executorch.weights import BITS, Delegate, decompiled
from snapgen_deploy.export.shared.graph import trace
from snapgen_deploy.export.shared.replaced import replaced
from snapgen_deploy.sparse.decoder import ImageGroupNorm

if TYPE_CHECKING:
    import torch

_WEIGHT, GROUPS = 1, 6  # arguments of a convolution
TENSOR = "VkTensor"  # in the delegate's schema


class ExecuTorchVulkan(ExecuTorch):
    """`.pte` files for ExecuTorch with Vulkan's delegate."""

    variants: tuple[str, ...] = VULKAN.variants
    precisions: tuple[str, ...] = VULKAN.precisions
    backend: str = "VulkanBackend"

    def _traced(self, component: Component, precision: str) -> torch.export.ExportedProgram:
        """The graph without grouped convolutions, and with every constant in a storage of its own.

        The delegate accepts grouped convolutions but computes them wrong, except depthwise ones (executorch 1.4.1). Its
        serialiser writes a constant's whole storage, which is too much if the constant is a slice.
        """
        for module in component.module.modules():
            if isinstance(module, ImageGroupNorm):
                module.ungrouped()
        program = trace(component)
        _refuse_grouped(program.graph.nodes)
        for tensor in (*program.state_dict.values(), *program.constants.values()):
            if tensor.untyped_storage().nbytes() != tensor.nbytes:
                tensor.data = tensor.detach().clone()
        return program

    def _partitioner(self, precision: str, settings: ExecuTorchSettings) -> Any:
        level = logging.root.level
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        logging.root.setLevel(level)  # the import lowers the log level of the whole process
        # 2048 texels a side, which GPUs have in common; larger tensors become buffers.
        return VulkanPartitioner({"force_fp16": precision == "fp16", "small_texture_limits": True})

    def _lowering(self, component: Component) -> contextlib.AbstractContextManager[None]:
        return patterns_made_once()

    def _contents(self, stored: StoredDelegate, index: int) -> Delegate:
        from executorch.backends.vulkan import serialization
        from executorch.backends.vulkan.serialization.vulkan_graph_serialize import extract_vk_flatbuffer

        schema = resources.files(serialization).joinpath("schema.fbs").read_bytes()
        graph = decompiled(schema, extract_vk_flatbuffer(stored.payload()))
        weights = {}
        for value in (v["value"] for v in graph["values"] if v["value_type"] == TENSOR):
            if (number := value["constant_id"]) >= 0:
                kind, shape = value["datatype"].lower(), tuple(value["dims"])
                values = math.prod(shape)
                name = graph["constants"][number].get("named_key") or f"vulkan.{index}.{number}"
                weights[name] = Weight(kind, values, values * BITS.get(kind, 32), shape)
        return Delegate(Counter(call["name"] for call in graph["chain"]), weights, {})

    def unavailable(self, variant: str) -> str | None:
        """None if the runtime is installed with the delegate, which no wheel for Linux has."""
        reason = super().unavailable(variant)
        return f"{reason}; one built with EXECUTORCH_BUILD_VULKAN=ON runs it" if reason and variant in self.variants else reason

    def versions(self) -> dict[str, str]:
        """Versions of the packages that take part in an export."""
        return {name: metadata.version(name) for name in ("torch", "executorch")}


@contextlib.contextmanager
def patterns_made_once() -> Iterator[None]:
    """Within the block, the delegate's patterns (rotary embeddings, normalisations) are traced at most once in this process.

    executorch 1.4.1 means to keep them, but registers the functions that trace them without their caches: both the partitioner
    and the fusion trace them for each network, which takes longer than all the rest for a small one.
    """
    from executorch.backends.vulkan import patterns

    with contextlib.ExitStack() as stack:
        for entry in patterns.fusable_patterns.values():
            if entry.get_graphs_fn is not None:
                stack.enter_context(replaced(entry, "get_graphs_fn", _kept(entry.get_graphs_fn)))
        yield


@functools.cache
def _kept(make: Callable[[], list[torch.fx.GraphModule]]) -> Callable[[], list[torch.fx.GraphModule]]:
    return functools.cache(make)


def _refuse_grouped(nodes: Iterable[torch.fx.Node]) -> None:
    """Raise RuntimeError if a convolution has groups of more than one channel."""
    for node in nodes:
        if "conv" in str(node.target) and len(node.args) > GROUPS:
            members = node.args[_WEIGHT].meta["val"].shape[1]  # type: ignore[union-attr]
            if int(node.args[GROUPS]) > 1 and members > 1:  # type: ignore[arg-type]
                raise RuntimeError(
                    f"'{node.name}' convolves {node.args[GROUPS]} groups of {members} channels, which Vulkan's delegate "
                    "computes wrong; expected a dense or a depthwise convolution"
                )
