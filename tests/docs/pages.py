"""The pages of the documentation, and what a reader would type or click in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_OTHERS = ("README.md", "benchmarks/README.md", "examples/shapes/README.md")
PAGES = tuple(sorted([*(ROOT / name for name in _OTHERS), *(ROOT / "docs").rglob("*.md")]))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """One command of a ```sh block, as the shell would split it."""

    page: Path
    words: tuple[str, ...]
    folder: str = "."  # of a `cd` before it on the same line

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {' '.join(self.words)}"


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [body for name, body in _FENCE.findall(text_of(page)) if name == language]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text_of(page))


def commands(page: Path) -> Iterator[Command]:
    """Every command of the page's ```sh blocks, in order; `a && b` are two."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            folder = "."
            for words in _parts(shlex.split(line, comments=True)):
                if words[0] == "cd":
                    folder = words[1]
                else:
                    yield Command(page, tuple(words), folder)


def _parts(words: list[str]) -> Iterator[list[str]]:
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        yield words[:end]
        words = words[end + 1 :]


def code_spans(page: Path) -> list[str]:
    """What stands between backticks in running text."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    """Targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
