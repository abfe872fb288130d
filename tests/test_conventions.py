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


# What each back end, or each module of lint rules, gives under one name: the same thing for another format.
# A caller imports such a module and not its names (`onnx_weights.stored`), so that the format stands in front.
SHARED_NAMES = {
    "LAYERS", "PRECISIONS", "RULES", "check_compressed", "compress", "dtype", "join", "load", "noise_inputs",
    "operations", "palettise", "quantise", "read", "run", "shared_bytes", "skipped", "stored", "thrifty", "write",
}  # fmt: skip
OPERATIONS = "export.mil.ops."  # a function there has the name of its operation, which Core ML gives


def public_names(tree: ast.Module) -> Iterator[str]:
    """The classes, functions and constants that a module defines for others; type variables are its own."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign) and not _is_type_variable(node.value):
            names = [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def _is_type_variable(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "TypeVar"


def test_a_public_name_is_one_thing(trees: dict[str, ast.Module]) -> None:
    """What only its own module uses begins with an underscore; what others use has a name that no other module gives."""
    homes: dict[str, set[str]] = {}
    for module, tree in trees.items():
        for name in () if module.startswith(OPERATIONS) else public_names(tree):
            homes.setdefault(name, set()).add(module)
    several = {name: sorted(found) for name, found in homes.items() if len(found) > 1}
    assert {n: m for n, m in several.items() if n not in SHARED_NAMES} == {}
    assert several.keys() >= SHARED_NAMES, "take what is one thing by now off the list"
    assert all(any(m.startswith("export.") for m in found) for found in several.values())


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
