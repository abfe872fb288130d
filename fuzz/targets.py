"""A target for each reader: what it does with bytes, and what it may raise.

A reader may refuse its input with BadInput, in a short message that does not repeat it. Whatever else it raises is a finding,
and so is what takes longer than a few seconds or more memory than the runner allows.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.errors import BadInput, SnapgenError

NAMES = ("net.patch.weight", "vae.decoder.a", "step", "blocks.0.q.weight", "blocks.0.k.weight", "blocks.11.qkv.bias")
SEEDS = Path(__file__).parent / "seeds"
LONGEST_MESSAGE = 300  # characters, without the paths in it
_FAST = Path("/dev/shm")  # files of each case are written here, where there is such a place


@dataclass(frozen=True)
class Target:
    """How one case is run: `read` gets a folder of its own with the case in `name`, beside what `prepare` put there."""

    name: str
    read: Callable[[Path], object]
    prepare: Callable[[Path], None] = lambda folder: None


class LongMessage(AssertionError):
    """A message that repeats its input."""


@contextmanager
def runner(target: Target) -> Iterator[Callable[[bytes], None]]:
    """A function that runs one case; what it raises is a finding."""
    place = tempfile.TemporaryDirectory(prefix="fuzz-", dir=_FAST if os.access(_FAST, os.W_OK) else None)
    with place as name:
        folder = Path(name)
        target.prepare(folder)
        path = folder / target.name

        def run(data: bytes) -> None:
            path.write_bytes(data)
            try:
                target.read(path)
            except SnapgenError as error:
                said = str(error).replace(str(folder), "")
                if len(said) > LONGEST_MESSAGE or not isinstance(error, BadInput):
                    raise LongMessage(f"{len(said)} characters: {said[:1000]!r}") from None

        yield run


def _checkpoint(path: Path) -> None:
    from snapgen_deploy.checkpoint import open_checkpoint, validate

    validate(open_checkpoint(path), values=False)


def _shard(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes((SEEDS / "header" / "one-tensor").read_bytes())


def _torch(path: Path) -> None:
    from snapgen_deploy.checkpoint.sources import TorchSource

    source = TorchSource.of(path)
    for name, info in source.tensors.items():
        with contextlib.suppress(BadInput):  # of what is no tensor
            source.read(name, info.shape).clone()


def _pickle(path: Path) -> None:
    """The case is the pickle of an archive that is whole otherwise: changed archives seldom get as far as their pickle."""
    archive = path.parent / "a.pt"
    with zipfile.ZipFile(archive, "w") as members:
        for name, data in {"data.pkl": path.read_bytes(), "data/0": bytes(64), "version": b"3\n"}.items():
            members.writestr(f"archive/{name}", data)
    _torch(archive)


def _manifest(path: Path) -> None:
    from snapgen_deploy.bundle.reader import open_bundle

    bundle = open_bundle(path.parent)
    for size in bundle.sizes:
        view = bundle.at(size)
        _ = view.config, view.schedule, view.latent, view.resolution, view.tokenizers()
        for key in view.targets:
            _ = view.precision(key), view.limits(key), view.artifacts(key)


def _profile(path: Path) -> None:
    from snapgen_deploy.device_profiles import load_profile

    load_profile(str(path))


def _key_map(path: Path) -> None:
    from snapgen_deploy.checkpoint.keymap import load_key_map

    rules = load_key_map(path)
    if not rules.patterns and not rules.drops:  # a regular expression takes what time it takes: SECURITY.md
        rules.recipes(NAMES, {})


def _adapter(path: Path) -> None:
    from snapgen_deploy.checkpoint.lora import open_adapter

    open_adapter(path.parent, 1.0)


def _adapter_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes((SEEDS / "lora-files" / "adapter_model.safetensors").read_bytes())


def _configuration(path: Path) -> None:
    from snapgen_deploy.checkpoint.about import read_configuration

    read_configuration(path)


def _arrays(path: Path) -> None:
    from snapgen_deploy.system.files import read_arrays

    read_arrays(path, "--embeddings")


def _tokenizer(path: Path) -> None:
    from snapgen_deploy.models.tokenizer import WordTokenizer

    tokenizer = WordTokenizer(path.read_bytes().decode("utf-8", errors="replace"))
    _ = tokenizer.embedding_rows
    tokenizer.encode("a red ring", 16)


def _recipe(path: Path) -> None:
    from snapgen_deploy.quantise import recipe

    (path.parent / recipe.RECIPE_SEAL).write_text(recipe.seal_of(path.parent), encoding="utf-8")
    found = recipe.load_recipe(path.parent)
    assert found is None or set(found.bits) == set(found.palettes)


def _recipe_files(folder: Path) -> None:
    for file in (SEEDS / "recipe-files").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


def _baseline(path: Path) -> None:
    from snapgen_deploy.latency.compare.baseline import read_baseline

    for run in read_baseline(path):
        run.summary()


TARGETS: Mapping[str, Target] = {
    "header": Target("a.safetensors", _checkpoint),
    "index": Target("model.safetensors.index.json", _checkpoint, _shard),
    "pt": Target("a.pt", _torch),
    "pickle": Target("data.pkl", _pickle),
    "manifest": Target("manifest.json", _manifest),
    "profile": Target("a.toml", _profile),
    "key-map": Target("a.toml", _key_map),
    "lora": Target("adapter_config.json", _adapter, _adapter_weights),
    "configuration": Target("a.toml", _configuration),
    "npz": Target("a.npz", _arrays),
    "tokenizer": Target("tokenizer.json", _tokenizer),
    "recipe": Target("recipe.json", _recipe, _recipe_files),
    "baseline": Target("a.json", _baseline),
}
