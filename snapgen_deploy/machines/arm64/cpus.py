"""The processors that are emulated, and what each of them computes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

DEFAULT = "cortex-a76"


@dataclass(frozen=True)
class EmulatedCpu:
    """A processor of qemu-user, by its name there."""

    name: str
    half: bool  # whether it computes in fp16
    doc: str


CPUS: Mapping[str, EmulatedCpu] = MappingProxyType(
    {
        cpu.name: cpu
        for cpu in (
            EmulatedCpu("cortex-a53", half=False, doc="Armv8.0, without fp16 arithmetic and dot products"),
            EmulatedCpu("cortex-a55", half=True, doc="Armv8.2, a small core with fp16 arithmetic and dot products"),
            EmulatedCpu(DEFAULT, half=True, doc="Armv8.2, a large core with fp16 arithmetic and dot products"),
            EmulatedCpu("max", half=True, doc="all that qemu knows: 8-bit matrix products, bfloat16, SVE2 and SME, too"),
        )
    }
)
