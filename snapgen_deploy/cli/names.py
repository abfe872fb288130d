"""`inspect --names` and `inspect --suggest`: their tensors beside ours, and drafts of key maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from snapgen_deploy.cli.console import check_places, out, plain, print_json, save_text, say, tell

if TYPE_CHECKING:
    from snapgen_deploy.checkpoint import CheckpointPlace
    from snapgen_deploy.checkpoint.keymap.compare import Matched, SideBySide
    from snapgen_deploy.checkpoint.names import Names

MOST_LINES = 200  # tensors of a list


def show_names(place: CheckpointPlace, *, as_json: bool) -> None:
    """Print both sides; exit code 2 unless every tensor of ours has one of its shape and every rule applies."""
    from snapgen_deploy.checkpoint.names import compare_names

    names = compare_names(place)
    if as_json:
        print_json({"names": _as_dict(names), "notes": list(names.notes)})
    else:
        for note in names.notes:
            say(note)
        _print(names)
    if not _fits(names.comparison):
        raise typer.Exit(2)


def suggest_map(place: CheckpointPlace, output: Path | None, *, as_json: bool) -> None:
    """Print a drafted key map, or write it to `output`; what it matches goes to standard error."""
    from snapgen_deploy.checkpoint.names import draft_key_map

    check_places({"--output": output})
    text, compared, notes = draft_key_map(place)
    if output is not None:
        save_text(output, text, "--output")
    matched, total = sum(m.fits for m in compared.matched), len(compared.matched) + len(compared.missing)
    if as_json:
        left = {"missing": [m.ours for m in compared.missing], "unused": list(compared.unused)}
        print_json({"key_map": text, "matched": matched, "tensors": total, **left, "notes": list(notes)})
        return
    for note in notes:
        tell(note)
    if output is None:
        out().file.write(text)
    tell(f"the draft finds {matched} of {total} tensors; check it with --names")


def _fits(found: SideBySide) -> bool:
    """Whether nothing is missing, left over or of another shape."""
    return not (found.missing or found.unused or found.problems) and all(m.fits for m in found.matched)


def _as_dict(names: Names) -> dict[str, Any]:
    """Both sides as plain data."""
    found = names.comparison

    def theirs(name: str) -> dict[str, Any]:
        info = names.theirs[name]
        return {"name": name, "shape": list(info.shape), "dtype": info.dtype}

    def matched(m: Matched) -> dict[str, Any]:
        made = None if m.shape is None else list(m.shape)
        return {
            "name": m.ours,
            "shape": list(m.expected),
            "theirs": [theirs(n) for n in m.theirs],
            "rule": m.rule or None,
            "becomes": made,
        }

    return {
        "matched": [matched(m) for m in found.matched if m.fits],
        "misshaped": [matched(m) for m in found.matched if not m.fits],
        "missing": [{"name": m.ours, "shape": list(m.expected), "near": [theirs(n) for n in m.near]} for m in found.missing],
        "unused": [theirs(n) | {"becomes": new} for n, new in found.unused.items()],
        "left_out": [theirs(n) for n in found.dropped],
        "problems": list(found.problems),
    }


def _print(names: Names) -> None:
    from snapgen_deploy.checkpoint.keymap.compare import grouped, grouped_missing
    from snapgen_deploy.checkpoint.keymap.pattern import folded

    found = names.comparison
    rules: dict[str, list[Matched]] = {}
    for m in found.matched:
        if m.fits:
            rules.setdefault(m.rule, []).append(m)
    for rule, matched in rules.items():
        _head(plain(rule) if rule else "the same names", len(matched))
        for group in grouped(matched):
            _pair(names, group)
    if wrong := [m for m in found.matched if not m.fits]:
        _head("of another shape", len(wrong), "red")
        for group in grouped(wrong):
            _pair(names, group)
    if found.missing:
        _head("missing", len(found.missing), "red")
        for rows in grouped_missing(found.missing)[:MOST_LINES]:
            _line(2, folded([m.ours for m in rows]), rows[0].expected)
            for name in rows[0].near:
                _line(4, f"perhaps {plain(name)}", names.theirs[name].shape)
    _list(names, "not used", list(found.unused), "yellow")
    _list(names, "left out", list(found.dropped), "")
    for problem in found.problems:
        say(plain(problem), "red")
    good, total = sum(m.fits for m in found.matched), len(found.matched) + len(found.missing)
    say(f"{good} of {total} tensors found, {len(found.unused)} not used", "green" if _fits(found) else "red")


def _list(names: Names, title: str, listed: Sequence[str], style: str) -> None:
    if not listed:
        return
    _head(title, len(listed), style)
    for name in listed[:MOST_LINES]:
        _line(2, plain(name), names.theirs[name].shape)
    if len(listed) > MOST_LINES:
        say(f"  and {len(listed) - MOST_LINES} more")


def _head(title: str, count: int, style: str = "bold") -> None:
    out().print(Text.assemble((title, style), f"  {count} tensor{'s' if count > 1 else ''}"), soft_wrap=True)


def _pair(names: Names, group: Sequence[Matched]) -> None:
    """Ours, and below it theirs, of tensors that differ in numbers only."""
    from snapgen_deploy.checkpoint.keymap.pattern import folded

    first = group[0]
    _line(2, folded([m.ours for m in group]), first.expected)
    for i, name in enumerate(first.theirs):
        got = names.theirs[name].shape
        _line(4, "< " + plain(folded([m.theirs[i] for m in group])), got if got != first.expected else None)


def _line(indent: int, name: str, shape: Sequence[int] | None) -> None:
    size = "" if shape is None else "  " + ("x".join(map(str, shape)) or "one number")
    out().print(Text.assemble(" " * indent, name, (size, "dim")), soft_wrap=True)
