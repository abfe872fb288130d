"""Prompts: from text files, and those that ship with the embedded checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from snapgen_deploy.checkpoint import EMBEDDED, Checkpoint, embedded_path
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.tokenizer import WordTokenizer

SEEDS = 2**63  # seeds are below this: torch's generators accept no larger one
FIDELITY, CALIBRATION = "shapes_fidelity.txt", "shapes_calibration.txt"  # in `assets`, for the embedded checkpoints


def read_samples(path: Path, first_seed: int, what: str = "prompts") -> tuple[Sample, ...]:
    """Read a text file with one prompt per line. Blank lines are skipped.

    A line may end in a tab and a seed, as in `a red ring<TAB>7`. Other prompts get `first_seed` plus their position.

    Args:
        path: The file, UTF-8.
        first_seed: Seed of the first prompt without one of its own.
        what: Name of the kind of file, for error messages.

    Raises:
        BadInput: if the file cannot be read, has no prompts, or has a seed that is not a whole number below 2^63.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors begin with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{what} file {path} cannot be read ({error}); give a UTF-8 text file with a prompt a line") from None
    found: list[Sample] = []
    for number, line in enumerate(lines, 1):
        text, tab, seed = line.strip().partition("\t")
        if tab and not (seed.strip().isdecimal() and len(seed.strip()) <= 19 and int(seed) < SEEDS):
            got = f"{what} file {path}, line {number}: got the seed '{seed.strip()[:40]}'"
            raise BadInput(f"{got}, expected a whole number below {SEEDS}")
        if text:
            found.append(Sample(text.strip(), int(seed) if tab else first_seed + len(found)))
    if not found:
        raise BadInput(f"{what} file {path} is empty; give a prompt a line")
    return tuple(found)


def check_prompts(checkpoint: Checkpoint, prompts: Iterable[str]) -> None:
    """Check that the checkpoint's tokenizers can encode all prompts, with guidance also the negative prompt.

    A no-op if the checkpoint has no tokenizer.

    Raises:
        BadInput: for the first prompt with an unknown word or too many tokens.
    """
    encoders = [spec for spec in components_of(checkpoint.config).encoders if spec.name in checkpoint.tokenizers]
    readers = [(WordTokenizer(checkpoint.tokenizers[s.name], s.reads.reading), s.reads.length) for s in encoders]
    named = {prompt: repr(prompt[:80]) for prompt in prompts}
    if checkpoint.config.guided:
        named.setdefault(checkpoint.config.negative_prompt, "negative_prompt")
    for prompt, name in named.items():
        for tokenizer, length in readers:
            try:
                tokenizer.encode(prompt, length)
            except BadInput as error:
                raise BadInput(f"{name}: {error}") from None


def is_embedded(checkpoint: Checkpoint) -> bool:
    """Whether this is a checkpoint that ships with the package, byte for byte, whatever its path."""
    lengths = [path.stat().st_size for path in checkpoint.files]
    # compare lengths first, so that a large checkpoint is not hashed for nothing
    alike = [own for own in map(embedded_path, EMBEDDED) if lengths == [own.stat().st_size]]
    return any(checkpoint.sha256() == _embedded_sha256(own) for own in alike)


@cache
def _embedded_sha256(path: Path) -> str:
    from snapgen_deploy.checkpoint import open_checkpoint

    return open_checkpoint(path).sha256()


def own_prompts(checkpoint: Checkpoint, asset: str, prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts in the package's file `asset` if this is an embedded checkpoint, else `prompts`."""
    if not is_embedded(checkpoint):
        return tuple(prompts)
    lines = (resources.files("snapgen_deploy.assets") / asset).read_text(encoding="utf-8").split("\n")
    return tuple(line for line in lines if line)


def own_samples(checkpoint: Checkpoint, asset: str, prompts: Sequence[str], count: int, first_seed: int) -> tuple[Sample, ...]:
    """`count` samples that cycle through `own_prompts`."""
    return samples_of(own_prompts(checkpoint, asset, prompts), count, first_seed)


@dataclass(frozen=True)
class Sample:
    """One picture to draw. The seed decides the noise, and the random text if the checkpoint reads no prompts."""

    prompt: str
    seed: int


def samples_of(prompts: Sequence[str], count: int, first_seed: int = 1_000_000) -> tuple[Sample, ...]:
    """`count` samples that cycle through the prompts, each with a seed of its own.

    The default seeds are far from those of the gates (0, 1, ...), so that nothing is checked on the noise it was tuned on.

    >>> samples_of(["a", "b"], 3, first_seed=10)
    (Sample(prompt='a', seed=10), Sample(prompt='b', seed=11), Sample(prompt='a', seed=12))
    """
    return tuple(Sample(prompts[i % len(prompts)], first_seed + i) for i in range(count))
