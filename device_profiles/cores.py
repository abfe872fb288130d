"""Cores of phones: what their arithmetic lacks. From LLVM's table of processors (AArch64Processors.td, feature `FullFP16`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

HALF = "fp16"  # arithmetic in half precision, of Armv8.2 as an option


@dataclass(frozen=True)
class Core:
    """A kind of core, by LLVM's name for it."""

    name: str
    architecture: str
    arithmetic: frozenset[str] = frozenset({HALF})

    @property
    def title(self) -> str:
        """As its maker writes it.

        >>> CORES["cortex-a53"].title
        'Cortex-A53'
        """
        maker, _, kind = self.name.partition("-")
        return f"{maker.capitalize()}{' ' if maker == 'apple' else '-'}{kind.upper()}" if kind else maker.capitalize()


CORES: Mapping[str, Core] = MappingProxyType(
    {
        core.name: core
        for core in (
            *(Core(f"cortex-{name}", "Armv8.0", frozenset()) for name in ("a35", "a53", "a57", "a72", "a73")),
            *(Core(f"cortex-{name}", "Armv8.2") for name in ("a55", "a75", "a76", "a77", "a78", "x1")),
            *(Core(f"cortex-{name}", "Armv9.0") for name in ("a510", "a710", "a715", "x2", "x3")),
            *(Core(f"cortex-{name}", "Armv9.2") for name in ("a520", "a720", "a725", "x4", "x925")),
            Core("oryon", "Armv8.6"),
            *(Core(f"apple-{name}", "Armv8.6") for name in ("a15", "a17", "m3")),
            *(Core(f"apple-{name}", "Armv8.7") for name in ("a18", "m4")),
        )
    }
)
