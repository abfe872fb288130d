"""A decoder of diffusers as a component: from its folder, with golden vectors of its own, and what a phone would pay for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from snapgen_deploy.check.causes import find_cause, golden_error
from snapgen_deploy.checkpoint import Checkpoint, CheckpointPlace, validate
from snapgen_deploy.checkpoint.networks import load_component
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.library_decoder import library_decoder
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden.own import OwnVectorsTask, held_to_libraries, write_own_vectors
from snapgen_deploy.golden.vectors import GoldenCases, GoldenSize, GoldenVectors, compared_with, open_golden
from snapgen_deploy.latency.estimate.cost_components import Drawn, component_costs, spelling_of
from snapgen_deploy.models import library_decoder as library_module
from snapgen_deploy.models.library_decoder import library_decode
from snapgen_deploy.models.presets import shapes
from snapgen_deploy.models.unfilled import without_storage
from tests import library_decoders as cases

CONFIG = cases.config_of("tiny")  # fits the embedded student
DRAWING = GoldenSize("tiny", (24, 40), (4, 3, 5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("vae")
    cases.save_folder(CONFIG, found)
    return found


@pytest.fixture(scope="module")
def opened(folder: Path) -> Checkpoint:
    return CheckpointPlace(None, decoder=folder).open()


@pytest.fixture(scope="module")
def vectors(folder: Path, opened: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> GoldenVectors:
    path = tmp_path_factory.mktemp("own") / "golden.safetensors"
    write_own_vectors(OwnVectorsTask(CheckpointPlace(None, decoder=folder), DRAWING, ("decoder",), None, path, 1))
    return open_golden(path, opened.config, DRAWING)


def test_only_the_decoding_half_is_taken(opened: Checkpoint) -> None:
    validate(opened, values=False)
    taken = [name for name in opened.tensors if name.startswith("decoder.")]
    assert taken
    assert not any("encoder" in name.removeprefix("decoder.") for name in taken)


def test_opening_needs_no_library(folder: Path, opened: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every child process opens the checkpoint, and most of them have nothing to do with the decoder."""
    monkeypatch.setattr(library_module, "_module", lambda config: pytest.fail("imports diffusers"))
    assert CheckpointPlace(None, decoder=folder).open().tensors == opened.tensors


def test_the_reference_is_what_diffusers_decodes(folder: Path, opened: Checkpoint) -> None:
    network, latent = load_component(opened, "decoder"), cases.latents(CONFIG, (3, 5))
    expected = library_decode(cases.pair(CONFIG)[0], CONFIG, latent)
    assert cases.relative(network(latent), expected) < 2e-6


def test_the_library_makes_its_golden_vectors(opened: Checkpoint, vectors: GoldenVectors) -> None:
    assert vectors.held_to == {"decoder": "diffusers 0.39.0"} == held_to_libraries(opened.config, None)
    assert held_to_libraries(opened.config, vectors) == {}  # the team's own are kept
    assert vectors.counts == {"decoder": 2}
    assert vectors.cases["decoder"].outputs["picture"].shape == (2, 3, 24, 40)
    spec, network = components_of(opened.config)["decoder"], load_component(opened, "decoder")
    assert golden_error(spec, network, vectors.cases["decoder"].rows()) < 1e-6
    said = "decoder held to diffusers 0.39.0; text encoder, student compared with this package's own reference only"
    assert compared_with(vectors, opened.config) == said


def test_a_lora_is_in_what_the_library_computes_too(folder: Path, opened: Checkpoint, tmp_path: Path) -> None:
    name = next(n for n, i in opened.tensors.items() if n.startswith("decoder.decoder") and len(i.shape) == 4)
    shape, module = opened.tensors[name].shape, name.removesuffix(".weight")
    a, b = torch.randn(2, *shape[1:]) * 0.1, torch.randn(shape[0], 2, 1, 1) * 0.1
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, tmp_path / "lora.safetensors")
    place = CheckpointPlace(None, decoder=folder, loras=((tmp_path / "lora.safetensors", 0.5),))
    write_own_vectors(OwnVectorsTask(place, DRAWING, ("decoder",), None, tmp_path / "golden.safetensors", 1))
    cases = open_golden(tmp_path / "golden.safetensors", opened.config, DRAWING).cases["decoder"]
    spec = components_of(opened.config)["decoder"]
    assert golden_error(spec, load_component(place.open(), "decoder"), cases.rows()) < 1e-6
    assert golden_error(spec, load_component(opened, "decoder"), cases.rows()) > 1e-3


def test_a_forgotten_scale_is_named(opened: Checkpoint, vectors: GoldenVectors) -> None:
    """The team's decoder reads latent / 0.18215; its config.json says 1.5, a shift besides."""
    network, given = load_component(opened, "decoder"), vectors.cases["decoder"].inputs["latent"]
    with torch.inference_mode():
        theirs = network(torch.from_numpy((given / 0.18215 - 0.25) * 1.5)).numpy()
    cause = find_cause(
        components_of(opened.config)["decoder"], network, GoldenCases({"latent": given}, {"picture": theirs}, {}), 1e-4, 60
    )
    assert "latent / 0.18215 (Stable Diffusion)" in cause.said()
    assert "its config.json: scaling_factor 0.18215, shift_factor 0" in cause.said()


def test_pixels_of_another_range_are_named(opened: Checkpoint, vectors: GoldenVectors) -> None:
    spec, ours = components_of(opened.config)["decoder"], vectors.cases["decoder"]
    theirs = GoldenCases(ours.inputs, {"picture": ours.outputs["picture"] / 2 + 0.5}, {})
    cause = find_cause(spec, load_component(opened, "decoder"), theirs, 1e-4, 60)
    assert "pixel range: pixels in [0, 1] in the file" in cause.said()


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("kl", "q and k swapped"), ("kl", "ReLU"), ("kl", "2 groups"), ("dc", "k, v, q"), ("qwen", "q and v swapped")],
)
def test_other_modules_inside_are_named(name: str, theirs: str) -> None:
    config = cases.config_of(name)
    spec, network = library_decoder(config), cases.pair(config)[1]
    offered = {v.theirs: v for v in spec.variants(network)}
    given = {"latent": cases.latents(config, (3, 5))}
    with offered[theirs].change(network):
        expected = {n: value.numpy() for n, value in spec.run(network, given).items()}
    found = GoldenCases({n: value.numpy() for n, value in given.items()}, expected, {})
    said = find_cause(spec, network, found, 1e-5, 20.0).said()
    assert f"{theirs} (here " in said
    assert offered[theirs].fix in said


def test_one_that_does_not_fit_the_student_is_refused(tmp_path: Path) -> None:
    cases.save_folder(cases.config_of("kl"), tmp_path)
    with pytest.raises(BadInput, match="decoder: enlarges 2x, the student's latent_factor is 8"):
        CheckpointPlace(None, decoder=tmp_path).open()


@pytest.mark.parametrize("name", ["kl", "dc", "wan-residual"])
def test_its_cost_is_known_without_weights(name: str) -> None:
    spec = library_decoder(cases.config_of(name))
    factor = spec.build("").facts.factor
    drawn = Drawn("full", (5 * factor, 3 * factor), (4, 5, 3))
    for target in ("executorch:xnnpack", "coreml"):
        with without_storage():
            network = spec.build("")
        costs = component_costs(shapes(), spec, network, drawn, spelling_of(target), "loop")
        assert sum(op.macs for op in costs) > 0
