"""Students that are classes of `diffusers` as a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from snapgen_deploy.families.base import NO_FORM, Folding, Layer, SizeRule
from snapgen_deploy.families.component import (
    LATENT,
    TIME,
    VELOCITY,
    Components,
    ComponentSpec,
    Oracle,
    OracleTask,
    Shape,
    Spelling,
    StoredTensor,
)
from snapgen_deploy.families.decoder import decoder
from snapgen_deploy.families.names import STUDENT
from snapgen_deploy.families.ports import stepped, student_ports
from snapgen_deploy.families.text import text_encoders
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.library_student import (
    DiffusersStudent,
    StudentText,
    build_student,
    library_output,
    load_library_student,
)
from snapgen_deploy.models.schedule import Schedule, timestep_features
from snapgen_deploy.models.students import LibraryStudent, library_student_of
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.sparse import Layout, OpForm, rewrite_library_student

_LIBRARY = "diffusers"
_PREFIX = "network."  # of the library's module in the reference


class DiffusersFamily:
    """The library's module is the reference; schedules are those of the library's schedulers. Not elastic."""

    name = _LIBRARY
    student_type = LibraryStudent

    def components(self, config: ModelConfig) -> Components:
        """The components of a configuration."""
        return Components(text_encoders(config), _student(library_student_of(config.student), config.steps), decoder(config))

    def schedule(self, config: ModelConfig) -> Schedule:
        """As the configuration of its scheduler says."""
        return library_student_of(config.student).schedule(config.steps)

    def size_rule(self, config: ModelConfig) -> SizeRule:
        """Patches and levels."""
        student = library_student_of(config.student)
        unit = student.facts.unit
        return SizeRule(student.latent_factor * unit, f"latent factor {student.latent_factor} and patches of {unit}", 2)

    def size_problems(self, config: ModelConfig, latent: tuple[int, int]) -> list[str]:
        """Why a latent does not fit."""
        return library_student_of(config.student).latent_problems(*latent)

    def form(self, config: ModelConfig, latent: tuple[int, int]) -> str:
        """There is one."""
        return NO_FORM

    def facts(self, config: ModelConfig, width: str) -> dict[str, int]:
        """Hidden width and heads."""
        facts = library_student_of(config.student).facts
        return {"hidden": facts.hidden, "heads": facts.heads, "kv_heads": facts.heads}

    def forms(self, config: ModelConfig, width: str, latent: tuple[int, int], ops: OpForm) -> Mapping[str, Layer]:
        """No choice."""
        return {}

    def folding(self, config: ModelConfig, latent: tuple[int, int], layout: Layout, form: str) -> Folding:
        """Every head has its own matrix of scores."""
        return Folding(1, frozenset())

    def examples(self, ops: OpForm) -> Sequence[Layer]:
        """None: their layers are like those of the other families."""
        return ()


def _student(config: LibraryStudent, steps: int) -> ComponentSpec:
    """The student of a configuration."""
    facts = config.facts
    return ComponentSpec(
        name=STUDENT,
        part="denoise",
        output=VELOCITY,
        build=lambda width: DiffusersStudent(config),
        ports=partial(student_ports, config),
        apply=partial(stepped, config.text_streams),
        rewrite=_rewrite,
        folder="transformer",
        hyperparameters=lambda width: dict(config.config),
        activations=partial(_activations, config),
        stored=lambda name, width: StoredTensor(name.removeprefix(_PREFIX)),
        shapes=partial(_shapes, config),
        oracle=Oracle(_LIBRARY, partial(_recorded, config, steps)),
        has_constants=facts.has_constants,
        layers=facts.layers,
        elastic=True,
        must_pack=True,
    )


def _shapes(config: LibraryStudent) -> dict[str, Shape]:
    """Under the library's names."""
    with without_storage():
        return {name: tuple(tensor.shape) for name, tensor in build_student(config).state_dict().items()}


def _rewrite(network: nn.Module, latent: tuple[int, int], how: Spelling) -> nn.Module:
    assert isinstance(network, DiffusersStudent)
    return rewrite_library_student(network, latent, layout=how.layout, batch=how.batch, ops=how.ops)


def _recorded(config: LibraryStudent, steps: int, task: OracleTask) -> dict[str, Tensor]:
    """What the library's own network computes in fp32 of seeded noise and text, at each timestep of the schedule."""
    network = load_library_student(config, task.folder, task.read, task.adapted)
    schedule, generator = config.schedule(steps), torch.Generator().manual_seed(0)
    timesteps = torch.tensor(schedule.timesteps or [1000.0 * level for level in schedule.sigmas[:-1]])
    count = len(timesteps)
    latents = torch.randn(count, *task.drawing.latent, generator=generator)
    text, mask, pooled = {}, {}, {}
    for s in config.text_streams:
        text[s.name] = torch.randn(count, s.length, s.dim, generator=generator)
        mask[s.name] = torch.ones(count, s.length)
        mask[s.name][1::2, (s.length + 1) // 2 :] = 0.0
        if s.pooled:
            pooled[s.name] = torch.randn(count, s.pooled, generator=generator)
    rows = []
    with torch.inference_mode():
        for i in range(count):
            one = StudentText(*({name: value[i : i + 1] for name, value in part.items()} for part in (text, mask, pooled)))
            rows.append(library_output(network, config, latents[i : i + 1], timesteps[i : i + 1], one))
    inputs = {LATENT: latents, TIME: timestep_features(timesteps, config.time_features), **text}
    inputs |= {f"{name}_mask": value for name, value in mask.items()}
    inputs |= {s.pooled_name: pooled[s.name] for s in config.text_streams if s.pooled}
    return {**inputs, VELOCITY: torch.cat(rows)}


def _activations(config: LibraryStudent, width: str, latent: tuple[int, int, int], size: tuple[int, int]) -> int:
    """Bytes of the residual stream, the feed-forward layer's inner map and the scores of all heads, 4 bytes an element."""
    facts = config.facts
    tokens, text = latent[1] * latent[2] // facts.tokens, sum(s.length for s in config.text_streams)
    return 4 * (tokens * facts.hidden * (2 + facts.expansion) + facts.heads * facts.scores(tokens, text))
