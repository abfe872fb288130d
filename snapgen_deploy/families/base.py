"""The interface of a family of students. General code uses nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from snapgen_deploy.families.component import Components
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.schedule import Schedule
from snapgen_deploy.sparse import Layout, OpForm

NO_FORM = "dense"  # of a family whose attention is never sparse, so that there is one form


@dataclass(frozen=True)
class SizeRule:
    """Which picture sizes fit a student."""

    unit: int  # pixels; both sides are multiples of it
    constraints: str  # what a size must fit, for messages
    reach: int  # units around a side within which there is certainly a size that fits


@dataclass(frozen=True)
class Layer:
    """A network or a part of one with seeded weights, and the shapes of its inputs, for timing."""

    name: str
    module: nn.Module
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Folding:
    """How many heads share one matrix of attention scores in a student's graph."""

    heads: int  # in one matrix
    alone: frozenset[int]  # number of elements of the matrices that hold a single head


class Family(Protocol):
    """Students of one kind."""

    @property
    def name(self) -> str:
        """Its name in configurations (`family`) and in the registry."""

    @property
    def student_type(self) -> type:
        """The dataclass of a configuration's `student`; it satisfies `models.StudentConfig`."""

    def components(self, config: ModelConfig) -> Components:
        """The components of a configuration."""

    def schedule(self, config: ModelConfig) -> Schedule:
        """Noise levels and features of the few-step sampler."""

    def size_rule(self, config: ModelConfig) -> SizeRule:
        """Which picture sizes fit."""

    def size_problems(self, config: ModelConfig, latent: tuple[int, int]) -> list[str]:
        """Why a latent (height, width) does not fit, one line each; empty if it fits."""

    def form(self, config: ModelConfig, latent: tuple[int, int]) -> str:
        """The default kernel form for a latent (height, width)."""

    def facts(self, config: ModelConfig, width: str) -> dict[str, int]:
        """Figures of a width for `inspect`, by name."""

    def forms(self, config: ModelConfig, width: str, latent: tuple[int, int], ops: OpForm) -> Mapping[str, Layer]:
        """A layer in every kernel form of the token layout, for timing; empty if there is no choice."""

    def folding(self, config: ModelConfig, latent: tuple[int, int], layout: Layout, form: str) -> Folding:
        """How heads share matrices of scores in the student's graph, for the latency estimator."""

    def examples(self, ops: OpForm) -> Sequence[Layer]:
        """Small students in the token layout, for calibrating a host's speed."""


class DenseFamily:
    """What families share whose attention has one form, each head with scores of its own."""

    def form(self, config: ModelConfig, latent: tuple[int, int]) -> str:
        """There is one."""
        return NO_FORM

    def forms(self, config: ModelConfig, width: str, latent: tuple[int, int], ops: OpForm) -> Mapping[str, Layer]:
        """No choice."""
        return {}

    def folding(self, config: ModelConfig, latent: tuple[int, int], layout: Layout, form: str) -> Folding:
        """Every head has its own matrix of scores."""
        return Folding(1, frozenset())

    def examples(self, ops: OpForm) -> Sequence[Layer]:
        """None: their layers are like those of other families, or not known."""
        return ()
