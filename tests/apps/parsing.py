"""Sources of other languages, parsed by their grammars of tree-sitter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tree_sitter


def faults(path: Path, language: object) -> Iterator[str]:
    """Where a file does not parse."""
    tree = tree_sitter.Parser(tree_sitter.Language(language)).parse(path.read_bytes())
    wrong = (node for node in _nodes(tree.root_node) if node.is_error or node.is_missing)
    yield from (f"{path.name}:{node.start_point.row + 1}" for node in wrong)


def _nodes(node: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    yield node
    for child in node.children:
        yield from _nodes(child)
