"""`python -m benchmarks.kernels`: the local branch of ASSA (BNA), exported in every way that a user might choose, in one run.

4096 tokens, 16 query heads, 8 key/value heads, head dim 64, B = 16, r = 1, fp32; options choose smaller shapes. Our kernel
forms are compared with full attention, and with BNA as a mask on full attention, as stock exporters convert them
(torch.onnx.export, optimum's, ExecuTorch's with the XNNPACK partitioner, OpenVINO's). Both are written in two ways, since
exporters make different graphs of them: as in our reference (two products, a softmax, an added mask) and as in most networks
today (`scaled_dot_product_attention` with a boolean mask). Also FlexAttention with a block mask under torch.compile, and
OpenVINO if it is installed (`pip install snapgen-deploy[bench]`).

Our forms of a runtime stay open. Every other contestant is opened, called in turn with them, and closed, since some take 8 GB.
Ratios are taken within these rounds, so that a slow minute affects both alike. Every result is first compared with the
reference. GFLOP/s count the arithmetic of a form, which with a mask is that of full attention. Writes kernels.json and
kernels.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.timing import in_turn
from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.export.onnx.optimum_exporter import exporter_config
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.latency.environment import canary, environment
from snapgen_deploy.models.attention import attend, blockwise_neighborhood_attention
from snapgen_deploy.sparse.forms import FORMS, Kernel, dense
from snapgen_deploy.system.quiet import quiet

RESULTS = Path(__file__).parent / "results"
OPSET, CLOSE = 20, 1e-5  # relative error that counts as the same result in fp32
MASKED, MASKED_SDPA = "BNA, masked", "BNA, masked, SDPA"
FULL, FULL_SDPA = "full attention", "full attention, SDPA"
Run = Callable[[], np.ndarray]
Make = Callable[[], Run]
Inputs = tuple[Tensor, Tensor, Tensor]  # q (h, N, d), k and v (h_kv, N, d)
Exporter = Callable[[nn.Module, Inputs, Path], None]


def near_blocks(tokens: int, blocks: int, radius: int) -> Tensor:
    """Which keys each query attends to in BNA: booleans (N, N)."""
    number = torch.arange(tokens) // (tokens // blocks)
    return (number[:, None] - number[None, :]).abs() <= radius


class Masked(nn.Module):
    """BNA as full attention with a mask, written like the reference's attention."""

    bias: Tensor

    def __init__(self, tokens: int, blocks: int, radius: int) -> None:
        super().__init__()
        self.register_buffer("bias", torch.where(near_blocks(tokens, blocks, radius), 0.0, -1e4))  # (N, N)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (h, N, d), k and v (h_kv, N, d) -> (h, N, d)."""
        return attend(q[None], k[None], v[None], self.bias)[0]


class Sdpa(nn.Module):
    """Attention as most networks call it, with a boolean mask (N, N) or none."""

    near: Tensor | None

    def __init__(self, near: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("near", near)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (h, N, d), k and v (h_kv, N, d) -> (h, N, d)."""
        group = q.shape[0] // k.shape[0]  # spelled out: optimum's exporter refuses `enable_gqa`
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        return scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=self.near)[0]


class Plain(nn.Module):
    """Full attention over all tokens, written like the reference's."""

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


@dataclass(frozen=True)
class Runtime:
    """The contestants of one runtime: by form, a function that opens each one."""

    name: str
    ours: Mapping[str, Make]  # all open at once
    others: Mapping[str, Make]  # one at a time


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
    near = blockwise_neighborhood_attention(q[None], k[None], v[None], options.blocks, options.radius)[0].numpy()
    whole = attend(q[None], k[None], v[None])[0].numpy()

    def opened(runtime: str, form: str, make: Make) -> Run:
        start = time.monotonic()
        run = make()
        error = relative(run(), whole if form.startswith(FULL) else near)
        if not error <= CLOSE:
            raise SystemExit(f"{runtime}, {form}: relative error {error:.1e} from the reference, expected {CLOSE:g}")
        print(f"{runtime}, {form}: ready in {time.monotonic() - start:.0f} s, error {error:.1e}", flush=True)
        return run

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        before = canary()
        rows = [row for r in runtimes(options, (q, k, v), Path(folder)) for row in measured(r, options.rounds, opened)]
    record = {"sizes": vars(options), "environment": environment(), "canary_ms": [before, canary()], "ms": rows}
    (RESULTS / "kernels.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    (RESULTS / "kernels.md").write_text(table(record))
    print(table(record))


def measured(runtime: Runtime, rounds: int, opened: Callable[[str, str, Make], Run]) -> list[dict[str, Any]]:
    """Milliseconds per form; `times_ours` is the median divided by that of our fastest form in the same rounds."""
    ours = {form: opened(runtime.name, form, make) for form, make in runtime.ours.items()}
    found: dict[str, list[float]] = {form: [] for form in ours}
    rows = []
    for form, make in runtime.others.items():
        run = opened(runtime.name, form, make)
        times, *own = in_turn([run, *ours.values()], rounds)
        del run  # frees gigabytes
        for name, more in zip(ours, own, strict=True):
            found[name] += more
        quickest = min(statistics.median(t) for t in own)
        rows.append(row(runtime.name, form, times, quickest))
    quickest = min(statistics.median(t) for t in found.values())
    return rows + [row(runtime.name, form, times, quickest) for form, times in found.items()]


def row(runtime: str, form: str, times: list[float], quickest: float) -> dict[str, Any]:
    """One line of the table."""
    median = statistics.median(times)
    return {"runtime": runtime, "form": form, "median": median, "times_ours": median / quickest, "all": times}


def runtimes(options: argparse.Namespace, inputs: Inputs, folder: Path) -> Iterator[Runtime]:
    """All runtimes with their contestants."""
    sizes, threads = (options.tokens, options.blocks, options.radius), options.threads
    stock = {MASKED: Masked(*sizes), MASKED_SDPA: Sdpa(near_blocks(*sizes)), FULL: Plain(), FULL_SDPA: Sdpa(None)}
    ours = {f"BNA, {name}": Ours(form, options.blocks, options.radius) for name, form in FORMS.items()}

    def through(call: Callable[..., Run], module: nn.Module, *more: object) -> Make:
        return partial(call, *more, module.eval(), inputs, Path(tempfile.mkdtemp(dir=folder)), threads)

    eager = {form: partial(called, module, inputs) for form, module in stock.items() if form.startswith(MASKED)}
    flexible = {"FlexAttention, block mask, torch.compile": partial(called, flex(options), inputs)}
    yield Runtime("PyTorch", {"BNA, reference loop": partial(called, looped(options), inputs)}, eager | flexible)
    exporters = {"torch.onnx.export": stock_onnx, "optimum's export": optimum_onnx}
    yield Runtime(
        "onnxruntime",
        {form: through(exported, module, "onnx:cpu") for form, module in ours.items()},
        {f"{f}, {e}": through(onnx_call, module, by) for e, by in exporters.items() for f, module in stock.items()}
        | {f"{FULL}, ours": through(exported, Full(), "onnx:cpu")},
    )
    yield Runtime(
        "ExecuTorch XNNPACK",
        {form: through(exported, module, "executorch:xnnpack") for form, module in ours.items()},
        {f"{form}, stock lowering": through(executorch_call, module) for form, module in stock.items()}
        | {f"{FULL}, ours": through(exported, Full(), "executorch:xnnpack")},
    )
    if util.find_spec("openvino") is not None:
        yield Runtime(
            "OpenVINO",
            {"BNA, loop": through(openvino_call, ours["BNA, loop"])},
            {f"{form}, torch.onnx.export": through(openvino_call, module) for form, module in stock.items()},
        )


def looped(options: argparse.Namespace) -> Callable[..., Tensor]:
    """The reference implementation, unchanged."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return blockwise_neighborhood_attention(q[None], k[None], v[None], options.blocks, options.radius)[0]

    return run


def flex(options: argparse.Namespace) -> Callable[..., Tensor]:
    """FlexAttention with a block mask, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length = options.tokens // options.blocks  # tokens per block

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.le((i // length - j // length).abs(), options.radius)

    mask = create_block_mask(near, None, None, options.tokens, options.tokens, device="cpu")
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(q[None], k[None], v[None], block_mask=mask, enable_gqa=True)[0]

    return run


def called(function: Callable[..., Tensor], inputs: Inputs) -> Run:
    """A function of tensors as a contestant."""
    return lambda: function(*inputs).numpy()


def as_component(module: nn.Module, inputs: Inputs) -> Component:
    """The attention core as a component for our targets; the role only gives the file its name."""
    ports = tuple(Port(n, tuple(t.shape), "float32", "input") for n, t in zip(("q", "k", "v"), inputs, strict=True))
    return Component("student", module, ports, (Port("y", tuple(inputs[0].shape), "float32", "output"),), inputs, "BNA")


def exported(key: str, module: nn.Module, inputs: Inputs, folder: Path, threads: int) -> Run:
    """Export and open with our own target."""
    target, variant = target_of(key)
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

    path = folder / "stock.onnx"
    exporter(module, inputs, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: np.asarray(session.run(None, feed)[0])


def openvino_call(module: nn.Module, inputs: Inputs, folder: Path, threads: int) -> Run:
    """A stock export in OpenVINO, in fp32."""
    import openvino

    path = folder / "stock.onnx"
    stock_onnx(module, inputs, path)
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
        path = folder / "stock.pte"
        path.write_bytes(edge.to_executorch().buffer)
        portable_lib._unsafe_reset_threadpool(threads)
        program = portable_lib._load_for_executorch(str(path))
    return lambda: np.asarray(program.forward(inputs)[0].numpy())


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest error over the largest magnitude."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def gflop(sizes: dict[str, int], form: str) -> float:
    """GFLOP of both products (q k and p v), 2 operations per multiply-accumulate."""
    blocks, length = sizes["blocks"], sizes["tokens"] // sizes["blocks"]
    near = sum(min(b + sizes["radius"], blocks - 1) - max(b - sizes["radius"], 0) + 1 for b in range(blocks))
    pairs = sizes["tokens"] ** 2 if form.startswith((FULL, MASKED)) else near * length**2
    return 4e-9 * sizes["heads"] * sizes["dim"] * pairs


def table(record: dict[str, Any]) -> str:
    """Markdown."""
    s = record["sizes"]
    lines = [
        f"{s['tokens']} tokens, {s['heads']} heads, {s['kv_heads']} KV heads, head dim {s['dim']}, B = {s['blocks']}, "
        f"r = {s['radius']}, fp32, threads: {s['threads']}; medians of {s['rounds']} rounds; "
        f"{record['environment']['processor']}.",
        "",
        "| runtime | form | ms | times our quickest | GFLOP/s |",
        "|---|---|---|---|---|",
    ]
    for r in record["ms"]:
        rate = gflop(s, r["form"]) / r["median"] * 1e3
        lines.append(f"| {r['runtime']} | {r['form']} | {r['median']:.1f} | {r['times_ours']:.2f} | {rate:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
