"""A second family of students, as small as one can be: three layers without attention, at one width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.families.base import DenseFamily, SizeRule
from snapgen_deploy.families.component import (
    LATENT,
    TIME,
    VELOCITY,
    Components,
    ComponentSpec,
    Drawing,
    Port,
    Ports,
    Spelling,
)
from snapgen_deploy.families.decoder import decoder
from snapgen_deploy.families.text import text_encoders
from snapgen_deploy.models import ModelConfig, Schedule, Student, TextStream, sigmas
from snapgen_deploy.models.config import Document, PositiveInt
from snapgen_deploy.models.student import Stage, TrainingCost

KEPT = 12  # bytes for each value of the hidden map that the gradients need


@dataclass(frozen=True)
class ToyConfig(Document):
    latent_channels: PositiveInt
    latent_factor: PositiveInt
    hidden: PositiveInt
    time_features: PositiveInt
    text_streams: tuple[TextStream, ...]
    widths: dict[str, float] = field(default_factory=lambda: {"only": 1.0})

    def problems(self) -> list[str]:
        return [] if list(self.widths.values()) == [1.0] else [f"widths: got {self.widths}, expected one of ratio 1"]


class Toy(Student):
    """A map of the latent, moved by the noise level and the mean of the text."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config, self.width = config, "only"
        self.first = nn.Conv2d(config.latent_channels, config.hidden, 3, padding=1)
        self.time = nn.Linear(config.time_features, config.hidden)
        self.text = nn.ModuleDict({s.name: nn.Linear(s.dim, config.hidden) for s in config.text_streams})
        self.last = nn.Conv2d(config.hidden, config.latent_channels, 3, padding=1)

    def training_cost(self, latent: tuple[int, int]) -> TrainingCost:
        cells, hidden = latent[0] * latent[1], self.first.out_channels
        return TrainingCost(cells, hidden, (Stage(1, KEPT * cells * hidden),))

    def recomputable(self) -> Sequence[nn.Module]:
        return ()

    def forward(self, latent: Tensor, features: Tensor, text: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        moved = self.time(features)  # (B, D)
        for name, layer in self.text.items():
            kept = text[name] * mask[name][:, :, None]  # (B, L, dim)
            moved = moved + layer(kept.mean(1))
        velocity: Tensor = self.last(F.silu(self.first(latent) + moved[:, :, None, None]))
        return velocity


class Positional(nn.Module):
    """The same with its inputs in the order of the ports."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy, self.streams = toy, tuple(toy.text)

    def forward(self, latent: Tensor, features: Tensor, *text: Tensor) -> Tensor:
        streams = dict(zip(self.streams, text[::2], strict=True))
        masks = dict(zip(self.streams, text[1::2], strict=True))
        velocity: Tensor = self.toy(latent, features, streams, masks)
        return velocity


class ToyFamily(DenseFamily):
    name = "toy"
    student_type = ToyConfig

    def components(self, config: ModelConfig) -> Components:
        student = config.student
        assert isinstance(student, ToyConfig)

        def ports(drawing: Drawing) -> Ports:
            shape = (1, *drawing.latent)
            inputs = [Port(LATENT, shape, "float32", "latent"), Port(TIME, (1, student.time_features), "float32", "level")]
            for s in student.text_streams:
                inputs.append(Port(s.name, (1, s.length, s.dim), "float32", "text"))
                inputs.append(Port(f"{s.name}_mask", (1, s.length), "float32", "mask"))
            return Ports(tuple(inputs), (Port(VELOCITY, shape, "float32", "velocity"),), "one step")

        def apply(network: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
            streams = [s.name for s in student.text_streams]
            velocity: Tensor = network(x[LATENT], x[TIME], {s: x[s] for s in streams}, {s: x[f"{s}_mask"] for s in streams})
            return velocity

        def rewrite(network: nn.Module, latent: tuple[int, int], how: Spelling) -> nn.Module:
            assert isinstance(network, Toy)
            return Positional(network)

        denoiser = ComponentSpec(
            name="student",
            part="denoise",
            output=VELOCITY,
            build=lambda width: Toy(student),
            ports=ports,
            apply=apply,
            rewrite=rewrite,
            folder="unet",
            hyperparameters=lambda width: asdict(student),
            activations=lambda width, latent, size: 4 * student.hidden * latent[1] * latent[2],
            must_pack=True,
        )
        return Components(text_encoders(config), denoiser, decoder(config))

    def schedule(self, config: ModelConfig) -> Schedule:
        return Schedule(sigmas(config.steps, config.shift), config.shift, config.student.time_features)

    def size_rule(self, config: ModelConfig) -> SizeRule:
        return SizeRule(config.student.latent_factor, f"latent factor {config.student.latent_factor}", 20)

    def size_problems(self, config: ModelConfig, latent: tuple[int, int]) -> list[str]:
        return [] if min(latent) >= 2 else ["fewer than two cells"]

    def facts(self, config: ModelConfig, width: str) -> dict[str, int]:
        assert isinstance(config.student, ToyConfig)
        return {"hidden": config.student.hidden}
