"""Sensitivities: what the network itself shows when one layer is changed, and the same bits whoever computes them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snapgen_deploy.checkpoint.networks import load_student
from snapgen_deploy.drawing.prompts import samples_of
from snapgen_deploy.errors import BadInput
from snapgen_deploy.models import DiT
from snapgen_deploy.quantise import executors
from snapgen_deploy.quantise.executors import Cluster, Executor, Here, Processes
from snapgen_deploy.quantise.layers import columns_of, layers_of, matrix_of
from snapgen_deploy.quantise.network import quantise_network
from snapgen_deploy.quantise.sensitivity import Sensitivity, measure_sensitivities
from snapgen_deploy.quantise.trajectories import Trajectories, record
from snapgen_deploy.system.child import start_method
from snapgen_deploy.system.typed import read_as
from tests.quantise.quantise_cases import LATENT, PROMPTS, tiny_checkpoint

Case = tuple[DiT, Trajectories]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("sensitivity")
    checkpoint = tiny_checkpoint(folder)
    trajectories = record(checkpoint, "full", LATENT, samples_of(PROMPTS, 4), folder / "t")
    return load_student(checkpoint, "full"), trajectories


@pytest.fixture(scope="module")
def found(case: Case) -> dict[str, Sensitivity]:
    return measure_sensitivities(*case, 4, (4, 8), Here())


def outputs(student: DiT, name: str, trajectories: Trajectories) -> list[Tensor]:
    """What one layer of the student answers on every input of the trajectories."""
    kept: list[Tensor] = []
    handle = layers_of(student)[name].register_forward_hook(lambda module, args, out: kept.append(out))
    with torch.no_grad():
        for x in trajectories.inputs("student"):
            t = {n: torch.from_numpy(v) for n, v in x.items()}
            student(t["latent"], t["time_features"], {"text": t["text"]}, {"text": t["text_mask"]})
    handle.remove()
    return kept


@pytest.mark.parametrize(
    "name",
    ["patch", "time.six", "text.text.fc1", "down.0.attention.q", "down.0.attention.k_compress", "middle.1.ffn.down",
     "skips.0.skip", "downsample", "upsample", "unpatch"],
)  # fmt: skip
def test_it_is_the_error_of_the_layers_own_output(case: Case, found: dict[str, Sensitivity], name: str) -> None:
    """Compared with the network itself: the same inputs, the layer's output before and after."""
    student, trajectories = case
    own = DiT(student.config, student.width)
    own.load_state_dict(student.state_dict())
    for bits in (4, 8):
        # Outputs of the layer fed with the fp32 network's inputs: the layer alone is changed, what lies before it is not.
        before = outputs(own, name, trajectories)
        kept = layers_of(own)[name].weight.detach().clone()
        quantise_network(own, {name: found[name].palettes[bits]})
        after = outputs(own, name, trajectories)
        with torch.no_grad():
            layers_of(own)[name].weight.copy_(kept)
        mse = float(torch.stack([(a - b).double().square().mean() for a, b in zip(after, before, strict=True)]).mean())
        assert found[name].errors[bits] == pytest.approx(mse, rel=1e-3)
        assert mse > 0


def test_all_layers_and_more_bits_are_better(case: Case, found: dict[str, Sensitivity]) -> None:
    layers = layers_of(case[0])
    assert list(found) == list(layers)
    assert sum(s.weights for s in found.values()) == sum(m.weight.numel() for m in layers.values())
    assert all(s.errors[8] <= s.errors[4] for s in found.values())
    assert all(len(s.palettes[4]) <= 16 < len(s.palettes[8]) <= 256 for s in found.values() if s.weights > 600)


def test_memory_decides_the_passes_and_not_the_result(case: Case, found: dict[str, Sensitivity]) -> None:
    assert measure_sensitivities(*case, 4, (4, 8), Here(), memory=20_000) == found


def test_known_layers_are_not_measured_again(case: Case, found: dict[str, Sensitivity]) -> None:
    known, _ = read_as(list[Sensitivity], [json.loads(json.dumps(s.as_dict())) for s in list(found.values())[:30]])
    assert known is not None
    assert known == list(found.values())[:30]
    heard: list[str] = []
    again = measure_sensitivities(*case, 4, (4, 8), Here(), known=known, on_layer=lambda s: heard.append(s.name))
    assert again == found
    assert list(again) == list(found)
    assert heard == list(found)[30:]


@pytest.fixture(scope="module", autouse=True)
def _scratch_of_dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Dask leaves a folder behind where it writes: not among this run's temporary files, which must be none in the end.

    Its workers are forked from the tests' server, which has imported torch.
    """
    import dask

    importlib.import_module("distributed")  # sets defaults, which the block would take back
    places = {"temporary_directory": str(tmp_path_factory.mktemp("dask"))}
    with dask.config.set({**places, "distributed.worker.multiprocessing-method": start_method()}):
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A scheduler and two workers, each a process of its own, on free ports."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", memory_limit=0) as started:
        yield Cluster(started.scheduler_address)


@pytest.mark.parametrize("kind", ["processes", "cluster"])
def test_processes_and_a_cluster_give_the_same_bits(
    kind: str,
    case: Case,
    found: dict[str, Sensitivity],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executors, "WORKERS_START", start_method())
    executor: Executor = Processes(2) if kind == "processes" else request.getfixturevalue("cluster")
    elsewhere = measure_sensitivities(*case, 4, (4, 8), executor)
    assert json.dumps([s.as_dict() for s in elsewhere.values()]) == json.dumps([s.as_dict() for s in found.values()])


def test_a_cluster_without_workers_is_refused() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        pytest.raises(BadInput, match="has no workers"),
    ):
        list(Cluster(empty.scheduler_address).map(len, ["x"]))


def test_broken_weights_are_one_line(case: Case) -> None:
    student, trajectories = case
    broken = DiT(student.config, student.width)
    broken.load_state_dict(student.state_dict())
    with torch.no_grad():
        broken.up[0].ffn.up.weight[0, 0] = float("nan")  # type: ignore[index, union-attr]
    with pytest.raises(BadInput, match="not finite"):
        measure_sensitivities(broken, trajectories, 2, (4, 8), Here())


LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (nn.Linear(5, 7), (3, 4, 5)),
    (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 6)),
    (nn.Conv2d(6, 4, (2, 3), stride=2, groups=2), (2, 6, 6, 7)),
    (nn.Conv2d(4, 4, 3, dilation=2, groups=4), (1, 4, 7, 7)),
    (nn.ConvTranspose2d(4, 3, 2, stride=2), (2, 4, 5, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_every_kind_of_layer_is_its_matrix_times_its_columns(layer: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    product = matrix_of(layer, layer.weight) @ columns_of(layer, x).transpose(1, 2)  # (g, rows, n)
    bias = layer.bias.detach().clone()
    with torch.no_grad():
        layer.bias.zero_()
        wanted = layer(x)
        layer.bias.copy_(bias)
    assert np.allclose(np.sort(product.detach().numpy().ravel()), np.sort(wanted.numpy().ravel()), atol=1e-5)


def test_overlapping_transposed_convolutions_are_refused() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        columns_of(nn.ConvTranspose2d(4, 3, 3, stride=2), torch.zeros(1, 4, 5, 5))
