"""Refuses to pass on what its owners do not let be passed on, as far as a licence field or a model card says so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import shown

CARD = "README.md"  # Hugging Face's model card: YAML between two lines of dashes, then text
_LONGEST = 100_000  # characters that are looked at
_FORBIDS = re.compile(
    r"\b(no|not|never|prohibit\w{0,8}|forbid\w{0,8})\b.{0,40}\b(re)?distribut"
    r"|\b(re)?distribut\w{0,8}\b.{0,40}\b(prohibited|forbidden|not (allowed|permitted))"
    r"|all rights reserved|confidential|proprietary|internal use only",
    re.IGNORECASE,
)
_GATED = re.compile(r"^(?:(extra_gated_\w{1,40})\s*:|(gated)\s*:[ \t]*(?!(?:false|no)\b)\S)", re.MULTILINE)
_LICENCE = re.compile(r"^license(?:_name)?\s*:[ \t]*(.+)$", re.MULTILINE)
_HOW = "ask its owners, then name the licence under which the bundle goes out with --license"


def refuse_forbidden(license: str | None, folders: Sequence[Path]) -> None:
    """Check a checkpoint's licence, and the model cards in the folders that its components came from.

    Raises:
        BadInput: if one forbids redistribution, or a model card says that its files are given to those only who accept terms.
    """
    if license is not None and (found := _FORBIDS.search(license[:_LONGEST])):
        raise BadInput(f"licence of the checkpoint: {shown(_around(license, found))} forbids to pass it on; {_HOW}")
    for folder in dict.fromkeys(folders):
        for said in _card_problems(folder / CARD):
            raise BadInput(f"{folder / CARD}: {said}; {_HOW}")


def _card_problems(card: Path) -> Iterator[str]:
    try:
        if not card.is_file():
            return
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_LONGEST)
    except OSError:
        return
    if not text.startswith("---\n"):
        return
    head = text[4:].partition("\n---")[0]
    if gated := _GATED.search(head):
        yield f"a gated model ({gated[1] or gated[2]}), whose terms whoever gets the files must accept"
    for licence in _LICENCE.finditer(head):
        if found := _FORBIDS.search(licence[1]):
            yield f"its licence {shown(_around(licence[1], found))} forbids to pass it on"


def _around(text: str, found: re.Match[str]) -> str:
    """What matched, with the words around it."""
    return " ".join(text[max(found.start() - 10, 0) : found.end() + 20].split())
