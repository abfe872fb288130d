"""What the exported graphs consist of: ranks, operations, data movement, and what XNNPACK takes of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.export.executorch.partition import thrifty
from snapgen_deploy.export.executorch.passes import quick_passes
from snapgen_deploy.sparse import FORMS, rewrite_decoder, rewrite_student, rewrite_text_encoder

# Everything else would be a mask, a gather, a hidden copy, or an operation that XNNPACK leaves to portable kernels.
TOKEN_OPS = {
    "add", "sub", "mul", "rsqrt", "sigmoid", "_softmax", "bmm", "addmm", "mm", "cat", "slice", "permute", "view", "clone",
    "_unsafe_view",
}  # fmt: skip
DECODER_OPS = {"add", "sub", "mul", "rsqrt", "sigmoid", "mean", "convolution"}


def core_graph(module: nn.Module, inputs: tuple[object, ...]) -> torch.export.ExportedProgram:
    return torch.export.export(module, inputs, strict=False).run_decompositions()


def ops_of(program: torch.export.ExportedProgram) -> Counter[str]:
    return Counter(n.target.__name__.split(".")[0] for n in program.graph.nodes if n.op == "call_function")


def assert_rank_at_most_4(program: torch.export.ExportedProgram) -> None:
    values = [(n.name, n.meta["val"]) for n in program.graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    assert len(values) > 50
    assert [(name, tuple(v.shape)) for name, v in values if v.dim() > 4] == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 2])
def test_token_student_graph(kit, form, batch):
    # Four heads: forms with a loop over heads have a node for each. Up is built as Down is.
    dit = kit.student(1, depths=(1, 1, 0), hidden=32)
    student = rewrite_student(dit, (8, 16), layout="token", form=form, batch=batch)
    program = core_graph(student, kit.inputs(dit.config, (8, 16), batch))
    assert_rank_at_most_4(program)
    assert set(ops_of(program)) <= TOKEN_OPS


@pytest.mark.parametrize("form", FORMS)
def test_channels_student_graph(kit, form):
    dit = kit.student(1, depths=(1, 1, 0), hidden=32)
    student = rewrite_student(dit, (8, 16), layout="channels", form=form)
    inputs = kit.inputs(dit.config, (8, 16))
    # The graph that Core ML is converted from: einsum and matmul are still whole.
    program = torch.export.export(student, inputs, strict=False).run_decompositions({})
    assert_rank_at_most_4(program)
    unwanted = {"index", "gather", "index_select", "where", "masked_fill", "select", "expand", "repeat", "pow", "linear"}
    assert not unwanted & set(ops_of(program))


@pytest.mark.parametrize(
    ("form", "stage", "reshapes", "transposes"),
    [("per_head", "middle", 4, 1), ("loop", "middle", 8, 1), ("per_head", "down", 8, 2), ("loop", "down", 16, 2)],
)
def test_data_movement_of_channels_attention_is_as_documented(kit, form, stage, reshapes, transposes):
    dit = kit.student(1)
    student = rewrite_student(dit, (8, 16), layout="channels", form=form)
    attention = student.get_submodule(f"{stage}.0.attention")
    tokens = 32 if stage == "down" else 8
    inputs = (torch.randn(1, 64, 1, tokens), (torch.randn(8, tokens), torch.randn(8, tokens)))
    counts = ops_of(torch.export.export(attention, inputs, strict=False).run_decompositions({}))
    assert counts["view"] + counts["reshape"] + counts["_unsafe_view"] == reshapes
    assert counts["transpose"] + counts["permute"] == transposes
    assert counts["clone"] == counts["contiguous"] == 0


def test_block_of_channels_student_moves_no_data_outside_attention(kit):
    dit = kit.student(1)
    block = rewrite_student(dit, (8, 16), layout="channels", form="per_head").get_submodule("middle.0")
    tokens = 8
    rope = (torch.randn(8, tokens), torch.randn(8, tokens))
    inputs = (torch.randn(1, 64, 1, tokens), torch.randn(1, 384, 1, 1), torch.randn(1, 24, 1, 5), torch.zeros(1, 5, 1, 1), rope)
    counts = ops_of(torch.export.export(block, inputs, strict=False).run_decompositions({}))
    # Self-attention: 4 reshapes and the transposed keys; cross-attention: its transposed keys. Nothing else.
    assert (counts["view"] + counts["reshape"], counts["permute"] + counts["transpose"]) == (4, 2)


def test_decoder_and_text_encoder_graphs(kit):
    decoder = core_graph(rewrite_decoder(kit.decoder(), (4, 6), layout="token"), (torch.randn(1, 3, 4, 6),))
    assert set(ops_of(decoder)) <= DECODER_OPS
    tokens = (torch.zeros(1, 7, dtype=torch.int32), torch.ones(1, 7))
    encoder = core_graph(rewrite_text_encoder(kit.encoder(), layout="token"), tokens)
    assert_rank_at_most_4(encoder)
    assert set(ops_of(encoder)) <= TOKEN_OPS | {"embedding"}


def lowered(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Counter[str], Tensor]:
    """What stays outside the delegates, with the number of delegates, and the output of the lowered program."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    program = torch.export.export(module, inputs, strict=False)
    with thrifty(), quick_passes():
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    outside = Counter(n.target.__name__ for n in edge.exported_program().graph.nodes if n.op == "call_function")
    data = bytes(edge.to_executorch().buffer)
    loaded = Runtime.get().load_program(data)  # the runtime reads from `data` as long as it runs: both are held by name
    return outside, loaded.load_method("forward").execute(list(inputs))[0].clone()


def test_xnnpack_takes_the_whole_student(kit):
    # Lowering takes about 30 ms of one core per node: one sparse block, and a Middle with its skip, are enough here.
    dit = kit.student(1, blocks=3, depths=(1, 2, 0))
    inputs = kit.inputs(dit.config, (12, 8))
    outside, got = lowered(rewrite_student(dit, (12, 8), layout="token", form="loop"), inputs)
    assert outside == {"executorch_call_delegate": 1, "getitem": 1}
    assert kit.relative(got, kit.velocity(dit, inputs)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_xnnpack_takes_the_whole_student_in_every_form(kit, form):
    dit = kit.student(1, blocks=6, radius=1)
    inputs = kit.inputs(dit.config, (12, 8), 2)
    outside, got = lowered(rewrite_student(dit, (12, 8), layout="token", form=form, batch=2), inputs)
    assert outside == {"executorch_call_delegate": 1, "getitem": 1}
    assert kit.relative(got, kit.velocity(dit, inputs)) <= 1e-5


def test_xnnpack_takes_the_whole_decoder(kit):
    decoder, latent = kit.decoder(), torch.randn(1, 3, 4, 6)
    outside, got = lowered(rewrite_decoder(decoder, (4, 6), layout="token"), (latent,))
    assert outside == {"executorch_call_delegate": 1, "getitem": 1}
    assert kit.relative(got, decoder(latent)) <= 1e-5


def test_xnnpack_takes_the_text_encoder_but_for_the_lookup(kit):
    encoder, tokens = kit.encoder(layers=1), torch.randint(0, 32, (1, 7), dtype=torch.int32)
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
    outside, got = lowered(rewrite_text_encoder(encoder, layout="token"), (tokens, mask))
    assert outside == {"executorch_call_delegate": 1, "getitem": 1, "aten.embedding.default": 1}
    assert kit.relative(got, encoder(tokens, mask)) <= 1e-5
