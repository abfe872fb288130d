"""Text encoders that are too large for memory: run and converted with their large tensors in the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.language_model import LIMIT, configuration
from snapgen_deploy.checkpoint import Checkpoint, open_checkpoint
from snapgen_deploy.checkpoint.initial import write_initial
from snapgen_deploy.checkpoint.networks import load_component, load_on_disk, stays_on_disk
from snapgen_deploy.device_profiles import load_profile
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.families.component import MASK, TOKENS, Spelling
from snapgen_deploy.families.names import TEXT_ENCODER
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.job.memory import largest, predict
from snapgen_deploy.models import library_text
from snapgen_deploy.models.config import LibraryTextEncoder, TextStream
from snapgen_deploy.models.dit_config import DiTConfig
from snapgen_deploy.models.on_disk import large_parameters
from snapgen_deploy.models.presets import shapes
from snapgen_deploy.plan.make import make_plan

from .folders import MODELS

LENGTH, WORDS = 12, 203  # an odd number of words
KINDS = [kind for kind in MODELS if kind != "clip_text_model"]  # its end token is not in random tokens


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """`checkpoint(kind)`: a small one in bf16 with such a text encoder."""

    def written(kind: str) -> Checkpoint:
        small = shapes()
        assert isinstance(small.student, DiTConfig)
        student = replace(small.student, text_streams=(TextStream("text", 32, LENGTH),))
        encoder = LibraryTextEncoder("transformers", {"model_type": kind, **MODELS[kind][1], "vocab_size": WORDS}, LENGTH)
        folder = tmp_path_factory.mktemp(kind)
        write_initial(replace(small, student=student, text_encoder=encoder, decoder=None), folder, dtype="bf16")
        return open_checkpoint(folder)

    return written


def inputs() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(3, WORDS, (1, LENGTH), dtype=np.int32)
    return {TOKENS: tokens, MASK: (np.arange(LENGTH) < LENGTH - 3).astype(np.float32)[None]}


def run(network: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = network(*(torch.from_numpy(x) for x in inputs().values()))
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_from_disk_the_library_computes_the_same(checkpoint: Callable[[str], Checkpoint], kind: str) -> None:
    found = checkpoint(kind)
    apart = load_on_disk(found, TEXT_ENCODER, least=1)
    assert len(apart.tensors) > 20
    assert torch.equal(run(apart.running()), run(load_component(found, TEXT_ENCODER)))


def test_what_a_file_is_held_to_is_computed_from_disk(
    checkpoint: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checkpoint("gemma3_text")
    assert isinstance(found.config.text_encoder, LibraryTextEncoder)
    monkeypatch.setattr(library_text, "MOST_HELD", 0)
    monkeypatch.setattr(library_text, "large_parameters", partial(large_parameters, least=1))
    encode = library_text.library_encoder(found.config.text_encoder, None, lambda name: found.read(f"{TEXT_ENCODER}.{name}"))
    expected = run(load_component(found, TEXT_ENCODER))
    assert torch.equal(encode(*(torch.from_numpy(x) for x in inputs().values())), expected)


def test_numbers_that_are_not_finite_are_found_when_they_are_read(checkpoint: Callable[[str], Checkpoint]) -> None:
    found = checkpoint("gemma3_text")
    apart = load_on_disk(found, TEXT_ENCODER, least=1)
    file, raw = found.files[0], bytearray(found.files[0].read_bytes())
    written = file.stat().st_mtime_ns
    raw[-4000:] = b"\xff\x7f" * 2000  # NaN in bf16, in the last layer
    file.write_bytes(raw)
    os.utime(file, ns=(written, written))  # as if they had been there from the start
    with pytest.raises(BadInput, match=r"'text_encoder.model.layers.2.* NaN and 0 infinite"):
        for read in apart.tensors.values():
            read()


def test_only_large_language_models_stay_on_disk() -> None:
    config = configuration(34)
    components = components_of(config)
    assert stays_on_disk(components[TEXT_ENCODER], "full")
    assert not stays_on_disk(components_of(configuration(1))[TEXT_ENCODER], "full")
    assert not stays_on_disk(components.denoiser, "full")


@pytest.mark.parametrize(("key", "precision"), [("onnx:cpu", "int4"), ("coreml", "int4"), ("coreml", "fp16")])
def test_no_process_is_predicted_to_hold_a_language_model(key: str, precision: str) -> None:
    config = configuration(34)
    half = 2 * components_of(config)[TEXT_ENCODER].parameters("")
    plan = make_plan(config, load_profile("iphone16pm").with_memory_budget(2**40), targets=[key], precision=precision)
    assert largest(predict(config, plan)).bytes < LIMIT * half
    whole = make_plan(config, load_profile("iphone16pm").with_memory_budget(2**40), targets=[key], precision="fp32")
    assert largest(predict(config, whole)).bytes > 2 * LIMIT * half


def component(found: Checkpoint, key: str, precision: str, *, apart: bool) -> Component:
    spec = components_of(found.config)[TEXT_ENCODER]
    plan = make_plan(found.config, load_profile("server"), targets=[key], precision=precision)
    target = plan.targets[0]
    writing = target.spec.writing
    source = load_on_disk(found, TEXT_ENCODER, least=1) if apart else None
    network = load_component(found, TEXT_ENCODER) if source is None else source.network
    how = Spelling(target.layout, writing.ops_at(precision), None, target.form, writing.text_form)
    module = spec.rewrite(network, (16, 16), how)
    ins, outs, doc = spec.ports(plan)
    example = tuple(torch.from_numpy(x) for x in inputs().values())
    return Component(TEXT_ENCODER, module, ins, outs, example, doc, on_disk={} if source is None else source.of(module))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "precision", "most"), [("onnx:cpu", "int4", 0.02), ("coreml", "int8", 0.02), ("coreml", "fp16", 0.0)]
)
def test_layer_by_layer_is_the_usual_conversion(
    checkpoint: Callable[[str], Checkpoint], tmp_path: Path, key: str, precision: str, most: float
) -> None:
    """Gemma 3 with a layer of each kind, sliding and full; what differs is the table, which the usual way stores otherwise."""
    found, results = checkpoint("gemma3_text"), []
    target, variant = target_of(key)
    for apart in (True, False):
        folder = tmp_path / str(apart)
        folder.mkdir()
        made = target.export(component(found, key, precision, apart=apart), variant, precision, folder, {})
        results.append(next(iter(target.open(made.path, threads=1)(inputs()).values())))
    assert np.linalg.norm(results[0] - results[1]) <= most * np.linalg.norm(results[1])


@pytest.mark.slow
@pytest.mark.parametrize("key", ["onnx:cpu", "coreml"])
def test_four_billion_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Gemma 3 4B: 16 GB in fp32, of which no process holds much more than half."""
    from benchmarks import language_model

    monkeypatch.setattr(language_model, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["language_model", "--target", key])
    language_model.main()
    found = next(iter(language_model.json.loads((tmp_path / "language_model.json").read_text()).values()))
    assert max(found[step]["peak_bytes"] for step in ("conversion", "reference", "check")) <= LIMIT * found["half_bytes"]
    assert found["error"] < 0.6
