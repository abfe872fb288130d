"""Text encoders of transformers: our reading of a folder and every rewritten graph against the library's own forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from snapgen_deploy.checkpoint.text_folder import open_text_folder
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.component import OracleTask
from snapgen_deploy.families.library_text import library_text_encoder
from snapgen_deploy.families.variant import Variant
from snapgen_deploy.golden.vectors import GoldenSize
from snapgen_deploy.latency.estimate.cost import trace_module
from snapgen_deploy.models.config import LibraryTextEncoder, TextStream
from snapgen_deploy.models.library_text import LibraryText, settings_of
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.sparse import rewrite_library_text
from snapgen_deploy.sparse.rewrite import Layout
from snapgen_deploy.sparse.token_layers import OpForm

from .folders import MODELS, write_folder

LENGTH = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_folder(root / kind, kind) for kind in MODELS}


def loaded(folder: Path, **settings: Any) -> LibraryText:
    """The network as an export loads it."""
    found = open_text_folder(folder, TextStream("text", 32, LENGTH))
    config = replace(found.config, **({"padding": "right"} | settings))
    network = library_text_encoder(config, 0).build("")
    assert isinstance(network, LibraryText)
    network.load_state_dict({name: tensor.read(tensor.info.shape) for name, tensor in found.stored.items()}, assign=True)
    return network.eval().requires_grad_(False)


def inputs(vocab: int, count: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens and mask (1, L) with `count` tokens."""
    tokens = torch.randint(3, vocab, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(LENGTH) < count).float()[None]
    return tokens, mask.flip(1) if left else mask


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_is_read_as_the_library_reads_it(folders: Mapping[str, Path], kind: str) -> None:
    import transformers

    network = loaded(folders[kind])
    tokens, mask = inputs(network.settings.vocab_size, LENGTH - 3)
    theirs = getattr(transformers, MODELS[kind][0]).from_pretrained(str(folders[kind]), attn_implementation="eager").eval()
    theirs = theirs.model if hasattr(theirs, "lm_head") else theirs
    with torch.no_grad():
        states = theirs(input_ids=tokens, attention_mask=mask.long(), output_hidden_states=True)
        # Padding means nothing beyond Gemma's window, and has another position in the whole of Qwen3-VL.
        real = mask[..., None] if kind.startswith(("gemma", "qwen3_vl")) else torch.ones(1)
        assert error(network(tokens, mask) * real, states.last_hidden_state * real) == 0
        network.config = replace(network.config, layer=-2)
        assert error(network(tokens, mask) * real, states.hidden_states[-2] * real) == 0


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("settings", [{}, {"layer": -2, "dropped": 2}], ids=str)
def test_the_oracle_is_what_the_reference_computes(folders: Mapping[str, Path], kind: str, settings: dict[str, Any]) -> None:
    network = loaded(folders[kind], **settings)
    oracle = library_text_encoder(network.config, 0).oracle
    assert oracle is not None
    read = dict(network.named_parameters()).__getitem__
    for folder in (folders[kind], None):
        found = oracle.record(OracleTask(folder, read, GoldenSize("", (64, 64), (4, 8, 8))))
        rows = [network(found["tokens"][i : i + 1], found["mask"][i : i + 1]) for i in range(len(found["tokens"]))]
        assert error(found["text"], torch.cat(rows)) == 0
        assert found["mask"].min() == 0


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"layer": -2}, {"layer": -2, "normed": True}, {"layer": 3}, {"dropped": 3}, {"padding": "left"}],
    ids=str,
)
def test_rewritten_graphs(folders: Mapping[str, Path], kind: str, settings: dict[str, Any]) -> None:
    left = "padding" in settings
    if left and kind == "clip_text_model":
        pytest.skip("CLIP pads on the right: the library gives NaN otherwise")
    network = loaded(folders[kind], **settings)
    tokens, mask = inputs(network.settings.vocab_size, LENGTH - 4, left=left)
    graphs = [rewrite_library_text(network, layout="token", ops=ops) for ops in ("spelled", "half", "native")]
    graphs += [rewrite_library_text(network, layout="channels", form=form) for form in ("per_head", "loop")]
    with torch.no_grad():
        expected = network(tokens, mask)
        assert expected.shape == (1, LENGTH - settings.get("dropped", 0), 32)
        assert max(error(graph(tokens.int(), mask), expected) for graph in graphs) < 1e-5


class InHalf(TorchDispatchMode):
    """Every result is rounded to half precision, as Core ML's executor does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out.half().float() if isinstance(out, Tensor) and out.dtype == torch.float32 else out


@pytest.mark.parametrize("settings", [{}, {"layer": -2, "normed": True}], ids=str)
def test_hidden_states_of_t5_beyond_half_precision(folders: Mapping[str, Path], settings: dict[str, Any]) -> None:
    """As those of published encoders: what the feed-forward layers add, and the product inside them."""
    network = loaded(folders["t5"], **settings)
    for block in network.model.block:
        for name, times in (("wi_0", 40.0), ("wi_1", 40.0), ("wo", 4.0)):
            weight = getattr(block.layer[1].DenseReluDense, name).weight
            weight.copy_((weight * times).half())
    tokens, mask = inputs(network.settings.vocab_size, LENGTH - 4)
    with torch.no_grad():
        states = network.model(input_ids=tokens, attention_mask=mask.long(), output_hidden_states=True).hidden_states
        assert states[-2].abs().max() > 65504
        expected = network(tokens, mask)
        for options in ({"layout": "channels"}, {"layout": "token", "ops": "half"}):
            graph = rewrite_library_text(network, **options)  # type: ignore[arg-type]
            with InHalf():
                assert error(graph(tokens.int(), mask), expected) < 2e-2, options
        plain = rewrite_library_text(network, layout="token", ops="spelled")
        with InHalf():
            assert not plain(tokens.int(), mask).isfinite().all()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("layout", "ops"), [("token", "native"), ("token", "spelled"), ("token", "half"), ("channels", "half")]
)
def test_operations_are_counted_without_weights(folders: Mapping[str, Path], kind: str, layout: Layout, ops: OpForm) -> None:
    """As a plan does for its estimates, whatever tables the library computes."""
    config = open_text_folder(folders[kind], TextStream("text", 32, LENGTH)).config
    with without_storage():
        empty = rewrite_library_text(LibraryText(config), layout=layout, ops=ops)
    real = rewrite_library_text(loaded(folders[kind]), layout=layout, ops=ops)
    example = [torch.zeros(1, LENGTH, dtype=torch.int32), torch.ones(1, LENGTH)]
    assert trace_module(empty, example) == trace_module(real, example)


def test_a_graph_has_no_layers_that_the_embeddings_do_not_need(folders: Mapping[str, Path]) -> None:
    graph = rewrite_library_text(loaded(folders["qwen3"], layer=-2), layout="token")
    assert isinstance(graph.layers, nn.ModuleList)
    assert len(graph.layers) == 2


@pytest.mark.parametrize("kind", MODELS)
def test_each_variant_changes_the_network_and_leaves_it_as_it_was(folders: Mapping[str, Path], kind: str) -> None:
    network = loaded(folders[kind])
    variants: list[Variant] = list(library_text_encoder(network.config, 0).variants(network))
    tokens, mask = inputs(network.settings.vocab_size, LENGTH - 3)
    assert {"activation", "padding", "hidden state", "q, k, v of attention"} <= {v.kind for v in variants}
    assert any(v.theirs == "no causal mask" for v in variants) == (kind != "t5")
    with torch.no_grad():
        before = network(tokens, mask)
        for variant in variants:
            if variant.theirs == "padding is seen" and kind != "t5":
                continue  # padding on the right of a causal mask is seen by padding alone
            with variant.change(network):
                assert error(network(tokens, mask), before) > 1e-5, variant
        assert error(network(tokens, mask), before) == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "clip_txt_model"}, "model_type: got 'clip_txt_model', expected one of .*clip_text_model"),
        ({"hidden_act": "mish"}, "activation: got 'mish', expected one of quick_gelu"),
        ({"max_position_embeddings": 8}, "length: got 12 tokens, the encoder takes 8"),
        ({"num_attention_heads": 5}, "builds no CLIPTextModel of the configuration: embed_dim must be divisible by num_heads"),
        ({"hidden_size": "wide"}, "hidden_size: got 'wide', expected a whole number"),
        ({"vocab_size": None}, "vocab_size: got nothing"),
    ],
)
def test_bad_configurations(settings: dict[str, Any], said: str) -> None:
    config = {"model_type": "clip_text_model", **MODELS["clip_text_model"][1], "vocab_size": 120, **settings}
    with without_storage(), pytest.raises(BadInput, match=said):
        LibraryText(LibraryTextEncoder("transformers", config, LENGTH))


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"layer": 4}, "layer: got 4, the encoder has 3"),
        ({"dropped": 12}, "dropped: got 12 of 12 tokens"),
        ({"normed": True}, "normed: the last hidden state has the final norm already"),
    ],
)
def test_bad_fields(field: dict[str, Any], said: str) -> None:
    config = {"model_type": "qwen2", **MODELS["qwen2"][1], "vocab_size": 120}
    with pytest.raises(BadInput, match=said):
        settings_of(LibraryTextEncoder("transformers", config, LENGTH, **field))
