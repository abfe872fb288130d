"""Tuning lowers the error, goes on after a kill as if nothing had happened, and mixed precision is worth its bits."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snapgen_deploy.checkpoint.networks import load_student
from snapgen_deploy.drawing.prompts import samples_of
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.models import DiT
from snapgen_deploy.quantise import memory, tuning
from snapgen_deploy.quantise.allocation import Candidate, allocate
from snapgen_deploy.quantise.executors import Here
from snapgen_deploy.quantise.layers import layers_of
from snapgen_deploy.quantise.network import quantise_network, tunable
from snapgen_deploy.quantise.palettes import fit_palette
from snapgen_deploy.quantise.sensitivity import Sensitivity, measure_sensitivities
from snapgen_deploy.quantise.trajectories import Trajectories, record
from snapgen_deploy.quantise.tuning import HELD_OUT, SAVE, STATE, Tuning, error, held_out, rate, training_batch, tune_network
from snapgen_deploy.system.child import ChildDied, run_in_child
from tests.quantise.quantise_cases import LATENT, PROMPTS, tiny_checkpoint

SETTINGS = Tuning(iterations=2 * SAVE + 10, batch=4)
OFTEN = 8  # iterations between two saved states of the run that is killed
SHORT = Tuning(iterations=2 * OFTEN + 4, batch=4)


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory) -> Trajectories:
    folder = tmp_path_factory.mktemp("tuning")
    return record(tiny_checkpoint(folder), "full", LATENT, samples_of(PROMPTS, 16), folder / "t")


def coarse(folder: Path) -> DiT:
    """The student with four values a weight."""
    student = load_student(tiny_checkpoint(folder), "full")
    return quantise_network(
        student, {n: tuple(fit_palette(m.weight.detach().numpy(), 4)) for n, m in layers_of(student).items()}
    )


def test_the_error_falls_and_weights_stay_frozen(trajectories: Trajectories, tmp_path: Path) -> None:
    student = coarse(tmp_path)
    weights = {n: m.weight.detach().clone() for n, m in layers_of(student).items()}
    start = {n: p.detach().clone() for n, p in tunable(student).items()}
    heard: list[int] = []
    tuned = tune_network(student, trajectories, SETTINGS, tmp_path / "state", lambda i, loss: heard.append(i))
    assert heard == list(range(1, SETTINGS.iterations + 1))
    assert tuned.helped
    assert tuned.after < 0.9 * tuned.before
    assert all(torch.equal(m.weight, weights[n]) for n, m in layers_of(student).items())
    assert all(torch.equal(p, tuned.values[n]) for n, p in tunable(student).items())
    moved = {n for n in start if not torch.equal(start[n], tuned.values[n])}
    assert {n.rpartition(".")[2] for n in moved} == {"bias", "weight", "table", "final_table"}
    assert {n.split(".")[-2] for n in moved if n.endswith(".weight")} == {"q_norm", "k_norm"}
    held = [(p, s) for p in (7, 15) for s in range(4)]
    assert error(student, trajectories, held) == tuned.after


def killed(folder: Path, checkpoint: Path, after: int) -> None:
    """In a process of its own, which dies in the middle."""
    from snapgen_deploy.checkpoint import open_checkpoint
    from snapgen_deploy.quantise.trajectories import load_trajectories

    torch.set_num_threads(1)
    tuning.SAVE = OFTEN
    trajectories = load_trajectories(folder / "t", open_checkpoint(checkpoint).config)

    def die(iteration: int, loss: float) -> None:
        if iteration == after:
            os._exit(9)

    tune_network(coarse(folder), trajectories, SHORT, folder / "state", die)


def test_a_killed_run_goes_on_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(tuning, "SAVE", OFTEN)
    checkpoint = tiny_checkpoint(tmp_path)
    found = record(checkpoint, "full", LATENT, samples_of(PROMPTS, 16), tmp_path / "t")
    whole = tune_network(coarse(tmp_path), found, SHORT, tmp_path / "whole")
    with pytest.raises(ChildDied):
        run_in_child("tuning", killed, tmp_path, checkpoint.path, OFTEN + 3)
    assert (tmp_path / "state" / STATE).is_file()
    heard: list[int] = []
    resumed = tune_network(coarse(tmp_path), found, SHORT, tmp_path / "state", lambda i, loss: heard.append(i))
    assert heard[0] == OFTEN + 1
    assert resumed.losses == whole.losses
    assert (resumed.before, resumed.after) == (whole.before, whole.after)
    assert all(torch.equal(resumed.values[n], whole.values[n]) for n in whole.values)


def test_values_that_do_not_help_are_not_used(trajectories: Trajectories, tmp_path: Path) -> None:
    student = coarse(tmp_path)
    start = {n: p.detach().clone() for n, p in tunable(student).items()}
    tuned = tune_network(student, trajectories, Tuning(iterations=4, batch=4, rate=5.0), tmp_path / "state")
    assert not tuned.helped
    assert all(torch.equal(p, start[n]) for n, p in tunable(student).items())
    nothing = tune_network(student, trajectories, Tuning(iterations=0), tmp_path / "nothing")
    assert nothing.losses == ()
    assert nothing.after == nothing.before


def test_at_full_scale_parts_and_recomputing_give_the_same_gradients(
    trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [(p, s) for p in (0, 3, 5) for s in range(2)]
    found = []
    for tokens, kept in ((2048, 1 << 30), (32, 0)):  # 16 tokens a call: all at once, or two calls at a time
        monkeypatch.setattr(memory, "MOST_TOKENS", tokens)
        monkeypatch.setattr(memory, "KEPT", kept)
        student = coarse(tmp_path)
        for p in tunable(student).values():
            p.requires_grad_(True)
        value = tuning.accumulate_gradients(student, trajectories, calls)
        found.append((value, {n: p.grad for n, p in tunable(student).items()}))
        assert "forward" not in vars(student.blocks_of("down")[0])
    (whole, gradients), (parted, others) = found
    assert parted == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients.items():
        assert gradient is not None
        assert torch.allclose(gradient, others[name], rtol=1e-3, atol=1e-6), name


def test_lessons_go_round_and_the_rate_falls() -> None:
    calls = [(p, s) for p in range(3) for s in range(4)]
    settings = Tuning(iterations=100, batch=5)
    drawn = [c for i in range(12) for c in training_batch(settings, i, calls)]
    assert all(sorted(drawn[i * 12 : i * 12 + 12]) == calls for i in range(5))
    rates = [rate(settings, i) for i in range(100)]
    assert rates[0] < max(rates) == settings.rate
    assert rates[-1] < 0.02 * settings.rate


def test_broken_lessons_and_too_few_pictures(trajectories: Trajectories, tmp_path: Path) -> None:
    student = coarse(tmp_path)
    with torch.no_grad():
        student.final_table[0, 0] = float("nan")
    with pytest.raises(GateFailed, match="iteration 1 is not finite"):
        tune_network(student, trajectories, SETTINGS, tmp_path / "state")
    few = replace(trajectories, samples=trajectories.samples[:7])
    with pytest.raises(BadInput, match="got 7 calibration pictures, expected at least 8"):
        tune_network(coarse(tmp_path), few, SETTINGS, tmp_path / "state")


def test_on_a_larger_random_network_mixed_beats_uniform_and_tuned_beats_untuned(tmp_path: Path) -> None:
    """0.9M weights: 4.3 bits against 4, by the error of the network's own output on held-out trajectories."""
    checkpoint = tiny_checkpoint(tmp_path, hidden=128)
    found = record(checkpoint, "full", LATENT, samples_of(PROMPTS, 16), tmp_path / "t")
    held = [(p, s) for p in (7, 15) for s in range(4)]
    layers: dict[str, Sensitivity] = measure_sensitivities(load_student(checkpoint, "full"), found, 16, (4, 8), Here())
    errors = {}
    for bits in (4.0, 4.3, 8.0):
        chosen = allocate([Candidate(s.name, s.weights, s.errors) for s in layers.values()], bits)
        assert bits - 0.05 < chosen.average <= bits
        student = quantise_network(load_student(checkpoint, "full"), {n: layers[n].palettes[b] for n, b in chosen.bits.items()})
        errors[bits] = error(student, found, held)
        if bits == 4.3:
            tuned = tune_network(student, found, Tuning(iterations=40, batch=8), tmp_path / "state")
    assert errors[8.0] < 0.1 * errors[4.3]
    assert errors[4.3] < 0.8 * errors[4.0]
    assert tuned.before == errors[4.3]
    assert tuned.after < 0.9 * errors[4.3]


@pytest.mark.parametrize("count", [8, 16, 20, 50, 256, 300])
def test_no_words_of_what_is_held_out_are_learned(count: int) -> None:
    samples = samples_of([f"prompt {i}" for i in range(count)], 256)
    kept = held_out(samples)
    apart = {samples[i].prompt for i in kept}
    assert apart.isdisjoint(s.prompt for i, s in enumerate(samples) if i not in kept)
    assert 0.05 < len(kept) / len(samples) < 0.2


def test_few_prompts_are_held_out_by_picture() -> None:
    assert held_out(samples_of(["a", "b"], 24)) == {HELD_OUT - 1, 2 * HELD_OUT - 1, 3 * HELD_OUT - 1}
