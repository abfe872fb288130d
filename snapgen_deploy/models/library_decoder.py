"""The decoding half of an autoencoder of `diffusers`, as a reference network with this package's ports.

The arithmetic is the library's own. Its modules keep their names, so that its checkpoints fit. What is added is what a
pipeline of the library does around them: the latent's scale and shift before, and a frame axis for networks of videos.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snapgen_deploy.models.autoencoders import AUTOENCODERS, class_named_by, facts_of, latent_statistics
from snapgen_deploy.models.config import LibraryDecoder
from snapgen_deploy.models.diffusers_classes import built, read_folder
from snapgen_deploy.system.quiet import quiet

_DECODING = ("decoder", "post_quant_conv")  # parts of an autoencoder


def decodes(name: str) -> bool:
    """Whether a tensor of an autoencoder's folder is of its decoding half; by its name, without the library."""
    return name.partition(".")[0] in _DECODING


class DiffusersDecoder(nn.Module):
    """Normalised latent (B, C, h, w) -> picture (B, 3, f*h, f*w) in -1 ... 1, by an autoencoder of `diffusers`.

    `mean` and `std` (1, C, 1, 1) are no buffers: they are no part of a checkpoint, and have values on the meta device, too.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: LibraryDecoder) -> None:
        """Raises:
        BadInput: if the library builds no network of it.
        """
        super().__init__()
        self.config, self.facts = config, facts_of(config)
        whole = build_autoencoder(config)
        self.decoder: nn.Module = whole.decoder
        self.post_quant_conv: nn.Module | None = getattr(whole, "post_quant_conv", None)
        self.patch: int = whole.config.get("patch_size") or 1
        self.mean, self.std = (torch.tensor(v, device="cpu").view(1, -1, 1, 1) for v in latent_statistics(config))
        self.eval()

    def forward(self, latent: Tensor) -> Tensor:
        """As the pipelines of the library do before and in `decode`."""
        x = latent * self.std.to(latent) + self.mean.to(latent)  # (B, C, h, w)
        if not self.facts.VIDEO:
            return self._decoded(x)
        frames = self._decoded(x.unsqueeze(2))  # (B, 3, 1, H, W)
        if self.patch > 1:
            frames = _module(self.config).unpatchify(frames, self.patch)
        return frames[:, :, 0].clamp(-1.0, 1.0)

    def _decoded(self, x: Tensor) -> Tensor:
        if self.post_quant_conv is not None:
            x = self.post_quant_conv(x)
        # a decoder of videos may ask whether this is the first of several parts
        first = {"first_chunk": True} if "first_chunk" in inspect.signature(self.decoder.forward).parameters else {}
        picture: Tensor = self.decoder(x, **first)
        return picture


def _module(config: LibraryDecoder) -> Any:
    """The library's module of the class, imported here and nowhere before."""
    with quiet():
        return importlib.import_module(f"diffusers.models.autoencoders.{AUTOENCODERS[class_named_by(config)].MODULE}")


def autoencoder_class(config: LibraryDecoder) -> Any:
    """The class of `diffusers` that a configuration names.

    Raises:
        BadInput: if it is none that is known here.
    """
    return getattr(_module(config), class_named_by(config))


def build_autoencoder(config: LibraryDecoder) -> Any:
    """The whole autoencoder, without a checkpoint, on torch's current device.

    Raises:
        BadInput: if the library builds none of these values.
    """
    return built(autoencoder_class(config), config.config, "decoder: ")


def load_autoencoder(
    config: LibraryDecoder, folder: Path | None, read: Callable[[str], Tensor], adapted: Collection[str] = ()
) -> Any:
    """The library's whole autoencoder in fp32: from a folder as the library itself reads it, else with `read` as its decoder.

    `adapted` names tensors that the folder has without their LoRA, and that are taken from `read`.

    Raises:
        BadInput: if the library cannot read the folder.
    """
    if folder is not None:
        return read_folder(autoencoder_class(config), folder, read, adapted, "decoder ")
    with torch.random.fork_rng(devices=[]):
        whole = build_autoencoder(config).float().eval()
    own = {name: read(name).float() for name in whole.state_dict() if decodes(name)}
    whole.load_state_dict(own, strict=False)  # without its encoder
    return whole


def library_decode(autoencoder: Any, config: LibraryDecoder, latent: Tensor) -> Tensor:
    """The library's own `decode`: normalised latents (B, C, h, w) -> pictures (B, 3, H, W)."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in latent_statistics(config))
    x, video = latent * std + mean, facts_of(config).VIDEO
    with torch.inference_mode():
        picture: Tensor = autoencoder.decode(x.unsqueeze(2) if video else x, return_dict=False)[0]
    return picture[:, :, 0] if video else picture
