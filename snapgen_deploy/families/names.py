"""Names of components in checkpoints, manifests and measurements. Text encoders after the first are numbered."""

from __future__ import annotations

from collections.abc import Iterable

TEXT_ENCODER, STUDENT, DECODER = "text_encoder", "student", "decoder"
TOKENIZER = "tokenizer"  # of the first text encoder: the key in a checkpoint's metadata, and the file's stem in a bundle


STEP = f"{STUDENT}_step"  # in an estimate: one step of the student, beside the components' times for a whole picture


def numbered(name: str, index: int) -> str:
    """The name for the component with this index.

    >>> numbered("text_encoder", 0), numbered("text_encoder", 1)
    ('text_encoder', 'text_encoder_2')
    """
    return name if index == 0 else f"{name}_{index + 1}"


def in_order(names: Iterable[str]) -> list[str]:
    """Names of components in the order in which a picture uses them, without a configuration; unknown names come last.

    >>> in_order(["decoder", "student", "text_encoder_2", "text_encoder"])
    ['text_encoder', 'text_encoder_2', 'student', 'decoder']
    """
    places = (TEXT_ENCODER, STUDENT, DECODER)

    def place(name: str) -> tuple[int, str]:
        return next((i for i, known in enumerate(places) if name == known or name.startswith(f"{known}_")), len(places)), name

    return sorted(names, key=place)


def tokenizer_name(name: str) -> str:
    """What a text encoder's tokenizer is called: `tokenizer` for the first, `tokenizer_2` for the second."""
    return f"{TOKENIZER}{name.removeprefix(TEXT_ENCODER)}"


def tokenizer_file(name: str) -> str:
    """A text encoder's tokenizer in a bundle: `tokenizer.json` for the first, `tokenizer_2.json` for the second."""
    return f"{tokenizer_name(name)}.json"


def title_of(name: str) -> str:
    """A component's name in text, such as `text encoder 2`."""
    return name.replace("_", " ")


def timing_title(name: str) -> str:
    """A component's name beside a timing: the student is timed step by step."""
    return f"{title_of(name)}, one step" if name == STUDENT else title_of(name)
