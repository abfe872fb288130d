"""The licence of every component, and what must not be passed on, as far as a licence field or a model card says so.

A licence is stated as an SPDX expression (https://spdx.dev/learn/handling-license-info/) where it is one: Hugging Face's
`apache-2.0` is `Apache-2.0`. Another text stays as its owners wrote it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import shown

CARD = "README.md"  # Hugging Face's model card: YAML between two lines of dashes, then text
_LONGEST = 100_000  # characters that are looked at
_LONGEST_EXPRESSION = 300  # characters
_FORBIDS = re.compile(
    r"\b(no|not|never|prohibit\w{0,8}|forbid\w{0,8})\b.{0,40}\b(re)?distribut"
    r"|\b(re)?distribut\w{0,8}\b.{0,40}\b(prohibited|forbidden|not (allowed|permitted))"
    r"|all rights reserved|confidential|proprietary|internal use only",
    re.IGNORECASE,
)
_GATED = re.compile(r"^(?:(extra_gated_\w{1,40})\s*:|(gated)\s*:[ \t]*(?!(?:false|no)\b)\S)", re.MULTILINE)
_LICENCE = re.compile(r"^license(?:_name)?[ \t]*:[ \t]*(.+)$", re.MULTILINE)
_UNSAID = ("", "other", "unknown", "null", "none")  # of a `license` field: it names none
_HOW = "ask its owners, then name the licence under which the bundle goes out with --license"


def licences_of(
    components: Sequence[str], stated: str | None, own: Sequence[Path], folders: Mapping[str, Sequence[Path]]
) -> dict[str, str | None]:
    """The licence of each component, as it is written; None where nobody states one.

    Args:
        components: Their names.
        stated: What the checkpoint says of itself.
        own: Folders in which the checkpoint's model card may lie.
        folders: For components that come from elsewhere, those in which their card may lie. What the checkpoint states is not
            said of them.
    """
    here = stated if stated and stated.lower() not in _UNSAID else _first(own)
    return {name: _first(folders[name]) if name in folders else here for name in components}


def spdx(licence: str) -> str:
    """The SPDX expression that a text is, in the usual spelling; the text itself where it is none.

    >>> spdx("apache-2.0"), spdx("mit OR BSD-3-clause"), spdx("openrail")
    ('Apache-2.0', 'MIT OR BSD-3-Clause', 'openrail')
    """
    return licence if (expression := spdx_expression(licence)) is None else expression


def spdx_expression(licence: str) -> str | None:
    """A text as an SPDX expression; None where it is none."""
    if not licence.strip() or len(licence) > _LONGEST_EXPRESSION:
        return None
    found = _spdx_licences().validate(licence)
    return None if found.errors else str(found.normalized_expression)


@functools.cache
def _spdx_licences() -> Any:
    """SPDX's identifiers, which take 25 ms to list."""
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def licences_line(licences: Mapping[str, str | None]) -> str:
    """Licences for people: one where all parts have the same, else that of each part."""
    said = {part: licence or "not stated" for part, licence in licences.items()}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{part}: {licence}" for part, licence in said.items())


def refuse_unknown(licences: Mapping[str, str | None]) -> None:
    """Check that a licence is known for everything that a bundle would hold.

    Raises:
        BadInput: with the names of what has none.
    """
    if unknown := [name for name, licence in licences.items() if not (licence or "").strip()]:
        raise BadInput(
            f"{', '.join(unknown)}: no licence is stated, neither in the checkpoint nor in a model card; name the one under "
            "which the bundle goes out, such as --license Apache-2.0"
        )


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


def _first(folders: Sequence[Path]) -> str | None:
    """The licence of the first model card that names one."""
    for folder in folders:
        said = [text.partition(" #")[0].strip().strip("'\"") for text in _LICENCE.findall(_head(folder / CARD))]
        if named := [text for text in said if text.lower() not in _UNSAID]:
            return str(named[0])
    return None


def _head(card: Path) -> str:
    """The YAML of a model card; nothing where there is none."""
    try:
        if not card.is_file():
            return ""
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_LONGEST)
    except OSError:
        return ""
    return text[4:].partition("\n---")[0] if text.startswith("---\n") else ""


def _card_problems(card: Path) -> Iterator[str]:
    head = _head(card)
    if gated := _GATED.search(head):
        yield f"a gated model ({gated[1] or gated[2]}), whose terms whoever gets the files must accept"
    for licence in _LICENCE.finditer(head):
        if found := _FORBIDS.search(licence[1]):
            yield f"its licence {shown(_around(licence[1], found))} forbids to pass it on"


def _around(text: str, found: re.Match[str]) -> str:
    """What matched, with the words around it."""
    return " ".join(text[max(found.start() - 10, 0) : found.end() + 20].split())
