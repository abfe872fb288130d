"""The pooled vector of a CLIP text encoder: where the text ends, projected or not, and what a student makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snapgen_deploy.check.causes import find_cause
from snapgen_deploy.check.gates import relative_error
from snapgen_deploy.checkpoint.text_folder import open_text_folder
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import OracleTask, Spelling
from snapgen_deploy.families.library_text import library_text_encoder
from snapgen_deploy.golden.vectors import GoldenCases, GoldenSize
from snapgen_deploy.models.config import LibraryTextEncoder, TextStream
from snapgen_deploy.models.dit import DiT, is_per_width
from snapgen_deploy.models.library_text import LibraryText
from snapgen_deploy.models.unet_config import UNetConfig
from snapgen_deploy.sparse import rewrite_library_text, rewrite_student
from tests.cli.conftest import tiny_config

from .folders import write_folder

LENGTH, DIM, PROJECTED = 12, 32, 24
DRAWING = GoldenSize("", (64, 64), (4, 8, 8))
# By name: the class, and the id that ends a text (None: the tokenizer's own).
CASES: Mapping[str, tuple[str, int | None]] = {
    "projected": ("CLIPTextModelWithProjection", None),
    "projected, legacy": ("CLIPTextModelWithProjection", 2),
    "plain": ("CLIPTextModel", None),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root, found = tmp_path_factory.mktemp("pooled"), {}
    for name, (kind, end) in CASES.items():
        ends: dict[str, Any] = {} if end is None else {"eos_token_id": end}
        found[name] = write_folder(root / name, "clip_text_model", kind, projection_dim=PROJECTED, hidden_act="gelu", **ends)
    return found


def opened(folder: Path, **settings: Any) -> tuple[LibraryText, LibraryTextEncoder]:
    pooled = DIM if folder.name == "plain" else PROJECTED
    found = open_text_folder(folder, TextStream("clip", DIM, LENGTH, pooled))
    config = replace(found.config, **settings)
    network = library_text_encoder(config, 0).build("")
    assert isinstance(network, LibraryText)
    network.load_state_dict({name: tensor.read(tensor.info.shape) for name, tensor in found.stored.items()}, assign=True)
    return network.eval().requires_grad_(False), config


def prompts(config: LibraryTextEncoder) -> Tensor:
    """Padded with the end itself; with other ids behind the end; without an end; with the end first."""
    end = config.config["eos_token_id"]
    last = config.config["vocab_size"] - 1 if end == 2 else end
    rows = torch.randint(3, last - 1, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    rows[0, 5:], rows[1, 7], rows[3, 0] = last, last, last
    return rows


def theirs(folder: Path, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden state -2 and the pooled vector, as diffusers' pipelines of SDXL, SD 3 and Flux take them."""
    import transformers

    kind = CASES[folder.name][0]
    model = getattr(transformers, kind).from_pretrained(str(folder), attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(input_ids=tokens, output_hidden_states=True)
    return found.hidden_states[-2], found.text_embeds if kind.endswith("Projection") else found.pooler_output


@pytest.mark.parametrize("name", CASES)
def test_reference_oracle_and_graphs_are_the_librarys(folders: Mapping[str, Path], name: str) -> None:
    network, config = opened(folders[name], layer=-2)
    tokens, mask = prompts(config), torch.ones(1, LENGTH)
    graphs = [rewrite_library_text(network, layout="token", ops=ops) for ops in ("spelled", "half", "native")]
    graphs += [rewrite_library_text(network, layout="channels", form="per_head")]
    with torch.no_grad():
        for row in tokens.split(1):
            expected = theirs(folders[name], row)
            for i, reference in enumerate(network(row, mask)):
                assert torch.equal(reference, expected[i])
            for graph in graphs:
                for got, wanted in zip(graph(row.int(), mask), expected, strict=True):
                    assert (got - wanted).norm() < 1e-5 * wanted.norm()
    oracle = library_text_encoder(config, 0).oracle
    assert oracle is not None
    found = oracle.record(OracleTask(folders[name], lambda name: torch.empty(0), DRAWING))
    with torch.no_grad():
        rows = [network(t, m)[1] for t, m in zip(found["tokens"].split(1), found["mask"].split(1), strict=True)]
    assert torch.equal(found["clip_pooled"], torch.cat(rows))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["onnx:cpu", "coreml", "executorch:xnnpack"])
@pytest.mark.parametrize("name", CASES)
def test_files_on_every_target(folders: Mapping[str, Path], name: str, key: str, tmp_path: Path) -> None:
    network, config = opened(folders[name], layer=-2)
    spec, record, (target, variant) = library_text_encoder(config, 0), spec_of(key), target_of(key)
    precision, ports, mask = record.precisions[0], spec.ports(DRAWING), torch.ones(1, LENGTH)
    writing = (record.writing.ops_at(precision), None, "loop", record.writing.text_form)
    module = spec.rewrite(network, (8, 8), Spelling("channels" if record.layout == "channels" else "token", *writing)).eval()
    example = (torch.zeros(1, LENGTH, dtype=torch.int32), mask)
    component = Component(spec.name, module, ports.inputs, ports.outputs, example, ports.doc)
    path = target.export(component, variant, precision, tmp_path, {}).path
    run = target.open(path, threads=1)
    for row in prompts(config).split(1):
        got = run({"tokens": row.int().numpy(), "mask": mask.numpy()})
        for found, wanted in zip(spec.outputs, theirs(folders[name], row), strict=True):
            assert relative_error(got[found], wanted.numpy()) < (5e-3 if precision == "fp16" else 1e-5)
    assert target.describe(path).placement.get("XnnpackBackend", 1) == 1


def test_another_end_of_the_text_is_named(folders: Mapping[str, Path]) -> None:
    """A folder of before transformers 4.31 whose pad is the highest id: what pools at id 7 pools elsewhere."""
    network, config = opened(folders["projected"])
    spec = library_text_encoder(config, 0)
    inputs = {"tokens": prompts(config)[1:2].int(), "mask": torch.ones(1, LENGTH)}
    inputs["tokens"][0, 3] = 7
    network.model.text_model.eos_token_id = 7
    outputs = {name: value.numpy() for name, value in spec.run(network, inputs).items()}
    cases = GoldenCases({name: value.numpy() for name, value in inputs.items()}, outputs, {})
    network.model.text_model.eos_token_id = 2
    theirs = {name: value.numpy() for name, value in spec.run(network, inputs).items()}
    network.model.text_model.eos_token_id = 7
    cause = find_cause(spec, network, replace(cases, outputs=theirs), 1e-4, 20.0)
    assert "pooled vector: at the highest id" in cause.said()
    assert "set eos_token_id to 2" in cause.said()


def test_one_that_does_not_fit_the_stream_is_refused(folders: Mapping[str, Path], tmp_path: Path) -> None:
    said = r"gives a pooled vector of 24 channels \(projected\), the student's text stream takes 32"
    with pytest.raises(BadInput, match=said):
        open_text_folder(folders["projected"], TextStream("clip", DIM, LENGTH, 32))
    settings = tmp_path / "clip.toml"
    settings.write_text(f'folder = "{folders["projected"]}"\nprojected = false\n')
    assert open_text_folder(settings, TextStream("clip", DIM, LENGTH, 32)).config.pooled == "plain"
    t5 = write_folder(tmp_path / "t5", "t5")
    with pytest.raises(BadInput, match="pooled: got projected, expected no: only CLIP gives a pooled vector"):
        open_text_folder(t5, TextStream("t5", DIM, LENGTH, 32))


def test_a_student_that_takes_them() -> None:
    streams = (TextStream("clip", 16, 5, 12), TextStream("bigg", 8, 4, 20), TextStream("llm", 8, 3))
    config = replace(tiny_config().student, text_streams=streams)
    torch.manual_seed(0)
    dit = DiT(config, "small").eval().requires_grad_(False)  # type: ignore[arg-type]
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    text = {s.name: torch.randn(1, s.length, s.dim) for s in streams}
    mask = {s.name: torch.ones(1, s.length) for s in streams}
    pooled = {s.name: torch.randn(1, s.pooled) for s in streams if s.pooled}
    latent, features = torch.randn(1, 4, 8, 8), torch.randn(1, 16)
    expected = dit(latent, features, text, mask, pooled)
    # as SD 3: embedding + fc2(silu(fc1(concatenated vectors)))
    joined, projection = torch.cat([pooled["clip"], pooled["bigg"]], 1), dit.time.pooled
    assert projection is not None
    hidden = projection.fc2(torch.nn.functional.silu(projection.fc1(joined)))
    assert torch.allclose(dit.time(features, joined)[0], dit.time(features)[0] + hidden, atol=1e-6)
    assert (dit(latent, features, text, mask, {}) - expected).norm() > 1e-3 * expected.norm()
    given = (latent, features, *(t for s in streams for t in (text[s.name], mask[s.name])), pooled["clip"], pooled["bigg"])
    for graph in (
        rewrite_student(dit, (8, 8), layout="token", form="batched"),
        rewrite_student(dit, (8, 8), layout="channels", form="per_head"),
    ):
        assert (graph(*given) - expected).norm() < 1e-5 * expected.norm()
    assert is_per_width("time.pooled.fc1.weight")
    assert "clip has a pooled vector, which a U-Net does not take" in UNetConfig(text_streams=streams).problems()[0]
