"""Validates decoded documents against a type, with pydantic.

Every problem of a document becomes `path: got X, expected Y`. What is expected comes from the type's schema: its
`description`, or its kind and bounds. A custom validator raises ValueError with what it expects, such as
`ValueError("one of fp16, fp32")`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from snapgen_deploy.system.documents import LONGEST_NAME, cut, shown

T = TypeVar("T")


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("a non-empty string")
    return value


Text = Annotated[str, AfterValidator(_not_blank), Field(description="a non-empty string")]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1, le=(1 << 31) - 1)]
Amount = Annotated[int, Field(strict=True, ge=0, lt=1 << 63, description="a whole number")]
Table = dict[str, Any]


class Closed(BaseModel):
    """A table that has no other keys than its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class OneOf:
    """Marks a text that is one of a few: `Annotated[str, OneOf(KINDS)]`."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.names))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _schema(kind: Any) -> Table:
    return _adapter(kind).json_schema()


def read_as(kind: type[T], data: object) -> tuple[T | None, list[str]]:
    """`data` as `kind` and no problems, or None and all problems, one text each.

    >>> read_as(dict[str, int], {"a": 1})
    ({'a': 1}, [])
    >>> read_as(dict[str, int], {"a": "x"})
    (None, ["a: got 'x', expected an integer"])
    """
    key: Any = kind
    adapter: TypeAdapter[T] = _adapter(key)
    try:
        return adapter.validate_python(data), []
    except ValidationError as error:
        schema = _schema(key)
        return None, [_line(found, schema) for found in error.errors(include_url=False)]


def _line(error: ErrorDetails, schema: Table) -> str:
    """One problem, from pydantic's record of it."""
    kind, at, value = error["type"], error["loc"], error["input"]
    if kind == "missing" and isinstance(at[-1], int):  # of a list that is too short: its value is the list
        kind, at = "too_short", at[:-1]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        names = sorted(_node(schema, at[:-1]).get("properties", ()))
        near = difflib.get_close_matches(str(at[-1]), names, 1)
        return f"{_path(at)}: got an unknown key, expected {repr(near[0]) + '?' if near else 'only ' + ', '.join(names)}"
    if at[-1:] == ("[key]",):
        at = at[:-2]
        expected = _words(_node(schema, at).get("propertyNames", {}))
    else:
        expected = _words(_node(schema, at))
    if kind == "value_error":
        expected = str(error["ctx"]["error"])
    elif kind == "string_unicode":
        expected = "text without lone surrogates"
    return f"{_path(at)}: got {'nothing' if kind == 'missing' else shown(value)}, expected {expected}"


def _path(at: Sequence[int | str]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).removeprefix(".")
    return cut(text, LONGEST_NAME) or "document"


def _node(schema: Table, at: Sequence[int | str]) -> Table:
    """The part of a JSON schema that describes the value at the path `at` of the document."""
    node = _resolved(schema, schema)
    for part in at:
        if isinstance(part, int):
            items = node.get("prefixItems", ())
            inner = items[part] if part < len(items) else node.get("items", {})
        else:
            inner = node.get("properties", {}).get(part) or node.get("additionalProperties", {})
        node = _resolved(inner if isinstance(inner, dict) else {}, schema)
    return node


def _resolved(node: Table, schema: Table) -> Table:
    """A node with its reference followed; of `X | None` the node of X."""
    if "anyOf" in node:
        return _resolved(node["anyOf"][0], schema)
    return _resolved(schema["$defs"][node["$ref"].rpartition("/")[2]], schema) if "$ref" in node else node


def _words(node: Table) -> str:
    kind = node.get("type")
    if kind == "object":
        return "a table" if not node.get("minProperties") else "a table that is not empty"
    if "description" in node:
        return str(node["description"])
    if "enum" in node or "const" in node:
        return f"one of {', '.join(map(str, node.get('enum', [node.get('const')])))}"
    if kind == "array":
        least, most = node.get("minItems", 0), node.get("maxItems")
        lengths = str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        return f"a list of {lengths}" if least or most else "a list"
    words = {"string": "a string", "integer": "an integer", "number": "a finite number", "boolean": "true or false"}
    low, high = (_number(node[name]) if name in node else "" for name in ("minimum", "maximum"))
    above = f" above {node['exclusiveMinimum']:g}" if "exclusiveMinimum" in node else ""
    limits = f", {low} to {high}" if low and high else f", at most {high}" if high else ""
    return f"{words.get(str(kind), 'another value')}{above}{limits}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
