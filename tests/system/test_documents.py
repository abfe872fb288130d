"""Documents are read strictly; messages about them are short, and say path, got and expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, Field

from snapgen_deploy.system.documents import DuplicateName, in_one_line, parse_json, parse_toml, several, shown
from snapgen_deploy.system.typed import Closed, Count, Number, OneOf, Text, read_as


def even(value: int) -> int:
    if value % 2:
        raise ValueError("an even number")
    return value


class Inner(Closed):
    unit: Annotated[str, OneOf(("ms", "s"))]
    value: Number


@dataclass
class Outer:
    name: Text
    pair: tuple[Count, Count]
    rows: tuple[Inner, ...] = ()
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    free: Annotated[list[Number], Field(min_length=2, description="a list of times")] | None = None
    even_one: Annotated[Count, AfterValidator(even)] = 2


@pytest.mark.parametrize(
    ("data", "problems"),
    [
        ({"name": "x", "pair": [1, 2]}, []),
        ({"name": "x", "pair": [1, 2], "later": 3}, []),  # an open table
        ([], ["document: got [], expected a table"]),
        ({"pair": [1]}, ["name: got nothing, expected a non-empty string", "pair: got [1], expected a list of 2"]),
        ({"name": " ", "pair": [1, True]}, ["name: got ' ', expected a non-empty string",
                                            "pair[1]: got true, expected an integer"]),
        ({"name": 3, "pair": [1, "2"], "kind": "c"}, ["name: got 3, expected a non-empty string",
                                                       "pair[1]: got '2', expected an integer, 1 to 2147483647",
                                                       "kind: got 'c', expected one of a, b"]),
        ({"name": "x", "pair": [1, 2.0], "even_one": 3}, ["pair[1]: got 2.0, expected an integer, 1 to 2147483647",
                                                      "even_one: got 3, expected an even number"]),
        ({"name": "x", "pair": "12", "inner": []}, ["pair: got '12', expected a list of 2", "inner: got [], expected a table"]),
        ({"name": "x", "pair": [1, 1], "inner": {"unti": "ms", "unit": "h"}},
         ["inner.unit: got 'h', expected one of ms, s", "inner.value: got nothing, expected a finite number",
          "inner.unti: got an unknown key, expected 'unit'?"]),
        ({"name": "x", "pair": [1, 1], "rows": [{"unit": "s", "value": float("nan"), "q": 1}]},
         ["rows[0].value: got nan, expected a finite number", "rows[0].q: got an unknown key, expected only unit, value"]),
        ({"name": "x", "pair": [1, 1], "free": [1]}, ["free: got [1], expected a list of times"]),
        ({"name": "x", "pair": [1, 1], "free": [1, 10**400]}, ["free[1]: got 1000", "expected a finite number"]),
    ],
)  # fmt: skip
def test_every_problem_with_path_got_and_expected(data: object, problems: list[str]) -> None:
    value, found = read_as(Outer, data)
    assert (value is None) == bool(problems)
    said = "; ".join(found)
    assert all(p in said for p in problems), said
    assert len(found) <= len(problems)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 3000 + "]" * 3000, "nested too deeply"),
        ("9" * 5000, "a number of thousands of digits"),
        ("NaN", "NaN is not valid JSON"),
        ("[-Infinity]", "-Infinity is not valid JSON"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c' occurs twice"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 120
    assert isinstance(caught.value, DuplicateName) == ("twice" in reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a = " + "{ b = " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("a = " + "9" * 5000, "a number of thousands of digits"),
        ("a = 1\na = 2", "Cannot overwrite a value"),
    ],
)
def test_toml_that_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_toml(text)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        (False, "false"),
        ("a", "'a'"),
        (1.5, "1.5"),
        ([1, "b"], "[1, 'b']"),
        (10**80, "1000000"),
    ],
)
def test_values_as_messages_show_them(value: object, text: str) -> None:
    assert shown(value).startswith(text)


def test_numbers_that_python_does_not_write() -> None:
    huge = parse_toml("pair = [1, 0x" + "f" * 5000 + "]")["pair"]
    _, (problem,) = read_as(Outer, {"name": "x", "pair": huge})
    assert problem == "pair[1]: got a number of thousands of digits, expected an integer, 1 to 2147483647"


def test_large_values_are_shown_short_and_quickly() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, list(range(10**6)), {str(i): i for i in range(10**5)}, 10**4000, deep):
        assert len(shown(value)) <= 60
    while deep:
        deep = deep.pop()  # type: ignore[assignment]  # freed level by level


def test_all_problems_where_they_fit_else_how_many_more() -> None:
    assert in_one_line("f", ["a\nb", "c"], "; fix it") == "f: a b; c; fix it"
    line = in_one_line("f" * 80, [f"path.{i}: got nothing, expected a number" for i in range(50)], "; fix it")
    assert len(line) <= 300
    assert line.endswith("; and 46 more; fix it")
    assert len(in_one_line("f", ["x" * 5000])) <= 300
    line = in_one_line("f", ["x" * 60] * 9, "; fix it", "; `inspect` lists all")
    assert len(line) <= 300
    assert line.endswith("xx; and 5 more; `inspect` lists all; fix it")


def test_names_where_they_fit_else_how_many_more() -> None:
    assert (several([]), several(["a", "b\nc"])) == ("none", "a, b c")
    for names in (["x" * 5000], [f"layer{i}" for i in range(10**5)], ["y" * 100, "z" * 100]):
        assert len(several(names)) <= 120
    assert several(["y" * 100, "z" * 100]) == "y" * 100 + " and 1 more"
