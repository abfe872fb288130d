"""Weights that are read and stored one after the other, by a network that never has them in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact, Component, Port
from snapgen_deploy.export.coreml import by_tensor
from snapgen_deploy.export.coreml.compress import Linear
from snapgen_deploy.export.mil import interpreter
from snapgen_deploy.export.registry import specs, target_of
from snapgen_deploy.export.shared.weights_given import in_rows
from snapgen_deploy.models.on_disk import OnDisk, stand_in

WORDS, LENGTH, WIDTH = 203, 6, 64  # an odd number of words
IDS = torch.tensor([[0, 5, 202, 5, 17, 100]], dtype=torch.int32)
Make = Callable[[bool], Component]
Export = Callable[[str, str, bool], Artifact]


class Net(nn.Module):
    """Tokens to embeddings; `inner` channels between two layers with weights of their own."""

    def __init__(self, inner: int, conv: bool) -> None:
        super().__init__()
        self.conv, self.tokens, self.gain = conv, nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.ones(WIDTH))
        self.up, self.down = (
            nn.Conv2d(i, o, 1, bias=False) if conv else nn.Linear(i, o, bias=False) for i, o in ((WIDTH, inner), (inner, WIDTH))
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) * self.gain
        if not self.conv:
            out: Tensor = x + self.down(self.up(x).relu())
            return out
        y = self.down(self.up(x.transpose(1, 2)[:, :, None]).relu())
        return x + y[:, :, 0].transpose(1, 2)


def network(conv: bool, inner: int) -> Net:
    torch.manual_seed(0)
    made = Net(inner, conv).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
    return made


def on_disk(whole: Net, inner: int) -> OnDisk:
    """The same with stand-ins for its matrices, which are kept in bf16."""
    made = network(whole.conv, inner)
    stored = {name: p.to(torch.bfloat16) for name, p in whole.named_parameters() if p.dim() > 1}
    for name, tensor in stored.items():
        made.get_submodule(name.rpartition(".")[0]).weight = nn.Parameter(stand_in(tuple(tensor.shape)), False)
    return OnDisk(made, {name: (lambda t=tensor: t) for name, tensor in stored.items()})


def component(key: str, apart: bool) -> Component:
    inner = 160 if key == "coreml" else 72  # onnxruntime takes inputs that do not divide into blocks
    whole = network(key == "coreml", inner)
    held = on_disk(whole, inner) if apart else None
    ports = (Port("tokens", (1, LENGTH), "int32", "ids"), Port("text", (1, LENGTH, WIDTH), "float32", "embeddings"))
    return Component(
        "text_encoder", whole if held is None else held.network, ports[:1], ports[1:], (IDS,), "tokens to embeddings",
        on_disk={} if held is None else held.of(held.network),
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """`exported(key, precision, apart)`: made once."""
    made: dict[tuple[str, str, bool], Artifact] = {}

    def of(key: str, precision: str, apart: bool) -> Artifact:
        if (key, precision, apart) not in made:
            target, variant = target_of(key)
            folder = tmp_path_factory.mktemp("exported")
            made[key, precision, apart] = target.export(component(key, apart), variant, precision, folder, {})
        return made[key, precision, apart]

    return of


def run(key: str, artifact: Artifact) -> np.ndarray:
    return target_of(key)[0].open(artifact.path, threads=1)({"tokens": IDS.numpy()})["text"]


def in_few_bits(bits: int) -> np.ndarray:
    """What Core ML's network gives with weights that are rounded as its file states them."""
    made = network(True, 160)
    numbers, scales = in_rows(made.tokens.weight)
    made.tokens.weight.copy_(numbers * scales.half().float())
    for layer in (made.up, made.down):
        integers, scale = by_tensor.in_blocks(layer.weight, Linear(bits, 32))
        steps = torch.from_numpy(scale.astype(np.float32)).repeat_interleave(32, 1).reshape(layer.weight.shape)
        layer.weight.copy_(torch.from_numpy(integers) * steps)
    result: np.ndarray = made(IDS).numpy()
    return result


def error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def test_a_network_on_disk_runs_and_holds_nothing_afterwards():
    whole = network(False, 160)
    held = on_disk(whole, 160)
    running = held.running()
    assert torch.equal(running(IDS), whole(IDS))
    assert all(running.get_parameter(name).isnan().all() for name in held.tensors)
    assert set(held.of(running)) == {"tokens.weight", "up.weight", "down.weight"}
    held.network.gain.data = held.network.down.weight[:, 0] * 2.0
    with pytest.raises(RuntimeError, match="gain is computed from a large tensor"):
        held.of(running)


def test_products_of_onnx_are_those_of_the_usual_way(exported):
    apart, usual = exported("onnx:cpu", "int4", True), exported("onnx:cpu", "int4", False)
    assert {f.name for f in apart.files} == {"text_encoder.onnx", "text_encoder.onnx.data"}
    assert error(run("onnx:cpu", apart), run("onnx:cpu", usual)) < 0.01  # the table's 8 bits
    target = target_of("onnx:cpu")[0]
    about = target.describe(apart.path)
    assert about.skipped == {}
    assert about.ops["com.microsoft.MatMulNBits"] == 2
    assert about.ops["Gather"] == 2
    weights = {name: about.weights[name] for name in about.weights if "weight" in name}
    assert weights == {
        "tokens.weight_quantized": "int8 per channel",
        "up.weight_Q4": "int4 per 32 values",
        "down.weight_Q4": "int4 per 32 values",
    }


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
def test_coreml_stores_what_it_says(exported, precision, bits):
    made = exported("coreml", precision, True)
    assert error(run("coreml", made), in_few_bits(bits)) < 2e-3
    about = target_of("coreml")[0].describe(made.path)
    assert about.skipped == {}
    assert about.weights == {
        "p_tokens_weight_to_fp16": "int8 per channel",
        "p_up_weight_to_fp16": f"{precision} per 32 values",
        "p_down_weight_to_fp16": f"{precision} per 32 values",
    }


def test_half_precision_of_coreml_is_that_of_the_usual_way(exported):
    assert np.array_equal(run("coreml", exported("coreml", "fp16", True)), run("coreml", exported("coreml", "fp16", False)))


def test_coremltools_reads_the_program(exported):
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil import types

    from snapgen_deploy.export.coreml.target import WEIGHTS, read_spec

    package = exported("coreml", "int4", True).path
    program = load(read_spec(package), 9, str(package / WEIGHTS))
    looked_up = [op for op in program.functions["main"].operations if op.op_type == "gather"]
    assert [op.x.shape for op in looked_up] == [(WORDS, WIDTH), (WORDS, 1)]
    assert looked_up[0].outputs[0].dtype == types.int8


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 32), (8, None)])
def test_blocks_are_those_of_coremltools(bits, block):
    from coremltools.optimize._utils import compute_qparams

    weight = torch.randn(48, 64, 1, 1, generator=torch.Generator().manual_seed(1)).half()
    integers, scales = by_tensor.in_blocks(weight, Linear(bits, block))
    found = compute_qparams(weight.numpy(), bits, True, "LINEAR_SYMMETRIC", np.int8, [1, block or 0, 0, 0])
    assert found is not None
    assert np.allclose(found[1].reshape(scales.shape), scales, rtol=1e-3)
    assert (found[0] != integers).mean() < 0.03  # theirs divides in half precision
    assert np.abs(found[0].astype(int) - integers).max() <= 1


def test_constants_that_do_not_fit_are_decoded_when_used(exported, monkeypatch):
    package = exported("coreml", "int4", True)
    kept = run("coreml", package)
    monkeypatch.setattr(interpreter, "MOST_KEPT", 0)
    monkeypatch.setattr(interpreter, "_SMALL", 0)
    runner = target_of("coreml")[0].open(package.path, threads=1)
    first, second = (runner({"tokens": IDS.numpy()})["text"] for _ in range(2))
    assert np.array_equal(first, kept)
    assert np.array_equal(second, kept)


@pytest.mark.parametrize("key", [key for key, spec in specs().items() if spec.by_tensor])
def test_other_precisions_are_refused(key, tmp_path):
    target, variant = target_of(key)
    with pytest.raises(BadInput, match=r"too large to be in memory.*got fp32"):
        target.export(component(key, True), variant, "fp32", tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_no_factor_of_a_product_is_refused(tmp_path):
    made = component("onnx:cpu", True)
    made.module.forward = lambda ids: made.module.tokens(ids) @ made.module.up.weight.tanh().T @ made.module.up.weight
    with pytest.raises(RuntimeError, match=r"up.weight is used by Tanh, which takes no weight in few bits"):
        target_of("onnx:cpu")[0].export(made, "cpu", "int4", tmp_path, {})
