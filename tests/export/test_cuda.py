"""ONNX for GPUs: attention as one operator, and what can be said of the files without a GPU."""

from __future__ import annotations

import collections
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.check.gates import relative_error
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.export.cuda.target import OnnxCuda
from snapgen_deploy.export.onnx.target import Onnx
from snapgen_deploy.machines.registry import machine_of


class Attentions(nn.Module):
    """Attention over all keys, over a slice of keys that were transposed before, with a mask, and with scores that are read."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kt = k.transpose(1, 2)
        plain = torch.bmm(torch.bmm(q, kt).softmax(-1), v)
        near = torch.bmm(torch.bmm(q, kt.narrow(2, 4, 8)).softmax(-1), v.narrow(1, 4, 8))
        masked = torch.bmm((torch.bmm(3 * q, kt) + torch.linspace(-2, 2, 16)).softmax(-1), v)
        scores = torch.bmm(2 * q, kt)
        return plain, near, masked, torch.bmm(scores.softmax(-1), v) + scores.sum()


def attentions() -> Component:
    shapes = {"q": (4, 8, 8), "k": (4, 16, 8), "v": (4, 16, 8)}
    ports = tuple(Port(name, shape, "float32", "") for name, shape in shapes.items())
    outputs = tuple(Port(name, (4, 8, 8), "float32", "") for name in ("plain", "near", "masked", "read"))
    generator = torch.Generator().manual_seed(0)
    example = tuple(torch.randn(shape, generator=generator) for shape in shapes.values())
    return Component("student", Attentions(), ports, outputs, example, "")


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-6), ("fp16", 2e-3)])
def test_attention_becomes_one_operator_unless_scores_are_changed_or_read(tmp_path, precision, limit):
    component = attentions()
    made = OnnxCuda().export(component, "cuda", precision, tmp_path, {})
    ops = collections.Counter(node.op_type for node in onnx.load(made.path).graph.node)
    assert (ops["MultiHeadAttention"], ops["Softmax"]) == (2, 2)
    got = machine_of("cpu").open(made.path, threads=1)(inputs(component))
    expected = component.module(*component.example)
    for port, value in zip(component.outputs, expected, strict=True):
        assert relative_error(got[port.name], value.numpy()) < limit


def inputs(component: Component) -> dict[str, np.ndarray]:
    return {port.name: value.numpy() for port, value in zip(component.inputs, component.example, strict=True)}


def test_tensorrt_gets_products_and_softmax(tmp_path):
    made = OnnxCuda().export(attentions(), "cuda", "fp32", tmp_path, {"attention": "spelled"})
    assert not any(node.domain for node in onnx.load(made.path).graph.node)
    with pytest.raises(BadInput, match="attention='flash'; expected measured, operator or spelled"):
        Onnx().export(attentions(), "cpu", "fp32", tmp_path, {"attention": "flash"})


def test_without_a_gpu_it_says_so_and_claims_no_placement(tmp_path, monkeypatch):
    target = OnnxCuda()
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "onnxruntime has no CUDAExecutionProvider here" in str(target.unavailable("cuda"))
    component = replace(attentions(), role="decoder")
    described = target.describe(target.export(component, "cuda", "fp32", tmp_path, {}).path)
    assert described.placement == {}
    assert "graph: as exported, 2 attentions as operators" in described.notes
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert target.unavailable("cuda") is None
    with pytest.raises(BadInput, match="cpu is this host's processor; got 'max'"):
        machine_of("cpu:max")
