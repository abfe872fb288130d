"""`python -m benchmarks.movement`: operators that move data, per block, in our Core ML graphs and in a naive conversion.

Converts the reference network unchanged, and our channels-first rewrite in each kernel form, with coremltools to fp16 packages,
and reads these back from disk. A block's operators are the difference between a network with one more such block and one
without, so that nothing outside of blocks is counted. Writes movement.json and movement.md to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from snapgen_deploy.export.base import Component, Port
from snapgen_deploy.export.registry import target_of
from snapgen_deploy.models import DiT, DiTConfig, TextStream, time_features
from snapgen_deploy.sparse import FORMS, rewrite_student

RESULTS = Path(__file__).parent / "results"
CONFIG = DiTConfig(
    latent_channels=4, hidden=128, head_dim=16, depths=(1, 2, 1), blocks=8, text_streams=(TextStream("text", 32, 12),),
    text_width=32, cross_dim=64, widths={"only": 1.0},
)  # fmt: skip
LATENT = (16, 16)
MORE = {"sparse (Down, Up)": (2, 2, 1), "dense (Middle), with a skip": (1, 4, 1)}  # depths with one block or pair more
PAIRED = {"dense (Middle), with a skip": 2}  # Middle grows by pairs of blocks: skips lead from its first half to its second
MOVES = (
    "transpose",
    "reshape",
    "expand_dims",
    "squeeze",
    "slice_by_index",
    "slice_by_size",
    "split",
    "concat",
    "gather",
    "tile",
)


class Naive(nn.Module):
    """The reference student with positional inputs."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, latent: Tensor, features: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """One denoising step."""
        y: Tensor = self.dit(latent, features, {"text": text}, {"text": mask})
        return y


def main() -> None:
    """Convert, count, write."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("naive", *FORMS):
        base = operators(name, CONFIG)
        print(f"{name}: {sum(base.values())} operators", flush=True)
        for block, depths in MORE.items():
            grown = operators(name, replace(CONFIG, depths=depths))
            each = {op: (grown[op] - base[op]) / PAIRED.get(block, 1) for op in sorted(grown | base)}
            found.setdefault(block, {})[name] = {op: count for op, count in each.items() if count}
    (RESULTS / "movement.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    (RESULTS / "movement.md").write_text(table(found))
    print(table(found))


def operators(form: str, config: DiTConfig) -> Counter[str]:
    """Operators of the saved package by kind, without constants and casts of weights."""
    torch.manual_seed(0)
    dit = DiT(config, "only").eval()
    module = Naive(dit) if form == "naive" else rewrite_student(dit, LATENT, layout="channels", form=form)
    features = time_features(torch.tensor([0.5]), config.time_features)
    example = (torch.randn(1, 4, *LATENT), features, torch.randn(1, 12, 32), torch.ones(1, 12))
    names = ("latent", "time_features", "text", "text_mask")
    inputs = tuple(Port(n, tuple(t.shape), "float32", n) for n, t in zip(names, example, strict=True))
    component = Component("student", module.eval(), inputs, (Port("velocity", (1, 4, *LATENT), "float32", "y"),), example, form)
    with tempfile.TemporaryDirectory() as folder:
        target, variant = target_of("coreml")
        if form == "naive":
            path = convert(component, Path(folder) / "naive.mlpackage")
        else:
            path = target.export(component, variant, "fp16", Path(folder), {}).path
        return Counter(target.describe(path).ops)


def convert(component: Component, path: Path) -> Path:
    """Convert as coremltools' documentation does; `alias`, which coremltools does not support, is removed from the graph."""
    import coremltools

    program = torch.export.export(component.module, component.example, strict=False).run_decompositions({})
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS18).save(str(path))
    return path


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown: for each block and form, every operator that only moves data, then all operators."""
    lines = ["| block | form | " + " | ".join(MOVES) + " | all operators |", "|---|---|" + "---|" * (len(MOVES) + 1)]
    for block, forms in found.items():
        for form, counts in forms.items():
            moved = " | ".join(f"{counts.get(op, 0):g}" for op in MOVES)
            lines.append(f"| {block} | {form} | {moved} | {sum(counts.values()):g} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
