"""What holds of every module of the package: few positional parameters, nothing handed over as an unpacked tuple."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from snapgen_deploy.system.source import package_root
from tests.test_architecture import dotted, python_files

MOST_POSITIONAL = 6
Function = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Module -> what it holds."""
    return {dotted(path): ast.parse(path.read_text(encoding="utf-8")) for path in python_files(package_root())}


def functions(tree: ast.AST, method: bool = False) -> Iterator[tuple[Function, int]]:
    """Every function, with the number of parameters that a caller may give by place."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
            own = int(method and not static)  # self or cls
            yield node, len(node.args.posonlyargs) + len(node.args.args) - own
        yield from functions(node, isinstance(node, ast.ClassDef))


def test_no_function_takes_many_parameters_by_place(trees: dict[str, ast.Module]) -> None:
    """Commands of the command line included: typer gives every parameter by its name."""
    many = [
        f"{module}.{function.name}: {count}"
        for module, tree in trees.items()
        for function, count in functions(tree)
        if count > MOST_POSITIONAL
    ]
    assert many == []


def test_child_processes_get_no_unpacked_tuples(trees: dict[str, ast.Module]) -> None:
    """What a process is given is named: a frozen dataclass, or a few arguments where the call stands."""
    unpacked = [
        f"{module}:{node.lineno}"
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "run_in_child"
        and any(isinstance(a, ast.Starred) and not _is_own_parameter(tree, node, a) for a in node.args)
    ]
    assert unpacked == []


def _is_own_parameter(tree: ast.Module, call: ast.Call, given: ast.Starred) -> bool:
    """Whether the tuple is the `*args` of a function around the call, which hands on what it got."""
    return isinstance(given.value, ast.Name) and any(
        function.args.vararg is not None and function.args.vararg.arg == given.value.id and call in ast.walk(function)
        for function, _ in functions(tree)
    )


def test_the_rules_can_fail() -> None:
    tree = ast.parse(
        "class A:\n"
        "    def few(self, a, b, c, d, e, f, *, g): ...\n"
        "    @staticmethod\n"
        "    def many(a, b, c, d, e, f, g): ...\n"
        "def outer():\n"
        "    def inner(a, b, c, d, e, f, g, h): ...\n"
    )
    assert {f.name: count for f, count in functions(tree)} == {"few": 6, "many": 7, "outer": 0, "inner": 8}
