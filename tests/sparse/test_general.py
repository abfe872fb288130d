"""General passes for networks that are not known: PyTorch's functions in other operations, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snapgen_deploy.sparse.general import WrittenModule, _GeneralForms


def forms(channels: bool, ops: str) -> Any:
    written = SimpleNamespace(channels=channels, ops=ops, columns=nn.Module())
    written.column = lambda size: WrittenModule.column(written, size)  # type: ignore[arg-type]
    return _GeneralForms(written)  # type: ignore[arg-type]


def heads(x: Tensor) -> Tensor:
    return x.reshape(2, 4, 6, 8)


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda x: F.scaled_dot_product_attention(heads(x), heads(x) + 1, heads(x)),
    "attention, scale": lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), scale=0.3),
    "attention, causal": lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), None, 0.0, True),
    "attention, mask of bool": lambda x: F.scaled_dot_product_attention(
        heads(x), heads(x), heads(x), attn_mask=torch.arange(6)[None] < 4
    ),
    "attention, mask of each row": lambda x: F.scaled_dot_product_attention(
        heads(x), heads(x), heads(x), attn_mask=torch.tensor([3, 5])[:, None, None, None] > torch.arange(6)
    ),
    "attention, bias": lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), attn_mask=heads(x).mean((0, 1)) @
                                                                torch.ones(8, 6)),
    "attention, fewer keys": lambda x: F.scaled_dot_product_attention(
        heads(x), heads(x)[:, ::2], heads(x)[:, 1::2], enable_gqa=True
    ),
    "layer norm": lambda x: F.layer_norm(x, (16,), x[0, 0], x[0, 1]),
    "layer norm of two axes": lambda x: F.layer_norm(x, (12, 16)),
    "rms norm": lambda x: F.rms_norm(x, (16,), x[0, 0]),
    "rms norm, eps": lambda x: F.rms_norm(x.reshape(2, 12, 4, 4), (4,), eps=1e-3),
    "group norm": lambda x: F.group_norm(x.reshape(2, 16, 4, 3), 4, x[0, 0], x[0, 1]),
    "own rms norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "means": lambda x: torch.cat([x.mean(-1), x.mean(dim=(2,)), torch.mean(x, -1), x.mean((0, 1))[None].repeat(2, 1)], 1),
    "powers": lambda x: x**2 + torch.pow(x, 2.0) + x**3 + 2 ** x.mean(),
    "gelu": lambda x: F.gelu(x, approximate="tanh") + F.gelu(x),
    "products": lambda x: x @ x.transpose(1, 2) @ x + torch.matmul(x, x[0].T @ x[0]),
    "parts": lambda x: torch.cat([*x.chunk(3, 1), *torch.split(x, [5, 7], 1), *x.split(5, 1), x[:, :]], 1),
    "uneven parts": lambda x: torch.cat(x.chunk(5, dim=-1)[::-1], -1),
    "twice the same": lambda x: torch.cat([x, x[0:], x, x * 2, x], dim=1),
    "numbers as indices": lambda x: x[0, -1] + x[:, 3].mean(0) + x[1][2] + x.unbind(1)[2][0] + x[..., :][0, 0],
    "new axes": lambda x: (x[:, None, 0, ..., None] + x[:, 3].unsqueeze(-1)[:, None]).squeeze() + x[:1, 1, 0:1].squeeze(-1),
    "views": lambda x: x.transpose(1, 2).contiguous().view(2, 4, -1).float().to(torch.float32).view([2, -1]).to("cpu"),
    "whole numbers": lambda x: (1 + x) * 2 - (4 - x) / 5 + torch.add(x, 1) + x.mul(3) + torch.sub(x, x, alpha=2) + 6 / (9 + x),
    "orders": lambda x: torch.einsum("nab->ban", x) + torch.einsum("abc,cd->bda", x, torch.eye(16)).transpose(0, 1),
    "repeated": lambda x: x.repeat_interleave(3, dim=1) + torch.repeat_interleave(x, 3, -2) + x[0, 0].repeat_interleave(2)[:16],
    "places": lambda x: x.to(x.device) + x.to(device=x.device, dtype=x.dtype) + x.to(torch.float64).to(x.dtype),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "resized": lambda x: F.interpolate(x.reshape(2, 1, 12, 16), scale_factor=2, mode="nearest-exact"),
    "resized to a size": lambda x: F.interpolate(x.reshape(2, 1, 12, 16), (24, 32), mode="nearest-exact"),
    "resized by a fraction": lambda x: F.interpolate(x.reshape(2, 1, 12, 16), (18, 20), mode="nearest-exact"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_the_same_numbers(name: str) -> None:
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0)) * 3.0
    expected = CALLS[name](x)
    for channels, ops in ((False, "native"), (False, "spelled"), (False, "half"), (True, "spelled")):
        with forms(channels, ops):
            got = CALLS[name](x)
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, atol=3e-5, rtol=3e-5)


def test_norms_hold_large_values_in_half_precision() -> None:
    x = (torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0)) * 2000.0).half()
    expected = F.layer_norm(x.float(), (32,))
    with forms(True, "spelled"):
        got = F.layer_norm(x, (32,))
    assert got.dtype == torch.float16
    assert float((got.float() - expected).abs().max()) < 5e-3
