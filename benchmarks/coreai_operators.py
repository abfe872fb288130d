"""`python -m benchmarks.coreai_operators`: what Core AI's runtime on this computer loses in sums of half-precision products.

One operator after the other, with 4096 products to add: ones times ones, which make 4096, and numbers between 0 and 1 against
the same sum in double precision. Needs the extra `coreai`. Prints a line for every operator.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PRODUCTS = 4096
CHUNKS = (1024, 256, 128)  # products that are added at a time, in the rows in parts
Shapes = tuple[tuple[int, ...], ...]


class Weighted(nn.Module):
    """A layer with seeded weights between 0 and 1."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return self.layer(x)  # type: ignore[no-any-return]


class Computed(nn.Module):
    """A function of its inputs."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        """The function's value."""
        return self.function(*inputs)


def in_parts(step: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A product (1, m, k) x (1, k, n) over `step` of k at a time, whose results are added."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        parts = [torch.bmm(a[:, :, s : s + step], b[:, s : s + step]) for s in range(0, a.shape[2], step)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    return product


@dataclass(frozen=True)
class Case:
    """An operator with the shapes of its inputs."""

    module: nn.Module
    inputs: Shapes

    def ones(self) -> nn.Module:
        """The same with weights of one."""
        made = self.module
        for parameter in made.parameters():
            nn.init.ones_(parameter)
        return made


def cases() -> Mapping[str, Callable[[], Case]]:
    """Every operator by its name."""
    pair = ((1, 4, PRODUCTS), (1, PRODUCTS, 4))
    found: dict[str, Callable[[], Case]] = {
        "linear": lambda: Case(Weighted(nn.Linear(PRODUCTS, 4, bias=False)), ((1, 4, PRODUCTS),)),
        "1 x 1 convolution": lambda: Case(Weighted(nn.Conv2d(PRODUCTS, 4, 1, bias=False)), ((1, PRODUCTS, 1, 4),)),
        "bmm": lambda: Case(Computed(torch.bmm), pair),
        "sum": lambda: Case(Computed(lambda x: x.sum(-1)), ((1, 4, PRODUCTS),)),
    }
    for step in CHUNKS:
        found[f"bmm over {step} at a time"] = lambda step=step: Case(Computed(in_parts(step)), pair)  # type: ignore[misc]
    return found


def measure(case: Callable[[], Case]) -> dict[str, float]:
    """What ones give, and the relative error of random numbers, of one operator in half precision."""
    made, generator = case(), np.random.default_rng(0)
    random = [generator.random(shape).astype(np.float16) for shape in made.inputs]
    got = run(made.module, random)
    with torch.no_grad():
        half = made.module.half()  # weights as they are stored
        exact = half.double()(*(torch.from_numpy(x).double() for x in random)).numpy()
    ones = run(case().ones(), [np.ones(shape, np.float16) for shape in made.inputs])
    return {"ones": float(ones.reshape(-1)[0]), "error": float(np.linalg.norm(got - exact) / np.linalg.norm(exact))}


def run(module: nn.Module, inputs: list[np.ndarray]) -> np.ndarray:
    """Convert to Core AI in half precision, save, load and run once."""
    import coreai_torch
    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    example = tuple(torch.from_numpy(x) for x in inputs)
    names = [f"x{i}" for i in range(len(inputs))]
    with torch.no_grad():
        program = torch.export.export(module.half().eval(), example, strict=False)
    converter = coreai_torch.TorchConverter(mode=coreai_torch.TorchConverter.Mode.RELEASE)
    program = program.run_decompositions(coreai_torch.get_decomp_table())
    converter.add_exported_program(program, input_names=names, output_names=["y"], entrypoint_name="main")

    async def once(path: Path) -> Any:
        async with AIModelAsset.load(path).executable() as model:
            found = await model.load_function("main")({n: NDArray(x) for n, x in zip(names, inputs, strict=True)})
            return np.array(found["y"].numpy(), np.float64)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "operator.aimodel"
        converter.to_coreai().save_asset(path)
        result: np.ndarray = asyncio.run(once(path))
    return result


def main() -> None:
    """Measure and print."""
    print(", ".join(f"{name} {metadata.version(name)}" for name in ("coreai-core", "coreai-torch", "torch")))
    for name, case in cases().items():
        found = measure(case)
        print(f"{name}: ones give {found['ones']:g}, relative error {found['error']:.1e}", flush=True)


if __name__ == "__main__":
    main()
