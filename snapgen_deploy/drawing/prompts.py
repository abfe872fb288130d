"""Prompts from files, and those that come with the embedded checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from snapgen_deploy.checkpoint import Checkpoint, embedded_path
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.tokenizer import WordTokenizer

SEEDS = 2**63  # torch's generators take no larger one
FIDELITY, CALIBRATION = "shapes_fidelity.txt", "shapes_calibration.txt"  # in `assets`, for the embedded checkpoint


def read_samples(path: Path, first_seed: int, what: str = "prompts") -> tuple[Sample, ...]:
    """The lines of a text file that are not blank; a line may end in a tab and a seed, else its place gives the seed.

    Raises BadInput, naming the file as `what`, where it cannot be read, is empty or has a seed that is no whole number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors begin with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{what} file {path} cannot be read ({error}); give a UTF-8 text file with a prompt a line") from None
    found: list[Sample] = []
    for number, line in enumerate(lines, 1):
        text, tab, seed = line.strip().partition("\t")
        if tab and not (seed.strip().isdecimal() and len(seed.strip()) <= 19 and int(seed) < SEEDS):
            said = f"{what} file {path}, line {number}: got the seed '{seed.strip()[:40]}'"
            raise BadInput(f"{said}, expected a whole number below {SEEDS}")
        if text:
            found.append(Sample(text.strip(), int(seed) if tab else first_seed + len(found)))
    if not found:
        raise BadInput(f"{what} file {path} is empty; give a prompt a line")
    return tuple(found)


def check_prompts(checkpoint: Checkpoint, prompts: Iterable[str]) -> None:
    """BadInput for the first prompt that the checkpoint's tokenizer cannot read; all pass where nothing reads prompts."""
    encoders = [spec for spec in components_of(checkpoint.config).encoders if spec.name in checkpoint.tokenizers]
    readers = [(WordTokenizer(checkpoint.tokenizers[s.name]), s.reads.length) for s in encoders]
    for prompt in dict.fromkeys(prompts):
        for tokenizer, length in readers:
            try:
                tokenizer.encode(prompt, length)
            except BadInput as error:
                raise BadInput(f"{prompt[:80]!r}: {error}") from None


def is_embedded(checkpoint: Checkpoint) -> bool:
    """Whether this is the checkpoint that comes with the package, byte for byte, wherever it lies."""
    own = embedded_path()
    # sizes first: a large checkpoint is not read for a question that they answer
    same_size = [path.stat().st_size for path in checkpoint.files] == [own.stat().st_size]
    return same_size and checkpoint.sha256() == _embedded_sha256()


@cache
def _embedded_sha256() -> str:
    from snapgen_deploy.checkpoint import open_checkpoint

    return open_checkpoint(None).sha256()


def own_prompts(checkpoint: Checkpoint, asset: str, prompts: Sequence[str]) -> tuple[str, ...]:
    """Those of the embedded checkpoint's file `asset`, else `prompts`."""
    if not is_embedded(checkpoint):
        return tuple(prompts)
    lines = (resources.files("snapgen_deploy.assets") / asset).read_text(encoding="utf-8").split("\n")
    return tuple(line for line in lines if line)


def own_samples(checkpoint: Checkpoint, asset: str, prompts: Sequence[str], count: int, first_seed: int) -> tuple[Sample, ...]:
    """`count` samples that go round `own_prompts`."""
    return samples_of(own_prompts(checkpoint, asset, prompts), count, first_seed)


@dataclass(frozen=True)
class Sample:
    """One picture to draw: the seed decides the noise, and the text where nothing reads prompts."""

    prompt: str
    seed: int


def samples_of(prompts: Sequence[str], count: int, first_seed: int = 1_000_000) -> tuple[Sample, ...]:
    """`count` samples that go round the prompts, each with a seed of its own.

    Seeds begin far from those of the gates (0, 1, ...), so that nothing is checked on the noise it was tuned on.
    """
    return tuple(Sample(prompts[i % len(prompts)], first_seed + i) for i in range(count))
