"""CLIP's text encoders at full size, with seeded weights: our conversion beside each library's own, in one run.

    python -m benchmarks.text_encoders                          CLIP-L and CLIP-bigG, three targets
    python -m benchmarks.text_encoders --models clip-l --ours   without the libraries' own conversions

A folder as transformers saves it is written to a temporary place (bf16, one layer at a time). Then each conversion runs in a
process of its own: from the folder to a file that was read back and run. Seconds are those from the folder to the file, imports
apart; memory is the peak of the process. The error is that of the file against the library's own forward pass in fp32.
Writes benchmarks/results/text_encoders.json and .md after every row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snapgen_deploy.checkpoint.header import TensorInfo
from snapgen_deploy.checkpoint.text_folder import TextFolder, open_text_folder
from snapgen_deploy.checkpoint.writer import write_tensors
from snapgen_deploy.cli.console import megabytes
from snapgen_deploy.export.base import Component
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.families.component import MASK, TOKENS, Spelling
from snapgen_deploy.families.library_text import library_text_encoder
from snapgen_deploy.golden.vectors import GoldenSize
from snapgen_deploy.models.config import TextStream
from snapgen_deploy.models.library_text import LibraryText, library_encoder
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.system.child import run_in_child
from tests.text_encoders.folders import clip_tokenizer

RESULTS = Path(__file__).parent / "results"
TARGETS = ("coreml", "executorch:xnnpack", "onnx:cpu")
LENGTH = 77
MODELS: Mapping[str, dict[str, Any]] = {
    "clip-l": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
               "hidden_act": "quick_gelu"},
    "clip-bigg": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
                  "hidden_act": "gelu"},
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One conversion."""

    seconds: float
    bytes: int
    error: float
    delegates: int | None
    outside: dict[str, int]


def write_seeded(name: str, folder: Path) -> Path:
    """A folder of CLIP's shapes with seeded weights in bf16; one tensor is held at a time."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder.mkdir()
    settings = {"vocab_size": 49408, "max_position_embeddings": LENGTH, "eos_token_id": 2, **MODELS[name]}
    with without_storage():
        network = CLIPTextModel(CLIPTextConfig(**settings))
    shapes = {n: tuple(t.shape) for n, t in network.state_dict().items()}

    def make(n: str) -> Tensor:
        generator = torch.Generator().manual_seed(sum(map(ord, n)))
        deviation = 0.02 if "embedding" in n else shapes[n][-1] ** -0.5
        values = torch.randn(shapes[n], generator=generator) * (deviation if len(shapes[n]) > 1 else 0.02)
        return (values + 1.0 if "norm" in n and n.endswith("weight") else values).to(torch.bfloat16)

    infos = {n: TensorInfo(shape, "BF16", 2 * int(np.prod(shape))) for n, shape in shapes.items()}
    write_tensors(folder / "model.safetensors", infos, make, {"format": "pt"})
    about = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **settings}
    (folder / "config.json").write_text(json.dumps(about))
    count = clip_tokenizer(folder)
    words = json.loads((folder / "vocab.json").read_text())
    ends = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    filled = {f"filler{i}": i for i in range(count - 2, 49406)}
    (folder / "vocab.json").write_text(json.dumps({w: i for w, i in words.items() if w not in ends} | filled | ends))
    return folder


def opened(folder: Path) -> TextFolder:
    """The folder as an export opens it."""
    config = json.loads((folder / "config.json").read_text())
    return open_text_folder(folder, TextStream("text", config["hidden_size"], LENGTH))


def inputs() -> dict[str, np.ndarray]:
    """A prompt of 20 tokens."""
    tokens = torch.randint(0, 49406, (1, LENGTH), generator=torch.Generator().manual_seed(3)).int()
    return {TOKENS: tokens.numpy(), MASK: (np.arange(LENGTH)[None] < 20).astype(np.float32)}


def expected(folder: Path) -> np.ndarray:
    """What the library's own class computes."""
    x = inputs()
    encode = library_encoder(opened(folder).config, folder, lambda name: torch.empty(0))
    found = encode(torch.from_numpy(x[TOKENS]), torch.from_numpy(x[MASK]))
    assert isinstance(found, Tensor)
    return found.numpy()


def ours(folder: Path, key: str, directory: Path, reference: np.ndarray) -> Measured:
    """Our conversion, as an export does it."""
    spec_of(key)
    target, variant = target_of(key)
    _imported(key)
    start = time.monotonic()
    found = opened(folder)
    spec = library_text_encoder(found.config, 0)
    network = spec.build("")
    state = {name: tensor.read(tensor.info.shape).to(torch.float32) for name, tensor in found.stored.items()}
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)
    del state
    record, precision = spec_of(key), spec_of(key).precisions[0]
    how = Spelling(
        "channels" if record.layout == "channels" else "token", record.writing.ops_at(precision), None, "loop",
        record.writing.text_form,
    )  # fmt: skip
    ports = spec.ports(GoldenSize("", (64, 64), (4, 8, 8)))
    example = (torch.zeros(1, LENGTH, dtype=torch.int32), torch.ones(1, LENGTH))
    module = spec.rewrite(network, (8, 8), how).eval()
    del network
    component = Component(spec.name, module, ports.inputs, ports.outputs, example, ports.doc, expendable=True)
    artifact = target.export(component, variant, precision, directory, {})
    seconds = time.monotonic() - start
    told = target.describe(artifact.path)
    got = target.open(artifact.path, threads=2)(inputs())["text"]
    size = sum(path.stat().st_size for path in artifact.files)
    delegates = told.placement.get("XnnpackBackend")
    return Measured(seconds, size, _error(got, reference), delegates, dict(told.portable_ops))


class Stock(nn.Module):
    """The library's network as its users export it."""

    def __init__(self, network: LibraryText) -> None:
        super().__init__()
        self.model = network.model

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(1, L), (1, L) -> (1, L, D)."""
        embeddings: Tensor = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return embeddings


def stock(folder: Path, key: str, directory: Path, reference: np.ndarray) -> Measured:
    """The converter's own way, from the same folder read by transformers in fp32."""
    from transformers import CLIPTextModel

    _imported(key)
    start = time.monotonic()
    network = LibraryText(opened(folder).config)
    network.model = CLIPTextModel.from_pretrained(str(folder), dtype=torch.float32)
    module = Stock(network).eval()
    example = (torch.zeros(1, LENGTH, dtype=torch.int32), torch.ones(1, LENGTH))
    return _STOCK[key](module, example, directory, reference, start)


def _stock_coreml(module: nn.Module, example: Any, directory: Path, reference: np.ndarray, start: float) -> Measured:
    import coremltools as ct

    from snapgen_deploy.export.mil.runner import open_package

    program = torch.export.export(module, example).run_decompositions({})
    package = ct.convert(
        program, minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT16, skip_model_load=True
    )
    path = directory / "stock.mlpackage"
    package.save(str(path))
    seconds = time.monotonic() - start
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    run = open_package(path, threads=2)
    got = next(iter(run(inputs()).values()))
    return Measured(seconds, size, _error(got, reference), None, {})


def _stock_xnnpack(module: nn.Module, example: Any, directory: Path, reference: np.ndarray, start: float) -> Measured:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(module, example)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path = directory / "stock.pte"
    with path.open("wb") as file:
        lowered.write_to_file(file)
    seconds = time.monotonic() - start
    told = target_of("executorch:xnnpack")[0].describe(path)
    from executorch.runtime import Runtime

    x = inputs()
    method = Runtime.get().load_program(path).load_method("forward")
    got = method.execute((torch.from_numpy(x[TOKENS]), torch.from_numpy(x[MASK])))[0].numpy()
    return Measured(
        seconds, path.stat().st_size, _error(got, reference), told.placement.get("XnnpackBackend"), dict(told.portable_ops)
    )


def _stock_onnx(module: nn.Module, example: Any, directory: Path, reference: np.ndarray, start: float) -> Measured:
    import onnxruntime

    path = directory / "stock.onnx"
    torch.onnx.export(module, example, str(path), dynamo=True, external_data=True, input_names=[TOKENS, MASK], verbose=False)
    seconds = time.monotonic() - start
    size = sum(file.stat().st_size for file in directory.iterdir())
    got = onnxruntime.InferenceSession(str(path)).run(None, inputs())[0]
    return Measured(seconds, size, _error(got, reference), None, {})


_STOCK: Mapping[str, Callable[..., Measured]] = {
    "coreml": _stock_coreml, "executorch:xnnpack": _stock_xnnpack, "onnx:cpu": _stock_onnx,
}  # fmt: skip


def _imported(key: str) -> None:
    """Import what a conversion needs, which is not part of its time."""
    import importlib

    import transformers.models.clip.modeling_clip

    assert transformers
    modules = {
        "coreml": ("coremltools",),
        "executorch:xnnpack": ("executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner"),
        "onnx:cpu": ("onnx", "onnxscript", "onnxruntime", "torch.onnx"),
    }
    for module in ("torch.export", "torch._dynamo", *modules[key]):
        importlib.import_module(module)


def _error(got: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(got - reference) / np.linalg.norm(reference))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--ours", action="store_true", help="leave the libraries' own conversions out")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as place:
            folder = write_seeded(name, Path(place) / name)
            reference, _ = run_in_child(f"{name} transformers", expected, folder)
            for key in options.targets:
                for who, convert in (("ours", ours), *(() if options.ours else (("stock", stock),))):
                    rows.append({"model": name, "target": key, "who": who, **measured(who, convert, folder, key, reference)})
                    print(rows[-1], flush=True)
                    write(rows)


def measured(who: str, convert: Callable[..., Measured], folder: Path, key: str, reference: np.ndarray) -> dict[str, Any]:
    """One conversion in a process of its own; what it died of where it did."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            found, peak = run_in_child(f"{who} {key}", convert, folder, key, Path(directory), reference)
        except Exception as error:  # converters raise anything; that is the measurement
            return {"failed": (str(error).splitlines() or [type(error).__name__])[0][:200]}
    about = {"seconds": round(found.seconds, 1), "peak_bytes": peak, "bytes": found.bytes, "error": float(f"{found.error:.2g}")}
    return about | {"delegates": found.delegates, "outside": found.outside}


def write(rows: list[dict[str, Any]]) -> None:
    """The results as JSON and as a table."""
    (RESULTS / "text_encoders.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "text_encoders.md").write_text(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "# CLIP's text encoders at full size, seeded weights",
        "",
        "`python -m benchmarks.text_encoders`; bf16 folders, 77 tokens; Core ML in fp16, others in fp32. Error: against the "
        "library's own forward in fp32.",
        "",
        "| model | target | converted by | seconds | peak | file | error | delegates | operators outside |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        head = f"| {r['model']} | {r['target']} | {'us' if r['who'] == 'ours' else 'the library'} |"
        if "failed" in r:
            lines.append(f"{head} {r['failed']} | | | | | |")
            continue
        outside = ", ".join(f"{n} x {op}" for op, n in r["outside"].items()) or "-"
        columns = (
            r["seconds"], megabytes(r["peak_bytes"]), megabytes(r["bytes"]), f"{r['error']:g}",
            "-" if r["delegates"] is None else r["delegates"], outside,
        )  # fmt: skip
        lines.append(f"{head} {' | '.join(map(str, columns))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
