"""A checkpoint small enough to export in seconds, and one bundle of it for three targets that all workers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from snapgen_deploy.checkpoint import checkpoint_state, save_checkpoint
from snapgen_deploy.cli import app
from snapgen_deploy.job import checked, convert, drawn
from snapgen_deploy.models import (
    DecoderConfig,
    DiTConfig,
    ElasticDiT,
    ModelConfig,
    TextEncoder,
    TextEncoderConfig,
    TextStream,
    TinyDecoder,
)
from snapgen_deploy.models.dit_config import dit_of
from snapgen_deploy.models.tokenizer import WordTokenizer
from tests.conversions import converted_anew as converted_anew
from tests.conversions import share

WORDS = ["a", "red", "blue", "ring", "on", "gray", "left", "of", "square", "background"]


def tiny_config() -> ModelConfig:
    student = DiTConfig(
        latent_channels=4, hidden=64, head_dim=4, depths=(1, 1, 1), blocks=2, text_width=16, cross_dim=16,
        text_streams=(TextStream("text", 16, 16),), time_features=16,
    )  # fmt: skip
    decoder = DecoderConfig(latent_channels=4, channels=(16, 8, 8, 8), blocks=(1, 0, 0, 0), groups=4)
    encoder = TextEncoderConfig(vocab=14, length=16, width=16, layers=1, heads=2)
    return ModelConfig(
        student, decoder, encoder, name="tiny-test", resolution=(64, 64), prompts=("a red ring", "a blue ring on gray")
    )


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def checkpoint(once: Once) -> Path:
    return once("checkpoint", lambda folder: write_checkpoint(folder / "tiny.safetensors")) / "tiny.safetensors"


def write_checkpoint(path: Path, config: ModelConfig | None = None) -> None:
    config = config or tiny_config()
    torch.manual_seed(0)
    elastic = ElasticDiT(dit_of(config))
    for tensor in elastic.tensors.values():  # tables and biases are zero at first: give every path a share in the picture
        torch.nn.init.normal_(tensor, std=0.05 if tensor.ndim < 2 else tensor[0].numel() ** -0.5)
    assert isinstance(config.decoder, DecoderConfig)
    encoder = TextEncoder(config.text_encoder) if isinstance(config.text_encoder, TextEncoderConfig) else None
    state = checkpoint_state(elastic, TinyDecoder(config.decoder), encoder)
    tokenizer = None if encoder is None else WordTokenizer.from_words(WORDS).to_json()
    save_checkpoint(state, config, path, tokenizer=tokenizer, license="Apache-2.0")


@pytest.fixture(scope="module", autouse=True)
def _shared_conversions(once: Once) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        share(patch, once("conversions", lambda folder: None))
        yield


def invoke(*arguments: object) -> Result:
    """The command line in this process; `export` itself starts the child processes that a user's would."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def in_this_process(
    patch: pytest.MonkeyPatch, names: list[str] | None = None, modules: Sequence[Any] = (drawn, convert, checked)
) -> None:
    """Have the work of child processes that `modules` start done here; `names` takes what they would have started."""

    def here(
        what: str,
        function: Callable[..., Any],
        *arguments: Any,
        on_progress: Callable[..., None] | None = None,
        method: str = "",
    ) -> tuple[Any, int]:
        if names is not None:
            names.append(what)
        return function(*arguments, **({} if on_progress is None else {"on_progress": on_progress})), 7

    for module in modules:
        patch.setattr(module, "run_in_child", here)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, once: Once) -> Path:
    """Of the tiny checkpoint for Core ML, ExecuTorch and ONNX."""
    conversions = once("conversions", lambda folder: None)

    def export(out: Path) -> None:
        where = ("--device", "iphone16pm", "--checkpoint", checkpoint, "-o", out)
        with pytest.MonkeyPatch.context() as patch:
            share(patch, conversions)
            done = invoke("export", *where, "--width", "small", "--threads", 1)
        assert done.exit_code == 0, done.output

    return once("bundle", export) / "tiny-test-iphone16pm"
