"""Executors: the same results in the same order from here, from processes and from a cluster; clear refusals."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.quantise import executors
from snapgen_deploy.quantise.executors import Cluster, Here, Processes, WorkerLost, executor_of
from snapgen_deploy.quantise.memory import WORKER, predicted_peak
from snapgen_deploy.system.child import start_method
from tests.owners import outlives_its_owner
from tests.quantise.quantise_cases import LATENT, tiny_config


def slow_first(task: int) -> tuple[int, int]:
    """The first tasks end last."""
    import torch

    time.sleep(0.2 if task < 2 else 0.0)
    return task * task, torch.get_num_threads()


def fails(task: int) -> int:
    if task == 2:
        raise BadInput("task 2 is bad")
    return task


def dies(task: int) -> int:
    os._exit(1)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of the tests' own server, which start at once."""
    monkeypatch.setattr(executors, "WORKERS_START", start_method())


def test_results_come_in_the_order_of_the_tasks_with_one_thread() -> None:
    expected = [(i * i, 1) for i in range(6)]
    assert list(Here().map(slow_first, range(6))) == expected
    assert list(Processes(2).map(slow_first, range(6))) == expected


@pytest.mark.usefixtures("forked")
def test_errors_and_deaths_reach_the_caller() -> None:
    with pytest.raises(BadInput, match="task 2 is bad"):
        list(Processes(1).map(fails, range(4)))
    with pytest.raises(WorkerLost, match="too little memory"):
        list(Processes(1).map(dies, range(2)))


def test_processes_end_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, time\n"
        "from snapgen_deploy.quantise.executors import Processes\n"
        "def work(i):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(Processes(1).map(work, [1]))\n"
    )
    assert not outlives_its_owner(script, tmp_path)


@pytest.mark.usefixtures("forked")
def test_not_everything_is_handed_out_at_once() -> None:
    handed = 0

    def tasks():  # type: ignore[no-untyped-def]
        nonlocal handed
        for i in range(20):
            handed += 1
            yield i

    results = Processes(1).map(fails, tasks())
    assert next(results) == 0
    assert handed <= executors.AHEAD + 2
    with pytest.raises(BadInput, match="task 2 is bad"):
        list(results)


def test_spellings() -> None:
    assert isinstance(executor_of("here"), Here)
    several, cluster = executor_of("processes:3"), executor_of("dask://box.local:8786")
    assert isinstance(several, Processes)
    assert several.count == 3
    assert isinstance(cluster, Cluster)
    assert cluster.address == "tcp://box.local:8786"


@pytest.mark.parametrize(
    "text",
    ["", "processes", "processes:0", "processes:two", "dask", "dask://", "dask://host", "dask:host:1", "dask://h:0", "ssh:x"],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--executor: got .*expected here, processes:N or dask://host:port"):
        executor_of(text)


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "CONNECTING", 0.5)
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        with pytest.raises(BadInput, match="no Dask scheduler answers") as caught:
            executor_of(f"dask://127.0.0.1:{held.getsockname()[1]}").check()
    assert "\n" not in str(caught.value)


def test_processes_count_in_the_prediction() -> None:
    config = tiny_config()
    alone, four, eight = (predicted_peak(config, "full", LATENT, e) for e in (None, Processes(4), Processes(8)))
    assert min(four - alone, eight - four) > 3.9 * WORKER
