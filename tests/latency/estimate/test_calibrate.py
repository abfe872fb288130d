"""The fit finds a machine again from times that such a machine would take; calibrations come back as they were stored."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from snapgen_deploy.errors import BadInput, MeasurementFailed
from snapgen_deploy.latency.estimate import calibrate
from snapgen_deploy.latency.estimate.calibrate import (
    HostCalibration,
    MicroBenchmark,
    calibration_path,
    fit_machine,
    key_of,
    load_calibration,
    store,
    timed,
)
from snapgen_deploy.latency.estimate.calibrate import calibrate as measure
from snapgen_deploy.latency.estimate.calibrate_graphs import BenchmarkGraph, benchmark_graphs
from snapgen_deploy.latency.estimate.cost import OpCost, trace_costs
from snapgen_deploy.latency.estimate.cost_ops import OP_KINDS
from snapgen_deploy.latency.estimate.machine import Machine, Rate, component_times, excess, read_again
from tests.latency.estimate.conftest import quiet


def random_ops(rng, kinds, count):
    def op():
        kind = str(rng.choice(kinds))
        macs = int(rng.integers(1e4, 1e7)) if kind in ("linear", "product", "conv") else 0
        return OpCost(kind, kind, macs, *(int(n) for n in rng.integers(1e3, 1e6, 2)), rows=int(rng.integers(1, 500)))

    return tuple(op() for _ in range(count))


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_finds_the_machine_that_made_the_times(seed):
    rng = np.random.default_rng(seed)
    kinds = ("linear", "product", "softmax", "elementwise")
    rates = {k: Rate(*(float(v) for v in rng.uniform(0.3, 3, 5) * (2e-6, 1e-9, 2e-11, 1e-10, 1e-10))) for k in kinds}
    true = Machine(rates, call=5e-6, on_chip=2.0**20, spill=3e-10)
    samples = [
        MicroBenchmark(f"{i}", ops := random_ops(rng, kinds, 1 + i % 6), component_times(true, ops).seconds) for i in range(150)
    ]
    found, error = fit_machine(samples)
    assert error < 0.02
    unseen = random_ops(rng, kinds, 40)
    assert component_times(found, unseen).seconds == pytest.approx(component_times(true, unseen).seconds, rel=0.03)


def test_no_coefficient_is_negative_whatever_was_measured():
    rng = np.random.default_rng(7)
    samples = [MicroBenchmark(f"{i}", random_ops(rng, OP_KINDS[:6], 3), float(rng.uniform(1e-5, 1e-2))) for i in range(60)]
    machine, error = fit_machine(samples)
    assert error > 0.1  # noise cannot be explained, and is not said to be
    assert min([machine.call, machine.spill, *(v for r in machine.rates.values() for v in vars(r).values())]) >= 0


def test_excess_counts_what_the_cache_does_not_hold():
    small, large = OpCost("a", "linear", 1, 300, 100, weights=100), OpCost("b", "linear", 1, 3000, 1000, weights=900)
    assert excess([small], 1000, overlap=False) == 0
    assert excess([large], 1000, overlap=False) == 3000 + 1000 - 900 - 1000
    assert excess([large, large], 1000, overlap=False) == 2 * (3100 - 1000) + (1800 - 1000)  # weights come back each call
    scored = OpCost("c", "softmax", 0, 800, 800, scores=1600, tile=400)
    assert excess([scored], 100, overlap=True) == 1600 * (1 - 100 / 400)
    assert excess([scored], 400, overlap=True) == 0


@pytest.mark.parametrize(("on_chip", "again"), [(900, 0), (1000, 0), (450, 2100), (300, 2 * 2100)])
def test_an_accelerator_reads_the_larger_operand_again_if_neither_fits(on_chip, again):
    product = OpCost("a", "linear", 1, 3000, 1000, weights=900)  # 2100 bytes of activations
    turned = OpCost("a", "linear", 1, 3000, 1000, weights=2100)
    assert read_again(product, on_chip) == read_again(turned, on_chip) == again
    assert read_again(replace(product, macs=0), on_chip) == 0  # an addition passes over both once
    machine = Machine({}, on_chip=on_chip, memory=1e-3, overlap=True)
    assert component_times(machine, [product]).seconds == pytest.approx(1e-3 * (900 + again))


@pytest.mark.parametrize("ops", ["native", "spelled"])
def test_every_micro_benchmark_runs_and_has_a_cost_for_every_operation(ops):
    found = benchmark_graphs(ops)
    assert len({g.name for g in found}) == len(found) > 100
    kinds = {o.kind for g in found for o in trace_costs(g.component())}
    assert kinds >= {"linear", "product", "softmax", "pointwise", "conv", "depthwise", "transpose", "slice", "concat"}


def test_timing_goes_round_all_calls_and_tells_what_each_takes(monkeypatch):
    now, order = [0], []

    def work(name, milliseconds):
        def run():
            now[0] += milliseconds * 10**6
            order.append(name)

        return run

    monkeypatch.setattr("snapgen_deploy.latency.estimate.calibrate.time.process_time_ns", lambda: now[0])
    assert timed([work("a", 1), work("b", 10)], threads=1, rounds=3) == [1e-3, 10e-3]
    assert "".join(order[4:]) == "aaaaabb" * 3  # a round: each once unheeded, then as often as fills 4 ms, at least once


def two_graphs(_):
    torch.manual_seed(0)
    return tuple(BenchmarkGraph(f"linear {n}", nn.Linear(n, n), ((1, 8, n),)) for n in (32, 64, 96))


def test_a_calibration_through_onnxruntime_is_stored_and_found_again(monkeypatch):
    seconds = []

    def watched(calls, threads):
        seconds.extend(timed(calls, threads))
        return seconds

    monkeypatch.setattr(calibrate, "benchmark_graphs", two_graphs)
    monkeypatch.setattr(calibrate, "timed", watched)
    found = measure("onnx:cpu", 1, quiet)
    assert found.samples == {f"linear {n}": 1000 * s for n, s in zip((32, 64, 96), seconds, strict=True)}
    assert load_calibration(found.key) is None
    store(found)
    assert load_calibration(key_of("onnx:cpu", 1)) == found
    assert load_calibration(key_of("onnx:cpu", 2)) is None  # another number of threads is another machine


def test_core_ml_on_this_host_is_never_calibrated():
    with pytest.raises(MeasurementFailed, match="not for their speed"):
        measure("coreml", 1, quiet)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}'])
def test_a_damaged_calibration_says_how_to_mend_it(text):
    path = calibration_path(key_of("onnx:cpu", 1))
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(BadInput, match="--calibrate"):
        load_calibration(key_of("onnx:cpu", 1))


def test_an_older_schema_is_as_good_as_none():
    key = key_of("onnx:cpu", 1)
    path = store(HostCalibration(key, Machine({}), 0.1, {}))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 0}))
    assert load_calibration(key) is None
