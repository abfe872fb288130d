"""Patterns of tensor names, and templates that are filled with what a pattern found.

    {i}           a number                         {i:0..9}      a number from 0 to 9
    {x:q|k|v}     one of these texts               {rest:*}      any text
    {block}       a word of the map, which is spelled in another way on either side
    {{ }}         braces themselves

A name that occurs twice stands for the same text. A template may have arithmetic: `{i+4}`, `{i-8}`, `{2*i+1}`, `{9-i}`.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

SlotValue = int | str
LONGEST = 1000  # characters of a tensor's name that patterns look at
MOST_SLOTS, MOST_TEXTS = 12, 2  # of one pattern: what may be matched in several ways costs time
_SLOT = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAMED = re.compile(r"([A-Za-z]\w*)(?::(.*))?", re.DOTALL)
_RANGE = re.compile(r"(\d{1,6})\.\.(\d{1,6})")
_ARITHMETIC = re.compile(r"(?:(\d{1,6})([*-]))?([A-Za-z]\w*)(?:([+-])(\d{1,6}))?")


@dataclass(frozen=True)
class Slot:
    """A named part of a pattern: a number (between `first` and `last`), one of `choices`, any text, or a word of the map."""

    name: str
    choices: tuple[str, ...] = ()
    first: int = 0
    last: int = 999_999
    is_text: bool = False
    word: Words | None = None

    @property
    def regex(self) -> str:
        """What its text looks like; a range is checked afterwards."""
        if self.word is not None:
            return self.word.regex
        if self.is_text:
            return ".*"
        return "|".join(map(re.escape, sorted(self.choices, key=len, reverse=True))) or "[0-9]{1,6}"

    def value(self, text: str) -> SlotValue | None:
        """What the text stands for; None if it is not of the range, or no such word."""
        if self.word is not None:
            return self.word.ours(text)
        if self.choices or self.is_text:
            return text
        return number if self.first <= (number := int(text)) <= self.last else None


@dataclass(frozen=True)
class Pattern:
    """A pattern of foreign names."""

    text: str
    parts: tuple[str | Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Its named parts in order; one that occurs twice is there twice."""
        return tuple(p for p in self.parts if isinstance(p, Slot))

    @property
    def regex(self) -> str:
        """Without groups."""
        return "".join(re.escape(p) if isinstance(p, str) else f"(?:{p.regex})" for p in self.parts)

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        seen: set[str] = set()
        texts = []
        for part in self.parts:
            if isinstance(part, str):
                texts.append(re.escape(part))
            elif part.name in seen:
                texts.append(f"(?P={part.name})")
            else:
                seen.add(part.name)
                texts.append(f"(?P<{part.name}>{part.regex})")
        return re.compile("".join(texts), re.DOTALL)

    def match(self, name: str) -> dict[str, SlotValue] | None:
        """Slot -> what stands there in `name`; None if it does not fit."""
        if not self.slots:
            return {} if name == "".join(p for p in self.parts if isinstance(p, str)) else None
        found = self._compiled.fullmatch(name) if len(name) <= LONGEST else None
        if found is None:
            return None
        values: dict[str, SlotValue] = {}
        for slot in self.slots:
            value = slot.value(found[slot.name])
            if value is None:
                return None
            values[slot.name] = value
        return values


@dataclass(frozen=True)
class Words:
    """What `{name}` stands for: rows of a pattern and what we write for it, of which the first that fits counts.

    A row whose index would become negative does not fit.
    """

    name: str
    rows: tuple[tuple[Pattern, Template], ...]

    @property
    def regex(self) -> str:
        """Whatever any row matches."""
        return "|".join(pattern.regex for pattern, _ in self.rows)

    def ours(self, text: str) -> str | None:
        """Our spelling; None if no row fits."""
        for pattern, template in self.rows:
            values = pattern.match(text)
            if values is not None:
                with contextlib.suppress(ValueError):
                    return template.fill(values)
        return None


@dataclass(frozen=True)
class _Number:
    """`factor * name + offset`."""

    name: str
    factor: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Template:
    """One of our names, with parts that a pattern found."""

    text: str
    parts: tuple[str | _Number | Slot, ...]

    @property
    def names(self) -> frozenset[str]:
        """Of the slots that it is filled with."""
        return frozenset(p.name for p in self.parts if isinstance(p, _Number))

    @property
    def free(self) -> tuple[Slot, ...]:
        """Choices that no pattern decides: it stands for one name for each."""
        return tuple(dict.fromkeys(p for p in self.parts if isinstance(p, Slot)))

    def fill(self, values: Mapping[str, SlotValue]) -> str:
        """The name.

        Raises:
            ValueError: if an index becomes negative.
        """
        texts = []
        for part in self.parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            value = values[part.name]
            if isinstance(part, _Number) and isinstance(value, int):
                value = part.factor * value + part.offset
                if value < 0:
                    raise ValueError(f"{self.text!r} has the index {value}")
            texts.append(str(value))
        return "".join(texts)

    def all(self, values: Mapping[str, SlotValue]) -> Iterator[str]:
        """Every name that it stands for, in the order of the choices."""
        for chosen in itertools.product(*(slot.choices for slot in self.free)):
            yield self.fill({**values, **{slot.name: text for slot, text in zip(self.free, chosen, strict=True)}})


def read_pattern(text: str, words: Mapping[str, Words]) -> Pattern:
    """A pattern from its text.

    Raises:
        ValueError: if it is not one; the message says why.
    """
    parts: list[str | Slot] = []
    for part in _split(text):
        if isinstance(part, str):
            parts.append(part)
            continue
        named = _NAMED.fullmatch(part.text)
        if named is None:
            raise ValueError(f"{{{part.text}}}: expected a name, such as {{i}}, {{i:0..9}}, {{x:q|k|v}} or {{rest:*}}")
        parts.append(_slot(named[1], named[2], words))
    found = Pattern(text, tuple(parts))
    _check_slots(found)
    return found


def read_template(text: str, known: Mapping[str, Slot]) -> Template:
    """A template from its text; `known` has the slots of its pattern.

    Raises:
        ValueError: if it is not one, or names what the pattern does not have.
    """
    parts: list[str | _Number | Slot] = []
    for part in _split(text):
        if isinstance(part, str):
            parts.append(part)
            continue
        named = _NAMED.fullmatch(part.text)
        if named is not None and named[2] is not None:
            slot = _slot(named[1], named[2], {})
            if not slot.choices or slot.name in known:
                raise ValueError(f"{{{part.text}}}: on our side only choices that their side does not have, such as {{w:a|b}}")
            parts.append(slot)
            continue
        sum_ = _ARITHMETIC.fullmatch(part.text)
        if sum_ is None or (sum_[2] == "-" and sum_[4]):
            raise ValueError(f"{{{part.text}}}: expected a name or a sum, such as {{i}}, {{i+4}}, {{2*i+1}} or {{9-i}}")
        parts.append(_number(sum_))
        _check_known(part.text, parts[-1], known)
    found = Template(text, tuple(parts))
    if len(found.free) != len({slot.name for slot in found.free}):
        raise ValueError(f"{text!r}: a choice has other texts in its second place")
    return found


def _number(sum_: re.Match[str]) -> _Number:
    front, sign, name, plus, offset = sum_.groups()
    if sign == "-":
        return _Number(name, -1, int(front))
    return _Number(name, int(front or 1), int(f"{plus or '+'}{offset or 0}"))


def _check_known(text: str, number: object, known: Mapping[str, Slot]) -> None:
    assert isinstance(number, _Number)
    if number.name not in known:
        raise ValueError(f"{{{text}}}: their side has no {{{number.name}}}")
    slot = known[number.name]
    if text != number.name and (slot.choices or slot.is_text or slot.word is not None):
        raise ValueError(f"{{{text}}}: {number.name} is no number")


@dataclass(frozen=True)
class _Braced:
    text: str


def _split(text: str) -> list[str | _Braced]:
    """Literal texts and what stands in braces.

    Raises:
        ValueError: if braces do not match.
    """
    found: list[str | _Braced] = []
    last = 0
    for match in _SLOT.finditer(text):
        if match.start() > last:
            found.append(text[last : match.start()])
        last = match.end()
        if match[1] is not None:
            found.append(_Braced(match[1]))
        elif len(match[0]) == 2:
            found.append(match[0][0])
        else:
            raise ValueError("braces do not match; write {{ for a brace itself")
    return [*found, *([text[last:]] if last < len(text) else [])]


def _slot(name: str, kind: str | None, words: Mapping[str, Words]) -> Slot:
    if kind is None:
        return Slot(name, word=words.get(name))
    if kind == "*":
        return Slot(name, is_text=True)
    if between := _RANGE.fullmatch(kind):
        first, last = int(between[1]), int(between[2])
        if first > last:
            raise ValueError(f"{{{name}:{kind}}}: an empty range")
        return Slot(name, first=first, last=last)
    choices = tuple(kind.split("|"))
    if not all(choices) or len(set(choices)) < len(choices):
        raise ValueError(f"{{{name}:{kind}}}: expected a range 0..9, different texts a|b, or *")
    return Slot(name, choices=choices)


def _check_slots(pattern: Pattern) -> None:
    slots = pattern.slots
    by_name: dict[str, Slot] = {}
    for slot in slots:
        if by_name.setdefault(slot.name, slot) != slot:
            raise ValueError(f"{{{slot.name}}} means two things")
    if len(slots) > MOST_SLOTS or sum(slot.is_text for slot in slots) > MOST_TEXTS:
        raise ValueError(f"more than {MOST_SLOTS} parts in braces, or {MOST_TEXTS} of any text")
    for one, two in itertools.pairwise(pattern.parts):
        if isinstance(one, Slot) and isinstance(two, Slot):
            raise ValueError(f"nothing stands between {{{one.name}}} and {{{two.name}}}")


def folded(names: Sequence[str]) -> str:
    """Names that differ in numbers as one text, for messages.

    >>> folded(["a.0.b", "a.1.b", "a.2.b"])
    'a.{0..2}.b'
    """
    pieces = [re.split(r"([0-9]+)", name) for name in names]
    texts = []
    for column in zip(*pieces, strict=True):
        values = list(dict.fromkeys(column))
        if len(values) == 1:
            texts.append(values[0])
            continue
        numbers = sorted(map(int, values))
        run = numbers == list(range(numbers[0], numbers[-1] + 1))
        texts.append(f"{{{numbers[0]}..{numbers[-1]}}}" if run else "{" + ",".join(map(str, numbers)) + "}")
    return "".join(texts)
