"""`python -m benchmarks.kernels`: the local branch of ASSA (BNA), exported every way that a user might choose, in one run.

4096 tokens, 16 query heads, 8 key/value heads, head dim 64, B = 16, r = 1, fp32; smaller sizes by options. Beside our kernel
forms: full attention, ours and a stock export of it; BNA as a mask on full attention, as it comes out of stock exporters
(torch.onnx.export, optimum's, ExecuTorch's with the XNNPACK partitioner) and of PyTorch; FlexAttention with a block mask under
torch.compile; OpenVINO where it is installed (`pip install snapgen-deploy[bench]`). All are loaded at once and called in turn,
so that a slow minute falls on all alike; every result is held against the reference first. GFLOP/s count the arithmetic that a
form does, which for a mask is that of full attention. Writes kernels.json and kernels.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import in_turn
from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.export.optimum_exporter import exporter_config
from snapgen_deploy.export.quiet import quiet
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.latency.environment import canary, environment
from snapgen_deploy.models.attention import attend, blockwise_neighborhood_attention
from snapgen_deploy.sparse.forms import FORMS, Kernel, dense

RESULTS = Path(__file__).parent / "results"
OPSET, CLOSE = 20, 1e-5  # relative error that counts as the same result in fp32
MASKED, FULL = "BNA, masked", "full attention"
Run = Callable[[], np.ndarray]
Inputs = tuple[Tensor, Tensor, Tensor]  # q (h, N, d), k and v (h_kv, N, d)
Exporter = Callable[[nn.Module, Inputs, Path], None]


class Masked(nn.Module):
    """BNA as full attention with a mask: (h, N, d) and twice (h_kv, N, d) -> (h, N, d)."""

    bias: Tensor

    def __init__(self, tokens: int, blocks: int, radius: int) -> None:
        super().__init__()
        number = torch.arange(tokens) // (tokens // blocks)
        far = (number[:, None] - number[None, :]).abs() > radius
        self.register_buffer("bias", torch.where(far, -1e4, 0.0))  # (N, N)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (h, N, d), k and v (h_kv, N, d) -> (h, N, d)."""
        return attend(q[None], k[None], v[None], self.bias)[0]


class Plain(nn.Module):
    """Full attention over all tokens, as the reference writes it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (h, N, d), k and v (h_kv, N, d) -> (h, N, d)."""
        return attend(q[None], k[None], v[None])[0]


class Full(nn.Module):
    """Full attention over all tokens, in our operations."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (h, N, d), k and v (h_kv, N, d) -> (h, N, d)."""
        return dense(q * q.shape[-1] ** -0.5, k.transpose(1, 2), v)


class Ours(nn.Module):
    """One of our kernel forms."""

    def __init__(self, form: Kernel, blocks: int, radius: int) -> None:
        super().__init__()
        self.form, self.blocks, self.radius = form, blocks, radius

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (h, N, d), k and v (h_kv, N, d) -> (h, N, d)."""
        return self.form(q * q.shape[-1] ** -0.5, k, v, self.blocks, self.radius)


def main() -> None:
    """Export, check, time, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in (("tokens", 4096), ("heads", 16), ("kv-heads", 8), ("dim", 64), ("blocks", 16), ("radius", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    q = torch.randn(options.heads, options.tokens, options.dim)
    k, v = (torch.randn(options.kv_heads, options.tokens, options.dim) for _ in range(2))
    wanted = blockwise_neighborhood_attention(q[None], k[None], v[None], options.blocks, options.radius)[0].numpy()
    whole = attend(q[None], k[None], v[None])[0].numpy()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs: dict[tuple[str, str], Run] = {}
        for runtime, form, make in contestants(options, (q, k, v), Path(folder)):
            start = time.monotonic()
            runs[runtime, form] = make()
            error = relative(runs[runtime, form](), whole if form.startswith(FULL) else wanted)
            if not error <= CLOSE:
                raise SystemExit(f"{runtime}, {form}: relative error {error:.1e} from the reference, expected {CLOSE:g}")
            print(f"{runtime}, {form}: ready in {time.monotonic() - start:.0f} s, error {error:.1e}", flush=True)
        before, times, after = canary(), in_turn(list(runs.values()), options.rounds), canary()
    record = {
        "sizes": vars(options), "environment": environment(), "canary_ms": [before, after],
        "ms": [
            {"runtime": r, "form": f, "median": statistics.median(t), "all": t} for (r, f), t in zip(runs, times, strict=True)
        ],
    }  # fmt: skip
    (RESULTS / "kernels.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    (RESULTS / "kernels.md").write_text(table(record))
    print(table(record))


def contestants(options: argparse.Namespace, inputs: Inputs, folder: Path) -> Iterator[tuple[str, str, Callable[[], Run]]]:
    """Runtime, form, and what makes the call."""
    masked, threads = Masked(options.tokens, options.blocks, options.radius).eval(), options.threads
    ours = {f"BNA, {name}": Ours(form, options.blocks, options.radius) for name, form in FORMS.items()}
    openvino = util.find_spec("openvino") is not None
    yield "PyTorch eager", MASKED, partial(called, masked, inputs)
    yield "PyTorch eager", "BNA, reference loop", partial(called, looped(options), inputs)
    yield "torch.compile", "FlexAttention, block mask", partial(called, flex(options), inputs)
    yield "onnxruntime", f"{MASKED}, torch.onnx.export", partial(onnx_call, stock_onnx, masked, inputs, folder, threads)
    yield "onnxruntime", f"{MASKED}, optimum's export", partial(onnx_call, optimum_onnx, masked, inputs, folder, threads)
    if openvino:
        yield "OpenVINO", f"{MASKED}, torch.onnx.export", partial(openvino_call, stock_onnx, masked, inputs, folder, threads)
    yield "onnxruntime", f"{FULL}, torch.onnx.export", partial(onnx_call, stock_onnx, Plain(), inputs, folder, threads)
    yield "ExecuTorch XNNPACK", f"{MASKED}, stock lowering", partial(executorch_call, masked, inputs, folder, threads)
    yield "ExecuTorch XNNPACK", f"{FULL}, stock lowering", partial(executorch_call, Plain(), inputs, folder, threads)
    for runtime, key in (("onnxruntime", "onnx:cpu"), ("ExecuTorch XNNPACK", "executorch:xnnpack")):
        for name, module in {f"{FULL}, ours": Full(), **ours}.items():
            yield runtime, name, partial(exported, key, module, inputs, folder / f"{runtime} {name}", threads)
    if openvino:
        yield "OpenVINO", "BNA, loop", partial(openvino_call, stock_onnx, ours["BNA, loop"].eval(), inputs, folder, threads)


def looped(options: argparse.Namespace) -> Callable[..., Tensor]:
    """The reference as it is written."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return blockwise_neighborhood_attention(q[None], k[None], v[None], options.blocks, options.radius)[0]

    return run


def flex(options: argparse.Namespace) -> Callable[..., Tensor]:
    """FlexAttention with a block mask, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    size = options.tokens // options.blocks

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.le((i // size - j // size).abs(), options.radius)

    mask = create_block_mask(near, None, None, options.tokens, options.tokens, device="cpu")
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(q[None], k[None], v[None], block_mask=mask, enable_gqa=True)[0]

    return run


def called(function: Callable[..., Tensor], inputs: Inputs) -> Run:
    """A call of a function of tensors."""
    return lambda: function(*inputs).numpy()


def as_component(module: nn.Module, inputs: Inputs) -> Component:
    """The core as the targets take networks; the role is a file name only."""
    ports = tuple(Port(n, tuple(t.shape), "float32", "input") for n, t in zip(("q", "k", "v"), inputs, strict=True))
    return Component("student", module, ports, (Port("y", tuple(inputs[0].shape), "float32", "output"),), inputs, "BNA")


def exported(key: str, module: nn.Module, inputs: Inputs, folder: Path, threads: int) -> Run:
    """Through our own target."""
    target, variant = target_of(key)
    folder.mkdir(parents=True)
    component = as_component(module, inputs)
    run = target.open(target.export(component, variant, "fp32", folder, {}).path, threads=threads)
    feed = {p.name: t.numpy() for p, t in zip(component.inputs, inputs, strict=True)}
    return lambda: run(feed)["y"]


def stock_onnx(module: nn.Module, inputs: Inputs, path: Path) -> None:
    """`torch.onnx.export` with its defaults."""
    with quiet():
        torch.onnx.export(module, inputs, path, dynamo=True, opset_version=OPSET, verbose=False)


def optimum_onnx(module: nn.Module, inputs: Inputs, path: Path) -> None:
    """optimum's own `export`, which calls the TorchScript exporter."""
    from optimum.exporters.onnx.convert import export_pytorch

    config = exporter_config(as_component(module, inputs))
    module.config = config._config  # where optimum looks for it
    with quiet():
        export_pytorch(module, config, OPSET, path)


def onnx_call(exporter: Exporter, module: nn.Module, inputs: Inputs, folder: Path, threads: int) -> Run:
    """A stock export in onnxruntime."""
    import onnxruntime

    path = folder / f"{exporter.__name__}-{type(module).__name__}.onnx"
    exporter(module, inputs, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: np.asarray(session.run(None, feed)[0])


def openvino_call(exporter: Exporter, module: nn.Module, inputs: Inputs, folder: Path, threads: int) -> Run:
    """A stock export in OpenVINO, in fp32."""
    import openvino

    path = folder / "openvino.onnx"
    exporter(module, inputs, path)
    core = openvino.Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})
    request, feed = compiled.create_infer_request(), [t.numpy() for t in inputs]
    return lambda: np.array(request.infer(feed)[0])


def executorch_call(module: nn.Module, inputs: Inputs, folder: Path, threads: int) -> Run:
    """ExecuTorch's own recipe: export, partition for XNNPACK, save, load."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib

    with quiet():
        edge = to_edge_transform_and_lower(torch.export.export(module, inputs), partitioner=[XnnpackPartitioner()])
        path = folder / f"stock-{type(module).__name__}.pte"
        path.write_bytes(edge.to_executorch().buffer)
        portable_lib._unsafe_reset_threadpool(threads)
        program = portable_lib._load_for_executorch(str(path))
    return lambda: np.asarray(program.forward(inputs)[0].numpy())


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest error over the largest magnitude."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def gflop(sizes: dict[str, int], form: str) -> float:
    """Arithmetic of both products (q k and p v), 2 operations a multiply-accumulate."""
    blocks, size = sizes["blocks"], sizes["tokens"] // sizes["blocks"]
    near = sum(min(b + sizes["radius"], blocks - 1) - max(b - sizes["radius"], 0) + 1 for b in range(blocks))
    pairs = sizes["tokens"] ** 2 if form.startswith((FULL, MASKED)) else near * size**2
    return 4e-9 * sizes["heads"] * sizes["dim"] * pairs


def table(record: dict[str, Any]) -> str:
    """Markdown, with ratios to the quickest in the same runtime."""
    s, rows = record["sizes"], record["ms"]
    best = {r["runtime"]: min(x["median"] for x in rows if x["runtime"] == r["runtime"]) for r in rows}
    lines = [
        f"{s['tokens']} tokens, {s['heads']} heads, {s['kv_heads']} KV heads, head dim {s['dim']}, B = {s['blocks']}, "
        f"r = {s['radius']}, fp32, threads: {s['threads']}; medians of {s['rounds']} rounds; "
        f"{record['environment']['processor']}.",
        "",
        "| runtime | form | ms | times the quickest in this runtime | GFLOP/s |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        rate = gflop(s, r["form"]) / r["median"] * 1e3
        lines.append(
            f"| {r['runtime']} | {r['form']} | {r['median']:.1f} | {r['median'] / best[r['runtime']]:.2f} | {rate:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
