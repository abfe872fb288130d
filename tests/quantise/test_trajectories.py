"""Recorded trajectories are what the reference computes, the same every time, and whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from snapgen_deploy.checkpoint.networks import load_student
from snapgen_deploy.drawing import reference
from snapgen_deploy.drawing.pipeline import noise_for
from snapgen_deploy.drawing.prompts import samples_of
from snapgen_deploy.drawing.reference import reference_runners
from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.noise import TORCH
from snapgen_deploy.quantise.trajectories import TRAJECTORIES_INDEX, load_trajectories, record
from tests.quantise.quantise_cases import LATENT, PROMPTS, tiny_checkpoint


def test_every_input_is_what_the_reference_sees(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    heard: list[int] = []
    found = record(checkpoint, "full", LATENT, samples_of(PROMPTS, 6), tmp_path / "t", heard.append)
    assert heard == [1, 2, 3, 4, 5, 6]
    assert [s.prompt for s in found.samples] == [*PROMPTS, *PROMPTS[:2]]
    assert len({s.seed for s in found.samples}) == 6
    runners = reference_runners(checkpoint, "full")
    for i, sample in enumerate(found.samples):
        assert np.array_equal(found.student(i, 0)["latent"], noise_for(sample.seed, LATENT, TORCH))
        for step in range(found.steps):
            assert np.array_equal(runners["student"](found.student(i, step))["velocity"], found.velocity(i, step))
    texts, students = list(found.inputs("text_encoder")), list(found.inputs("student"))
    assert (len(texts), len(students), len(list(found.inputs("decoder")))) == (6, 24, 6)
    assert np.array_equal(runners["text_encoder"](texts[1])["text"], students[4]["text"])
    last = found.student(5, 3)["latent"] + (0.0 - found.schedule.sigmas[3]) * found.velocity(5, 3)
    assert np.allclose(last, list(found.inputs("decoder"))[5]["latent"], atol=1e-6)


def test_same_bytes_every_time_and_taken_where_they_are(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    samples = samples_of(PROMPTS, 3)
    for name in ("a", "b"):
        record(checkpoint, "tiny", LATENT, samples, tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "latents.npy" in files
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    heard: list[int] = []
    record(checkpoint, "tiny", LATENT, samples, tmp_path / "a", heard.append)
    assert heard == []
    record(checkpoint, "tiny", LATENT, samples_of(PROMPTS, 4), tmp_path / "a", heard.append)
    assert heard == [1, 2, 3, 4]


def test_without_text_encoder_embeddings_are_random_and_seeded(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, encoder=False)
    found = record(checkpoint, "full", LATENT, samples_of(("x",), 2), tmp_path / "t")
    first, second = found.student(0, 0)["text"], found.student(1, 0)["text"]
    assert first.shape == (1, 8, 16)
    assert not np.array_equal(first, second)
    assert list(found.inputs("text_encoder")) == []


def test_an_interrupted_recording_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(checkpoint, "full", LATENT, samples_of(PROMPTS, 3), tmp_path / "room" / "t", stop)
    assert list((tmp_path / "room").iterdir()) == []


def test_damaged_recordings_are_drawn_again(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    samples = samples_of(PROMPTS[:1], 1)
    folder = tmp_path / "drawn"
    first = record(checkpoint, "full", LATENT, samples, folder)
    expected = {name: array.copy() for name, array in first.arrays.items()}
    for damage in (lambda p: p.write_bytes(p.read_bytes()[:-64]), lambda p: np.save(p, np.zeros(3)), lambda p: p.unlink()):
        damage(folder / "latents.npy")
        again = record(checkpoint, "full", LATENT, samples, folder)
        assert all(np.array_equal(again.arrays[name], array) for name, array in expected.items())


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    with pytest.raises(BadInput, match="got no prompts"):
        record(checkpoint, "full", LATENT, (), tmp_path / "t")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / TRAJECTORIES_INDEX).write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        load_trajectories(tmp_path / "bad", checkpoint.config)
    student = load_student(checkpoint, "full")
    with torch.no_grad():
        student.patch.weight[0, 0] = float("nan")
    real = reference.load_component
    monkeypatch.setattr(reference, "load_component", lambda c, name, width: student if name == "student" else real(c, name))
    with pytest.raises(BadInput, match="not finite"):
        record(checkpoint, "full", LATENT, samples_of(PROMPTS, 1), tmp_path / "t")
