"""Names of components, as they stand in checkpoints, manifests and measurements. Further text encoders are numbered."""

from __future__ import annotations

from collections.abc import Iterable

TEXT_ENCODER, STUDENT, DECODER = "text_encoder", "student", "decoder"
TOKENIZER = "tokenizer"  # of the first text encoder: in what a checkpoint says of itself, and as a file of a bundle


STEP = f"{STUDENT}_step"  # among the parts of an estimate, which counts a picture's components once each


def numbered(name: str, index: int) -> str:
    """`text_encoder` for the first, `text_encoder_2` for the second."""
    return name if index == 0 else f"{name}_{index + 1}"


def in_order(names: Iterable[str]) -> list[str]:
    """Names of components as a picture passes through them, where no configuration says; others follow by their names."""
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
    """A component's name for people: `text encoder 2`."""
    return name.replace("_", " ")


def timing_title(name: str) -> str:
    """For people, what one timing of a component is of: the student is timed step by step."""
    return f"{title_of(name)}, one step" if name == STUDENT else title_of(name)
