"""The rooms of the package, and the direction in which they may import each other (docs/architecture.md)."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping, Set
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from snapgen_deploy.export.registry import specs
from snapgen_deploy.system.source import package_root

# From the ground up. A room imports rooms of the rows above its own, and itself.
ROWS = (
    ("asked", "assets", "errors"),
    ("extras",),
    ("",),
    ("system",),
    ("runtime",),
    ("models",),
    ("sparse",),
    ("families",),
    ("checkpoint",),
    ("export",),
    ("device_profiles", "machines"),
    ("plan",),
    ("drawing",),
    ("bundle", "quantise", "golden"),
    ("check", "apps"),
    ("job",),
    ("latency",),
    ("report",),
    ("cli",),
    ("command",),
)
ROW = {room: number for number, row in enumerate(ROWS) for room in row}
HANDED_ON = "runtime.draw"  # by the package's own name, which imports it when it is asked for
Graph = Mapping[str, set[str]]


def python_files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root, followlinks=True):  # export, latency and device_profiles are links here
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def dotted(path: Path) -> str:
    """`export/base.py` -> `export.base`, `export/__init__.py` -> `export`, the package itself -> ``."""
    return ".".join(path.relative_to(package_root()).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def room_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.fixture(scope="module")
def imports() -> Graph:
    """Module -> modules of the package that it imports, wherever in the file the statement stands."""
    files = {dotted(path): path for path in python_files(package_root())}
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names = set[str]()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
                names |= {_imported(node.module or "", alias.name, files.keys()) for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        own = {_own(name) for name in names if name.partition(".")[0] == "snapgen_deploy"}
        found[module] = own & files.keys() - {module}
    found[""].remove(HANDED_ON)
    return found


def _own(name: str) -> str:
    return name.removeprefix("snapgen_deploy").removeprefix(".")


def _imported(module: str, name: str, known: Set[str]) -> str:
    """The module that `from module import name` reads: `module.name` where that is one."""
    return f"{module}.{name}" if _own(f"{module}.{name}") in known else module


def test_rooms_import_downwards_only(imports: Graph) -> None:
    assert {room_of(m) for m in imports} == set(ROW), "name the new room in ROWS, and in docs/architecture.md"
    wrong = [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if room_of(module) != room_of(other) and ROW[room_of(other)] >= ROW[room_of(module)]
    ]
    assert wrong == []


def test_no_folders_and_no_modules_in_a_circle(imports: Graph) -> None:
    folders: dict[str, set[str]] = {}
    homes = {dotted(path): dotted(path.parent / "__init__.py") for path in python_files(package_root())}
    for module, others in imports.items():
        folders.setdefault(homes[module], set()).update(homes[other] for other in others)
    for folder, others in folders.items():
        others.discard(folder)
    TopologicalSorter(folders).prepare()  # raises CycleError
    # A package's __init__ gathers what its modules offer; those import each other, never the gathering.
    inside = {m: {o for o in others if not m.startswith(f"{o}.")} for m, others in imports.items()}
    TopologicalSorter(inside).prepare()


def test_the_rules_can_fail() -> None:
    with pytest.raises(ValueError, match="cycle"):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    assert ROW["cli"] > ROW["job"] > ROW["export"] > ROW["errors"]


# Rooms of one target each, what talks to the devices' own tools, and the list of targets itself.
TARGET_ROOMS = ("export.coreml", "export.coreai", "export.executorch", "export.onnx", "export.qnn", "export.web", "export.cuda")
MAY_NAME_TARGETS = (*TARGET_ROOMS, "latency.links", "machines.arm64", "export.registry")  # links and machines bring runtimes
PUBLISHED = ("latency.estimate.published", "export.coreml.spec")  # times that were published of Core ML


def general(module: str) -> bool:
    return not any(module == room or module.startswith(f"{room}.") for room in MAY_NAME_TARGETS)


def texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """Every string that is not a docstring."""
    owners = (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))
    docstrings = {id(o.body[0].value) for o in owners if o.body and isinstance(o.body[0], ast.Expr)}
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return (n for n in constants if id(n) not in docstrings)


def naming(tree: ast.Module) -> list[str]:
    """Strings of a module that hold a target's name or key as a word: `onnx`, `executorch:xnnpack`; not `.onnx`, `onnx/`."""
    names = sorted({spec.name for spec in specs().values()})
    word = re.compile(rf"(?<![\w./-])({'|'.join(map(re.escape, names))})(:\w+)?(?![\w/-])")
    return [f"line {n.lineno}: {n.value!r}" for n in texts(tree) if word.search(n.value)]


def test_general_code_names_no_target() -> None:
    files = {dotted(path): path for path in python_files(package_root())}
    found = {m: naming(ast.parse(p.read_text(encoding="utf-8"))) for m, p in files.items() if general(m)}
    assert {module: named for module, named in found.items() if named} == {}


def test_general_code_imports_no_target(imports: Graph) -> None:
    wrong = {(m, o) for m, others in imports.items() if general(m) for o in others if o.startswith(TARGET_ROOMS)}
    assert wrong == {PUBLISHED}


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("x = 'onnx'", 1),
        ("x = y == 'onnx:qnn'", 1),
        ("x = f'compare it as executorch:xnnpack, {y}'", 1),
        ("'''Of coreml.'''\nx = '.onnx', 'onnx/student', 'coremltools', 'onnxruntime'", 0),
    ],
)
def test_the_rule_about_names_can_fail(code: str, count: int) -> None:
    assert len(naming(ast.parse(code))) == count
