"""Students that are classes of `diffusers`: the reference is the library's own module, with this package's ports.

The arithmetic is the library's. Its modules keep their names, so that its checkpoints fit. Two things are done outside of it:
the sinusoidal features of the timestep are an input, and a guidance scale that is embedded is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.models.config import TextStream
from snapgen_deploy.models.diffusers_classes import built, library_class, read_folder
from snapgen_deploy.models.schedule import timestep_features
from snapgen_deploy.models.student import Stage, Student, TrainingCost
from snapgen_deploy.models.students import ONLY, LibraryStudent, student_class

ByStream = Mapping[str, Tensor]


class GivenFeatures(nn.Module):
    """In the place of the library's `Timesteps`: the timestep that is passed through the network is its features already."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, F), unchanged."""
        return features


class DiffusersStudent(Student):
    """Latent (B, C, h, w), features (B, F), text and masks -> the network's output (B, C, h, w)."""

    def __init__(self, config: LibraryStudent) -> None:
        """Raises:
        BadInput: if the library builds no network of it.
        """
        super().__init__()
        self.config: LibraryStudent = config
        self.width = ONLY
        self.network: Any = build_student(config)
        _CALLS[student_class(config.config)].features_given(self.network)
        self.eval()

    def forward(
        self,
        latent: Tensor,
        features: Tensor,
        text: ByStream,
        mask: ByStream,
        pooled: ByStream = MappingProxyType({}),
    ) -> Tensor:
        """As the library's pipelines call the network."""
        return library_output(self.network, self.config, latent, features, StudentText(text, mask, pooled))

    def training_cost(self, latent: tuple[int, int]) -> TrainingCost:
        """Bytes that the gradients need of all blocks: some twenty maps of the hidden states each."""
        facts = self.config.facts
        tokens = facts.positions(latent)
        return TrainingCost(tokens, facts.hidden, (Stage(facts.layers, 4 * 20 * tokens * facts.hidden),))

    def recomputable(self) -> Sequence[nn.Module]:
        """The blocks."""
        names = ("transformer_blocks", "single_transformer_blocks", "down_blocks", "up_blocks")
        return tuple(block for name in names for block in getattr(self.network, name, ()))


class StudentText:
    """The text inputs of a call, by stream."""

    def __init__(self, text: ByStream, mask: ByStream, pooled: ByStream) -> None:
        self.text, self.mask, self.pooled = dict(text), dict(mask), dict(pooled)

    def arrays(self, streams: Sequence[TextStream]) -> dict[str, Tensor]:
        """The same under the names of the student's inputs."""
        found = {name: value for s in streams for name, value in zip((s.name, f"{s.name}_mask"), self.of(s), strict=True)}
        return found | {s.pooled_name: self.pooled[s.name] for s in streams if s.pooled}

    def of(self, stream: TextStream) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L, dim) and mask (B, L)."""
        return self.text[stream.name], self.mask[stream.name]


def library_output(network: Any, config: LibraryStudent, latent: Tensor, timestep: Tensor, text: StudentText) -> Tensor:
    """The output of the library's network, as its pipelines call it: `timestep` (B,), or (B, F) where features are given."""
    out: Tensor = _CALLS[student_class(config.config)](network, config, latent, timestep, text)
    return out


class _PixArt:
    """PixArtAlphaPipeline and PixArtSigmaPipeline."""

    def __call__(self, network: Any, config: LibraryStudent, latent: Tensor, timestep: Tensor, text: StudentText) -> Tensor:
        """The noise, or what else was trained; a learned variance is left out."""
        facts: Any = config.facts
        embeddings, mask = text.of(config.text_streams[0])
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if facts.reads_size:
            height, width = (config.latent_factor * side for side in latent.shape[2:])
            batch = latent.shape[0]
            added["resolution"] = torch.tensor([[float(height), float(width)]]).repeat(batch, 1)
            added["aspect_ratio"] = torch.tensor([[float(height) / float(width)]]).repeat(batch, 1)
        out: Tensor = network(
            latent,
            encoder_hidden_states=embeddings,
            encoder_attention_mask=mask,
            timestep=timestep,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out if out.shape[1] == facts.latent else out.chunk(2, dim=1)[0]

    @staticmethod
    def features_given(network: Any) -> None:
        """Make the network read features in place of timesteps."""
        network.adaln_single.emb.time_proj = GivenFeatures()


class _Sana:
    """SanaPipeline and SanaSprintPipeline."""

    def __call__(self, network: Any, config: LibraryStudent, latent: Tensor, timestep: Tensor, text: StudentText) -> Tensor:
        """The velocity."""
        facts: Any = config.facts
        embeddings, mask = text.of(config.text_streams[0])
        guidance = None
        if facts.guidance_embeds:
            guidance = latent.new_full((latent.shape[0],), config.guidance_embedded) * facts.guidance_embeds_scale
        out: Tensor = network(
            latent,
            encoder_hidden_states=embeddings,
            encoder_attention_mask=mask,
            guidance=guidance,
            timestep=timestep,
            return_dict=False,
        )[0]
        return out if out.shape[1] == facts.latent else out.chunk(2, dim=1)[0]

    @staticmethod
    def features_given(network: Any) -> None:
        """Make the network read features in place of timesteps."""
        getattr(network.time_embed, "emb", network.time_embed).time_proj = GivenFeatures()


class _SD3:
    """StableDiffusion3Pipeline: no text is masked, and CLIP's embeddings are filled up with zeros to T5's width."""

    def __call__(self, network: Any, config: LibraryStudent, latent: Tensor, timestep: Tensor, text: StudentText) -> Tensor:
        """The velocity."""
        first, second, third = config.text_streams
        clips = torch.cat([text.text[first.name], text.text[second.name]], dim=2)
        filled = torch.nn.functional.pad(clips, (0, third.dim - clips.shape[2]))
        out: Tensor = network(
            latent,
            encoder_hidden_states=torch.cat([filled, text.text[third.name]], dim=1),
            pooled_projections=torch.cat([text.pooled[first.name], text.pooled[second.name]], dim=1),
            timestep=timestep,
            return_dict=False,
        )[0]
        return out

    @staticmethod
    def features_given(network: Any) -> None:
        """Make the network read features in place of timesteps."""
        network.time_text_embed.time_proj = GivenFeatures()


class _Flux:
    """FluxPipeline: latents are packed by 2 x 2 cells, no text is masked, and CLIP gives the pooled vector alone."""

    def __call__(self, network: Any, config: LibraryStudent, latent: Tensor, timestep: Tensor, text: StudentText) -> Tensor:
        """The velocity."""
        (batch, channels, height, width), (clip, t5) = latent.shape, config.text_streams
        rows, cols = height // 2, width // 2
        packed = latent.reshape(batch, channels, rows, 2, cols, 2).permute(0, 2, 4, 1, 3, 5)
        guidance = None
        if config.facts.embeds_guidance:
            guidance = torch.full((batch,), config.guidance_embedded)
            if timestep.dim() == 2:  # the network makes features of both in one place
                guidance = timestep_features(1000.0 * guidance, timestep.shape[1]) / 1000.0
        out: Tensor = network(
            packed.reshape(batch, rows * cols, -1),
            encoder_hidden_states=text.text[t5.name],
            pooled_projections=text.pooled[clip.name],
            timestep=timestep / 1000.0,
            img_ids=token_places(rows, cols),
            txt_ids=torch.zeros(t5.length, 3),
            guidance=guidance,
            return_dict=False,
        )[0]
        return out.reshape(batch, rows, cols, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(latent.shape)

    @staticmethod
    def features_given(network: Any) -> None:
        """Make the network read features in place of timesteps."""
        network.time_text_embed.time_proj = GivenFeatures()


class _Levels:
    """StableDiffusionPipeline and StableDiffusionXLPipeline: no text is masked."""

    def __call__(self, network: Any, config: LibraryStudent, latent: Tensor, timestep: Tensor, text: StudentText) -> Tensor:
        """The noise, or what else was trained."""
        streams, added = config.text_streams, None
        if network.config.addition_embed_type is not None:
            numbers = size_numbers(config, (latent.shape[2], latent.shape[3]))
            added = {"text_embeds": text.pooled[streams[-1].name], "time_ids": numbers.repeat(latent.shape[0], 1)}
        out: Tensor = network(
            latent,
            timestep,
            encoder_hidden_states=torch.cat([text.text[s.name] for s in streams], dim=2),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out

    @staticmethod
    def features_given(network: Any) -> None:
        """Make the network read features in place of timesteps."""
        network.get_time_embed = _unchanged


class _DreamLite:
    """DreamLiteMobilePipeline without a picture to edit: zeros on the right of the latent, whose output is left out."""

    def __call__(self, network: Any, config: LibraryStudent, latent: Tensor, timestep: Tensor, text: StudentText) -> Tensor:
        """The velocity."""
        embeddings, mask = text.of(config.text_streams[0])
        batch, _, height, width = latent.shape
        out: Tensor = network(
            torch.cat([latent, torch.zeros_like(latent)], dim=3),
            timestep,
            encoder_hidden_states=embeddings,
            encoder_attention_mask=mask,
            added_cond_kwargs={"time_ids": picture_numbers(config, (height, width)).repeat(batch, 1)},
            return_dict=False,
        )[0]
        return out[..., :width]

    @staticmethod
    def features_given(network: Any) -> None:
        """Make the network read features in place of timesteps."""
        network.get_time_embed = _unchanged


def _unchanged(sample: Tensor, timestep: Tensor) -> Tensor:
    """In the place of the library's method, which makes features of a timestep."""
    return timestep


def token_places(rows: int, cols: int) -> Tensor:
    """Where Flux's pipeline says that the image's tokens are: (rows * cols, 3), of which the first number is 0."""
    places = torch.zeros(rows, cols, 3)
    places[..., 1], places[..., 2] = torch.arange(rows)[:, None], torch.arange(cols)[None]
    return places.reshape(-1, 3)


def size_numbers(config: LibraryStudent, latent: tuple[int, int]) -> Tensor:
    """The picture's original size, the corner and the size of the crop, as SDXL's pipeline has them by default: (6,)."""
    height, width = (float(config.latent_factor * side) for side in latent)
    return torch.tensor([height, width, 0.0, 0.0, height, width])


def picture_numbers(config: LibraryStudent, latent: tuple[int, int]) -> Tensor:
    """The picture's width and height, as DreamLite's pipeline has them: (2,)."""
    return torch.tensor([float(config.latent_factor * side) for side in reversed(latent)])


_CALLS: Mapping[str, Any] = MappingProxyType(
    {
        "PixArtTransformer2DModel": _PixArt(),
        "SanaTransformer2DModel": _Sana(),
        "SD3Transformer2DModel": _SD3(),
        "FluxTransformer2DModel": _Flux(),
        "UNet2DConditionModel": _Levels(),
        "DreamLiteUNetModel": _DreamLite(),
    }
)


def student_type(config: LibraryStudent) -> Any:
    """The class of `diffusers` that a configuration names, imported here and nowhere before.

    Raises:
        BadInput: if it is none that is known here.
    """
    return library_class(f"models.{type(config.facts).MODULE}", student_class(config.config))


def build_student(config: LibraryStudent) -> Any:
    """The library's network, without a checkpoint, on torch's current device.

    Raises:
        BadInput: if the library builds none of these values.
    """
    return built(student_type(config), config.config, "student: ")


def load_library_student(
    config: LibraryStudent, folder: Path | None, read: Callable[[str], Tensor], adapted: Collection[str] = ()
) -> Any:
    """The library's network in fp32: from a folder as the library itself reads it, else with `read`.

    `adapted` names tensors that the folder has without their LoRA, and that are taken from `read`.

    Raises:
        BadInput: if the library cannot read the folder.
    """
    if folder is not None:
        return read_folder(student_type(config), folder, read, adapted, "student ")
    with torch.random.fork_rng(devices=[]):
        whole = build_student(config).float().eval()
    whole.load_state_dict({name: read(name).float() for name in whole.state_dict()}, strict=True)
    return whole
