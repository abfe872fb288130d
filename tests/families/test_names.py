"""Nothing outside of a family's own files names it, and roles are named once."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

from snapgen_deploy.system.source import package_root

# The elastic diffusion transformer itself: networks, configuration, presets, its rewrite, its record, and what was published
# about its speed.
OF_THE_FAMILY = (
    "models/__init__.py", "models/dit.py", "models/dit_config.py", "models/presets.py", "sparse/", "families/elastic_dit.py",
    "families/dit_variants.py", "latency/estimate/published.py",
)  # fmt: skip
REGISTRY = "families/registry.py"
ROLES = frozenset({"text_encoder", "student", "decoder"})
# Published keys: of a checkpoint's configuration (`student` and so on are its sections), of a device profile, of diffusers.
WITH_KEYS = ("families/", "models/serialise.py", "models/library_decoder.py", "device_profiles/schema.py")


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder, _, names in os.walk(package_root(), followlinks=True):  # some rooms are links here
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            yield path.relative_to(package_root()).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def names_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "").rpartition(".")[2], *(alias.name for alias in node.names))


def is_of_the_family(name: str) -> bool:
    return "DiT" in name or name in {"dit", "dit_config", "dit_of", "elastic_dit", "elastic_name", "is_per_width"}


def test_general_code_names_no_family() -> None:
    found = {path: sorted(filter(is_of_the_family, names_in(tree))) for path, tree in sources()}
    assert found[REGISTRY].count("ElasticDiTFamily") == 2  # its import and its line
    assert {p: n for p, n in found.items() if n and not p.startswith(OF_THE_FAMILY) and p != REGISTRY} == {}
    assert all(any(found[p] for p in found if p.startswith(own)) for own in OF_THE_FAMILY)


def test_general_code_has_no_roles_as_text() -> None:
    found = {
        path: sorted(str(n.value) for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in ROLES)
        for path, tree in sources()
    }
    assert {p: n for p, n in found.items() if n and not p.startswith(WITH_KEYS)} == {}
