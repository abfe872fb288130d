"""Tokenizers of transformers, read by the library itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import LONGEST_NAME, cut
from snapgen_deploy.system.quiet import first_line

R = TypeVar("R")
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")  # files, one of which every tokenizer has


def read_tokenizer(place: Path) -> Any:
    """A folder's tokenizer.

    Raises:
        BadInput: if the library cannot read it, or has no form of it that a tokenizer.json can hold.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    found = asked_of_library(
        lambda: AutoTokenizer.from_pretrained(str(place), use_fast=True, local_files_only=True, trust_remote_code=False),
        f"tokenizer {place}: transformers cannot read it",
    )
    if not isinstance(found, PreTrainedTokenizerFast):
        raise BadInput(f"tokenizer {place}: {type(found).__name__} has no tokenizer.json, and transformers does not convert it")
    return found


def asked_of_library(call: Callable[[], R], failure: str) -> R:
    """What the library returns, without its warnings.

    Raises:
        BadInput: if it raises anything, which it does with bare exceptions of many kinds.
    """
    with _without_warnings():
        try:
            return call()
        except Exception as error:
            said = cut(first_line(error), LONGEST_NAME)
            raise BadInput(f"{failure} ({said})") from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
