"""Students that are a class of a user's own package, as a family."""

from __future__ import annotations

from functools import partial

from torch import nn

from snapgen_deploy.families.base import DenseFamily, SizeRule
from snapgen_deploy.families.component import VELOCITY, Components, ComponentSpec, Shape, Spelling, StoredTensor
from snapgen_deploy.families.decoder import decoder
from snapgen_deploy.families.names import STUDENT
from snapgen_deploy.families.ports import stepped, student_ports
from snapgen_deploy.families.text import text_encoders
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.module_config import ModuleStudent, module_student_of
from snapgen_deploy.models.module_student import ModuleReference, build_module
from snapgen_deploy.models.schedule import Schedule
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.sparse import rewrite_module

_PREFIX = "network."  # of the user's module in the reference
_HEADS = 16  # that memory is predicted for: what an attention has is not known


class ModuleFamily(DenseFamily):
    """The user's module is the reference; schedules are those of diffusers' schedulers. Not elastic."""

    name = "module"
    student_type = ModuleStudent

    def components(self, config: ModelConfig) -> Components:
        """The components of a configuration."""
        return Components(text_encoders(config), _student(config), decoder(config))

    def schedule(self, config: ModelConfig) -> Schedule:
        """As the configuration of its scheduler says."""
        return module_student_of(config.student).schedule(config.steps)

    def size_rule(self, config: ModelConfig) -> SizeRule:
        """What its configuration says."""
        student = module_student_of(config.student)
        said = f"latent factor {student.latent_factor} and latents of multiples of {student.unit}"
        return SizeRule(student.latent_factor * student.unit, said, 2)

    def size_problems(self, config: ModelConfig, latent: tuple[int, int]) -> list[str]:
        """Why a latent does not fit."""
        return module_student_of(config.student).latent_problems(*latent)

    def facts(self, config: ModelConfig, width: str) -> dict[str, int]:
        """None: only the module knows."""
        return {}


def _student(model: ModelConfig) -> ComponentSpec:
    """The student of a configuration."""
    config = module_student_of(model.student)
    return ComponentSpec(
        name=STUDENT,
        part="denoise",
        output=VELOCITY,
        build=lambda width: ModuleReference(config),
        ports=partial(student_ports, config),
        apply=partial(stepped, config.text_streams),
        rewrite=_rewrite,
        folder="transformer",
        hyperparameters=lambda width: dict(config.arguments),
        activations=partial(_activations, config),
        stored=lambda name, width: StoredTensor(name.removeprefix(_PREFIX)),
        shapes=partial(_shapes, config),
        has_constants=True,  # any class may compute tables that no checkpoint holds
        elastic=True,
        must_pack=True,
        in_delegate=False,  # what no pass here knows may stay outside
        needs_vectors=True,
    )


def _shapes(config: ModuleStudent) -> dict[str, Shape]:
    """Under the module's names."""
    with without_storage():
        return {name: tuple(tensor.shape) for name, tensor in build_module(config).state_dict().items()}


def _rewrite(network: nn.Module, latent: tuple[int, int], how: Spelling) -> nn.Module:
    assert isinstance(network, ModuleReference)
    return rewrite_module(network, latent, layout=how.layout, batch=how.batch, ops=how.ops)


def _activations(config: ModuleStudent, width: str, latent: tuple[int, int, int], size: tuple[int, int]) -> int:
    """Bytes of two maps of the widest layer and of the scores of some heads, 4 bytes an element."""
    tokens = latent[1] * latent[2] // config.unit**2
    widest = max((shape[0] for shape in _shapes(config).values() if len(shape) > 1), default=1)
    text = sum(s.length for s in config.text_streams)
    return 4 * (2 * tokens * widest + _HEADS * tokens * max(tokens, text))
