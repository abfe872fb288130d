"""Python's runner held to a bundle's conformance.json (docs/formats.md), with numpy alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from snapgen_deploy.runtime.exported import check_exported
from snapgen_deploy.runtime.prompt import RuleReader
from snapgen_deploy.runtime.record import PictureRefused

_DTYPES = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4")}  # of test vectors
_SHOWN = 40  # characters of a prompt
_MOST_DECIBELS = 200.0  # equal pictures


Run = Callable[..., dict[str, np.ndarray]]  # a component and its inputs by name -> its outputs by name


class PictureRunner(Protocol):
    """What draws, as far as cases are about it."""

    path: Path
    manifest: Mapping[str, Any]
    target: str
    cases: Mapping[str, Any]  # of conformance.json
    readers: Sequence[RuleReader]

    @property
    def coefficients(self) -> list[tuple[float, float, float]]:
        """What each step keeps of the latent, and takes of the student's output and of new noise."""

    def noise(self, seed: int, draws: int) -> np.ndarray:
        """(draws, 1, C, h, w)."""

    def run(self, role: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of a component, by name."""

    def condition(self, prompt: str, negative_prompt: str | None, run: Run) -> dict[str, np.ndarray]:
        """The student's text inputs."""

    def picture(self, text: Mapping[str, np.ndarray], seed: int, guidance: float | None, run: Run) -> np.ndarray:
        """What the decoder returns."""


@dataclass(frozen=True)
class ConformanceLine:
    """One case: what it is about, whether this runner does as the case says, and what was held to what."""

    line: str
    passed: bool
    detail: str


def conformance_lines(opened: PictureRunner) -> Iterator[ConformanceLine]:
    """Run the cases from top to bottom.

    Raises:
        BadInput: if the test vectors are not the exported ones.
    """
    cases = opened.cases
    for reader in opened.readers:
        for case in reader.rule["cases"]:
            yield _tokens(reader, case)
    for case in cases["noise"]["cases"]:
        yield _noise(opened, case, cases["noise"])
    for i, step in enumerate(cases["schedule"]["steps"]):
        yield _step(opened, i, step, cases["schedule"])
    vectors = _Vectors(opened)
    for call in cases["calls"]:
        yield from _call(opened, call, vectors)
    if "picture" in cases:
        yield _picture(opened, cases["picture"], vectors)


def _tokens(reader: RuleReader, case: Mapping[str, Any]) -> ConformanceLine:
    text, refused = case["text"], case.get("refused")
    try:
        tokens, mask = reader.read(text)
        passed = refused is None and (tokens[0].tolist(), mask[0].tolist()) == (case["tokens"], case["mask"])
    except PictureRefused as error:
        passed = error.why == refused
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    said = f"“{short}”" + (f", refused: {refused}" if refused else "")
    return ConformanceLine(f"tokenizer {reader.rule['encoder']}", passed, said)


def _noise(opened: PictureRunner, case: Mapping[str, Any], part: Mapping[str, Any]) -> ConformanceLine:
    size = math.prod(opened.manifest["latent"]["shape"])
    made = opened.noise(int(case["seed"]), math.ceil(case["count"] / size)).reshape(-1)[: case["count"]].astype(np.float64)
    passed = _has_ends(made, case, part["tolerance"]) and _close(
        [made.mean(), made.std()], [case["mean"], case["deviation"]], part["tolerance"]
    )
    return ConformanceLine("noise", passed, f"seed {case['seed']}, {case['count']} numbers")


def _step(opened: PictureRunner, i: int, step: Mapping[str, Any], part: Mapping[str, Any]) -> ConformanceLine:
    schedule = opened.manifest["schedule"]
    passed = (
        _close(schedule["sigmas"][i : i + 2], [step["sigma"], step["next"]], part["tolerance"])
        and _has_ends(schedule["time_features"]["values"][i], step["time_features"], part["tolerance"])
        and _close(opened.coefficients[i], step.get("coefficients", opened.coefficients[i]), part["tolerance"])
    )
    return ConformanceLine("schedule", passed, f"step {i + 1}, level {step['sigma']}")


def _call(opened: PictureRunner, call: Mapping[str, Any], vectors: _Vectors) -> Iterator[ConformanceLine]:
    role, limit = call["component"], call["error"][opened.target]
    made = opened.run(role, **{name: vectors.rows(rows) for name, rows in call["inputs"].items()})
    for name, rows in call["outputs"].items():
        expected = vectors.rows(rows).astype(np.float64)
        error = float(np.linalg.norm(made[name] - expected) / max(float(np.linalg.norm(expected)), 1e-12))
        yield ConformanceLine(f"call {role}", error <= limit, f"relative error {error:.1e}, at most {limit:g}")


def _picture(opened: PictureRunner, case: Mapping[str, Any], vectors: _Vectors) -> ConformanceLine:
    text = opened.condition(case["prompt"], None, opened.run) | {n: vectors.rows(rows) for n, rows in case["text"].items()}
    drawn = opened.picture(text, int(case["seed"]), None, opened.run)
    difference = np.clip(drawn, -1, 1).astype(np.float64) - np.clip(vectors.rows([case["expected"]]), -1, 1)
    error, limit = float(np.mean(difference**2)), case["psnr"][opened.target]
    if not math.isfinite(error):
        return ConformanceLine("picture", passed=False, detail="the picture is not finite")
    decibels = min(_MOST_DECIBELS, 10 * math.log10(4 / max(error, 1e-30)))
    return ConformanceLine("picture", decibels >= limit, f"{decibels:.1f} dB, at least {limit:g}")


def _has_ends(values: Sequence[float] | np.ndarray, case: Mapping[str, Any], tolerance: float) -> bool:
    """Whether a row of numbers begins and ends as a case says."""
    first, last = case["first"], case["last"]
    return _close(values[: len(first)], first, tolerance) and _close(values[-len(last) :], last, tolerance)


def _close(got: Sequence[float] | np.ndarray, expected: Sequence[float], tolerance: float) -> bool:
    found, wanted = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return found.shape == wanted.shape and bool(np.all(np.abs(found - wanted) <= tolerance))


class _Vectors:
    """The bundle's test vectors (safetensors): rows of them are read when they are asked for."""

    def __init__(self, opened: PictureRunner) -> None:
        name = opened.cases["vectors"]
        path = opened.path / name
        check_exported(path, opened.manifest["files"][name])
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self._header = json.loads(file.read(length))
        self._path, self._begin = path, 8 + length
        self._features = np.array(opened.manifest["schedule"]["time_features"]["values"], np.float32)

    def rows(self, told: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The rows that a case names, stacked."""
        return np.stack([self._features[row["step"]] if "step" in row else self._row(row) for row in told])

    def _row(self, row: Mapping[str, Any]) -> np.ndarray:
        about = self._header[row["array"]]
        begin, _ = about["data_offsets"]
        whole = np.memmap(self._path, _DTYPES[about["dtype"]], "r", self._begin + begin, tuple(about["shape"]))
        return np.array(whole[tuple(row["index"])])
