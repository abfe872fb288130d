"""Students that are classes of `diffusers` as a family."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn

from snapgen_deploy.families.base import DenseFamily, SizeRule
from snapgen_deploy.families.component import (
    LATENT,
    TIME,
    VELOCITY,
    WHOLE,
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
from snapgen_deploy.models.library_scheduler import draw_by_library
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
from snapgen_deploy.sparse import rewrite_library_student

_LIBRARY = "diffusers"
_PREFIX = "network."  # of the library's module in the reference


class DiffusersFamily(DenseFamily):
    """The library's module is the reference; schedules are those of the library's schedulers. Not elastic."""

    name = _LIBRARY
    student_type = LibraryStudent

    def components(self, config: ModelConfig) -> Components:
        """The components of a configuration."""
        return Components(text_encoders(config), _student(config), decoder(config))

    def schedule(self, config: ModelConfig) -> Schedule:
        """As the configuration of its scheduler says, for the resolution of the configuration."""
        return _schedule(config)

    def size_rule(self, config: ModelConfig) -> SizeRule:
        """Patches and levels; a bundle has one schedule, which may depend on the number of tokens."""
        student = library_student_of(config.student)
        unit, said = student.facts.unit, f"latent factor {student.latent_factor} and patches of {student.facts.unit}"
        if student.shifts_by_size:
            height, width = config.resolution
            said += f", and noise levels for {height}x{width} (use_dynamic_shifting; `resolution` with --config sets others)"
        return SizeRule(student.latent_factor * unit, said, 2)

    def size_problems(self, config: ModelConfig, latent: tuple[int, int]) -> list[str]:
        """Why a latent does not fit."""
        student = library_student_of(config.student)
        tokens = [student.shift_tokens(size) for size in (latent, _usual_latent(config))]
        if (found := student.latent_problems(*latent)) or tokens[0] == tokens[1] or not student.shifts_by_size:
            return found
        return [f"noise levels for {tokens[1]} tokens, got {tokens[0]}"]

    def facts(self, config: ModelConfig, width: str) -> dict[str, int]:
        """Hidden width and heads."""
        facts = library_student_of(config.student).facts
        return {"hidden": facts.hidden, "heads": facts.heads, "kv_heads": facts.heads}


def _schedule(config: ModelConfig) -> Schedule:
    return library_student_of(config.student).schedule(config.steps, _usual_latent(config))


def _usual_latent(config: ModelConfig) -> tuple[int, int]:
    """Rows and columns of the latent of the configuration's resolution."""
    factor = library_student_of(config.student).latent_factor
    return config.resolution[0] // factor, config.resolution[1] // factor


def _student(model: ModelConfig) -> ComponentSpec:
    """The student of a configuration."""
    config = library_student_of(model.student)
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
        oracle=Oracle(_LIBRARY, partial(_recorded, model)),
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


def _recorded(config: ModelConfig, task: OracleTask) -> dict[str, Tensor]:
    """What the library computes in fp32 of seeded noise and text: the calls of its network, and where its scheduler ends.

    The end is told where all text is given, and neither an encoder's nor with guidance: there it would be of other text.
    """
    student = library_student_of(config.student)
    network = load_library_student(student, task.folder, task.read, task.adapted)
    text, generator = _seeded_text(student, config.absent_streams), torch.Generator().manual_seed(0)
    rows: dict[str, list[Tensor]] = {LATENT: [], TIME: [], VELOCITY: []}

    def run(latent: Tensor, timestep: Tensor) -> Tensor:
        output = library_output(network, student, latent, timestep, text)
        features = timestep_features(timestep, student.time_features)
        for name, value in ((LATENT, latent), (TIME, features), (VELOCITY, output)):
            rows[name].append(value.clone())
        return output

    with torch.inference_mode():
        drawn = draw_by_library(student, config.steps, run, task.drawing.latent, generator)
    given = text.arrays(student.text_streams)
    found = {name: torch.cat(values) for name, values in rows.items()}
    found |= {name: value.repeat(config.steps, *(1,) * (value.dim() - 1)) for name, value in given.items()}
    if config.text_encoders or config.guided:
        return found
    left = {name: value for s in student.text_streams if s.name not in config.absent_streams for name, value in given.items()
            if name in s.shapes}  # fmt: skip
    whole = {**left, "noise": _noise_of(config, task.drawing.latent), LATENT: drawn}
    return found | {f"{WHOLE}.{name}": value for name, value in whole.items()}


def _seeded_text(config: LibraryStudent, absent: Collection[str]) -> StudentText:
    """Normal embeddings and pooled vectors whose second half is padding; zeros for streams that stay empty."""
    generator, found = torch.Generator().manual_seed(1), StudentText({}, {}, {})
    for s in config.text_streams:
        scale = 0.0 if s.name in absent else 1.0
        mask = torch.ones(1, s.length)
        mask[:, (s.length + 1) // 2 :] = 0.0
        found.text[s.name] = scale * torch.randn(1, s.length, s.dim, generator=generator)
        found.mask[s.name] = scale * mask
        if s.pooled:
            found.pooled[s.name] = scale * torch.randn(1, s.pooled, generator=generator)
    return found


def _noise_of(config: ModelConfig, latent: Shape) -> Tensor:
    """What `draw_by_library` drew: (1, C, h, w), or (1, 1 + fresh, C, h, w)."""
    generator, fresh = torch.Generator().manual_seed(0), _schedule(config).fresh
    drawn = [torch.randn(1, *latent, generator=generator) for _ in range(1 + fresh)]
    return torch.stack(drawn, 1) if fresh else drawn[0]


def _activations(config: LibraryStudent, width: str, latent: tuple[int, int, int], size: tuple[int, int]) -> int:
    """Bytes of the residual stream, the feed-forward layer's inner map and the scores of all heads, 4 bytes an element."""
    facts = config.facts
    tokens, text = facts.positions(latent[1:]), sum(s.length for s in config.text_streams)
    return 4 * (tokens * facts.hidden * (2 + facts.expansion) + facts.heads * facts.scores(tokens, text))
