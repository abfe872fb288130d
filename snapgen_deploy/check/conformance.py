"""conformance.json: cases that an app's own code is held to, in any language (docs/formats.md).

It says how prompts become tokens, which noise a seed gives, the levels of the schedule, and for a call of every component and a
whole picture where inputs and expected outputs lie in the test vectors, each with its tolerance.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.bundle.reader import CONFORMANCE, Bundle
from snapgen_deploy.bundle.sizes import vectors_name
from snapgen_deploy.check.gates import error_limit
from snapgen_deploy.drawing.pipeline import in_calls, noise_for
from snapgen_deploy.drawing.ports import NEGATIVE
from snapgen_deploy.drawing.reference import LATENTS, VELOCITIES, ReferenceVectors, schedule_of
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Role
from snapgen_deploy.export.precisions import Limits
from snapgen_deploy.families.component import LATENT, MASK, PICTURE, TIME, TOKENS, Components, ComponentSpec
from snapgen_deploy.families.names import STUDENT
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.models.noise import PHILOX
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.system.documents import parse_json

CLOSE = 1e-5  # tolerance for time features, noise levels and noise
_FORMAT = 1
_ENDS = 4  # numbers at both ends of a long array that a case lists
_MORE_SEEDS = (1 << 32, (1 << 63) - 1)  # seeds that a 32-bit or a floating-point number does not hold
_UNKNOWN = "zyx\u00fc\u2603 q7"  # hardly words of a vocabulary
_BROKEN = 4  # depth to which the text has a line for each part


@dataclass(frozen=True)
class HeldTarget:
    """A target whose files are held to the cases."""

    precision: str
    limits: Limits


@dataclass(frozen=True)
class Conforming:
    """What the cases depend on, besides the test vectors of the default picture size."""

    config: ModelConfig
    tokenizers: Mapping[Role, str]  # text of the tokenizers, for text encoders that have one
    latent: tuple[int, int, int]
    generator: str  # of the noise
    batch: int
    targets: Mapping[str, HeldTarget]
    pictured: int = 0  # the test vectors' picture that is the case for a whole one


def conforming(bundle: Bundle) -> Conforming:
    """What the cases of a bundle depend on, read from its manifest and its files."""
    targets = {key: HeldTarget(bundle.precision(key), bundle.limits(key)) for key in bundle.targets}
    about = (bundle.latent, bundle.noise_generator, bundle.batch)
    return Conforming(bundle.config, bundle.tokenizers(), *about, targets)


def steadiest(decibels: Iterable[Sequence[float]]) -> int:
    """The picture that rounding turns least into another one: the best for a case of one picture.

    Args:
        decibels: For each target that ran, PSNR of its pictures in dB.

    Returns:
        The number of the picture whose least PSNR is the largest, the first of equals; 0 if no target ran.
    """
    by_target = list(decibels)
    return int(np.argmax(np.min(by_target, axis=0))) if by_target else 0


def conformance_of(of: Conforming, vectors: ReferenceVectors) -> dict[str, Any]:
    """The document for a bundle with these test vectors."""
    components = components_of(of.config)
    return {
        "format": _FORMAT,
        "doc": "docs/formats.md of snapgen-deploy",
        "vectors": vectors_name(None),
        "tokenizers": [_tokenizer(of, spec, vectors.prompts) for spec in components.encoders if spec.name in of.tokenizers],
        "noise": _noise(of, vectors.seeds),
        "schedule": _schedule(of.config),
        "calls": [_call(of, spec, len(vectors.prompts)) for spec in components],
        **({"picture": _picture(of, components, vectors)} if PICTURE in vectors.arrays else {}),
    }


def write_conformance(path: Path, document: Mapping[str, Any]) -> None:
    """Write the document: a line for each case."""
    path.write_text(_text(document) + "\n", encoding="utf-8")


def _text(value: Any, depth: int = 0) -> str:
    """JSON with a line for each part that is not deep inside."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or depth == _BROKEN or len(line) < 80:
        return line
    gap = "\n" + " " * (depth + 1)
    if isinstance(value, list):
        return "[" + ",".join(gap + _text(one, depth + 1) for one in value) + gap[:-1] + "]"
    return "{" + ",".join(f"{gap}{json.dumps(k)}: {_text(one, depth + 1)}" for k, one in value.items()) + gap[:-1] + "}"


def wrong_conformance(bundle: Bundle, vectors: ReferenceVectors) -> Iterator[str]:
    """What of a bundle's conformance.json is not what configuration, tokenizers and test vectors give; bundles of earlier
    releases have no such file."""
    path = bundle.path / CONFORMANCE
    if not path.exists():
        return
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{CONFORMANCE} cannot be read ({error})"
        return
    expected = conformance_of(replace(conforming(bundle), pictured=_pictured(found, vectors)), vectors)
    if not isinstance(found, dict) or found.keys() != expected.keys():
        yield f"{CONFORMANCE} has other parts than {', '.join(expected)}"
        return
    for part, value in expected.items():
        if not _same(found[part], value):
            yield f"{CONFORMANCE}: {part} is not that of this bundle"


def _pictured(found: Any, vectors: ReferenceVectors) -> int:
    """Which picture of the test vectors a document's case is of, the first if of none."""
    case = found.get("picture") if isinstance(found, dict) else None
    told = (case.get("prompt"), case.get("seed")) if isinstance(case, dict) else None
    cases = [(prompt, str(seed)) for prompt, seed in zip(vectors.prompts, vectors.seeds, strict=False)]
    return cases.index(told) if told in cases else 0


def _same(found: Any, expected: Any) -> bool:
    """Equal but for the last digits of numbers."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and found.keys() == expected.keys() and all(_same(found[k], expected[k]) for k in found)
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(_same, found, expected))
    if isinstance(expected, float):
        return isinstance(found, int | float) and math.isclose(found, expected, rel_tol=CLOSE, abs_tol=CLOSE)
    return type(found) is type(expected) and bool(found == expected)


def _tokenizer(of: Conforming, spec: ComponentSpec, prompts: Sequence[str]) -> dict[str, Any]:
    """How a text encoder's tokens come from a prompt, and prompts with their tokens."""
    reads = spec.reads
    tokenizer = WordTokenizer(of.tokenizers[spec.name], reads.reading)
    texts = [
        *prompts,
        f"  {prompts[0].upper()} ",
        f"{prompts[0]} {_UNKNOWN}",
        *([of.config.negative_prompt] * of.config.guided),
    ]
    cases = [_read(tokenizer, text, reads.length, "unknown") for text in dict.fromkeys(texts)]
    words = prompts[0].split()

    def too_long(count: int) -> bool:
        return "refused" in _read(tokenizer, _repeated(words, count), reads.length, "long")

    if words:
        fitting = bisect_right(range(1, reads.length + 2), 0, key=lambda count: int(too_long(count)))
        found = [_read(tokenizer, _repeated(words, count), reads.length, "long") for count in (fitting, fitting + 1) if count]
        cases += found
    return {
        "encoder": spec.name,
        "file": reads.file,
        "stream": reads.stream,
        "length": reads.length,
        "dropped": reads.dropped,
        "pad": tokenizer.pad,
        "side": "left" if tokenizer.pads_left else "right",
        "unknown_token": tokenizer.unknown,
        **asdict(reads.reading),
        "cases": cases,
    }


def _repeated(words: Sequence[str], count: int) -> str:
    return " ".join(words[i % len(words)] for i in range(count))


def _read(tokenizer: WordTokenizer, text: str, length: int, refused: str) -> dict[str, Any]:
    try:
        tokens, mask = tokenizer.encode(text, length)
    except BadInput:
        return {"text": text, "refused": refused}
    return {"text": text, "tokens": tokens, "mask": mask}


def _noise(of: Conforming, seeds: Sequence[int]) -> dict[str, Any]:
    """The first and last numbers of each seed's noise, their mean and their standard deviation."""
    cases = []
    for seed in dict.fromkeys((*seeds, *(_MORE_SEEDS if of.generator == PHILOX else ()))):
        noise = noise_for(seed, of.latent, of.generator, schedule_of(of.config).fresh).reshape(-1).astype(np.float64)
        statistics = {"mean": float(noise.mean()), "deviation": float(noise.std())}
        cases.append({"seed": str(seed), "count": noise.size, **_ends(noise), **statistics})
    return {"generator": of.generator, "tolerance": CLOSE, "cases": cases}


def _ends(values: np.ndarray) -> dict[str, list[float]]:
    return {"first": values[:_ENDS].tolist(), "last": values[-_ENDS:].tolist()}


def _schedule(config: ModelConfig) -> dict[str, Any]:
    schedule = schedule_of(config)
    levels = schedule.sigmas
    steps = [
        {
            "sigma": levels[i],
            "next": levels[i + 1],
            "time_features": _ends(schedule.features(i)[0].astype(np.float64)),
            **({"coefficients": list(schedule.coefficients[i])} if schedule.coefficients else {}),
        }
        for i in range(len(levels) - 1)
    ]
    return {"sampler": schedule.sampler, "tolerance": CLOSE, "steps": steps}


def _row(array: str, *index: int) -> dict[str, Any]:
    """A row of an input or output: an array of the test vectors, and the first indices into it."""
    return {"array": array, "index": list(index)}


def _call(of: Conforming, spec: ComponentSpec, prompts: int) -> dict[str, Any]:
    """The first call of a component: for each input and output its rows, and the largest relative error by target."""
    rows = in_calls(prompts, spec.pictures_in(of.batch))[0]
    inputs, outputs = _PARTS[spec.part](of.config, spec, rows)
    errors = {key: error_limit(t.precision, spec, t.limits) for key, t in of.targets.items()}
    return {"component": spec.name, "inputs": inputs, "outputs": outputs, "error": errors}


_Rows = dict[str, list[dict[str, Any]]]  # by port


def _encoding(config: ModelConfig, spec: ComponentSpec, rows: Sequence[int]) -> tuple[_Rows, _Rows]:
    inputs = {name: [_row(f"{spec.reads.arrays}{name}", i) for i in rows] for name in (TOKENS, MASK)}
    return inputs, {name: [_row(f"{STUDENT}.{name}", i) for i in rows] for name in spec.outputs}


def _denoising(config: ModelConfig, spec: ComponentSpec, rows: Sequence[int]) -> tuple[_Rows, _Rows]:
    """The student's first step; the row of `time_features` is that of the manifest's schedule."""
    kinds = ("", NEGATIVE)[: spec.rows]
    inputs = {
        LATENT: [_row(LATENTS, i, 0) for _ in kinds for i in rows],
        TIME: [{"step": 0} for _ in kinds for _ in rows],
    }
    for name in (name for stream in config.student.text_streams for name in stream.shapes):
        inputs[name] = [_row(f"{STUDENT}.{kind}{name}", i) for kind in kinds for i in rows]
    if spec.rows == 1:
        return inputs, {spec.output: [_row(VELOCITIES, i, 0) for i in rows]}
    return inputs, {spec.output: [_row(VELOCITIES, i, 0, kind) for kind in range(spec.rows) for i in rows]}


def _decoding(config: ModelConfig, spec: ComponentSpec, rows: Sequence[int]) -> tuple[_Rows, _Rows]:
    return {LATENT: [_row(LATENT, i) for i in rows]}, {spec.output: [_row(PICTURE, i) for i in rows]}


_PARTS = {"encode": _encoding, "denoise": _denoising, "decode": _decoding}


def _picture(of: Conforming, components: Components, vectors: ReferenceVectors) -> dict[str, Any]:
    """A whole picture from its prompt and seed. `text` has the student's text inputs that no tokenizer here gives."""
    read = {spec.reads.stream for spec in components.encoders if spec.name in of.tokenizers}
    left = [s for s in of.config.student.text_streams if s.name not in read and s.name not in of.config.absent_streams]
    kinds = ("", NEGATIVE)[: components.denoiser.rows]
    i = of.pictured
    text = {name: [_row(f"{STUDENT}.{kind}{name}", i) for kind in kinds] for s in left for name in s.shapes}
    return {
        "prompt": vectors.prompts[i],
        "seed": str(vectors.seeds[i]),
        "noise": _row("noise", i),
        "text": text,
        "expected": _row(PICTURE, i),
        "psnr": {key: t.limits.median_psnr for key, t in of.targets.items()},
    }
