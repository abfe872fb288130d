"""Nothing outside of a family's own files names it, and roles are named once."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapgen_deploy.system.source import package_root

# Of each family: whether a name is its own, and its files: networks, configuration, presets, its rewrite, its record, and what
# was published about its speed.
DIT = frozenset({"dit", "dit_config", "dit_of", "elastic_dit", "elastic_name", "is_per_width"})
UNET = frozenset({"unet", "unet_config", "unet_of", "unet_variants", "rewrite_unet", "UNet", "UNetConfig", "UNetFamily"})
OF_FAMILIES: dict[str, tuple[Callable[[str], bool], tuple[str, ...]]] = {
    "ElasticDiTFamily": (
        lambda name: "DiT" in name or name in DIT,
        (
            "models/__init__.py", "models/dit.py", "models/dit_config.py", "models/presets.py", "sparse/",
            "families/elastic_dit.py", "families/dit_variants.py", "latency/estimate/published.py",
        ),
    ),
    "UNetFamily": (
        lambda name: name in UNET,
        (
            "models/unet.py", "models/unet_config.py", "models/presets.py", "sparse/", "families/unet.py",
            "families/unet_variants.py",
        ),
    ),
}  # fmt: skip
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


@pytest.mark.parametrize("family", OF_FAMILIES)
def test_general_code_names_no_family(family: str) -> None:
    is_own, files = OF_FAMILIES[family]
    found = {path: sorted(filter(is_own, names_in(tree))) for path, tree in sources()}
    assert found[REGISTRY].count(family) == 2  # its import and its line
    assert {p: n for p, n in found.items() if n and not p.startswith(files) and p != REGISTRY} == {}
    assert all(any(found[p] for p in found if p.startswith(own)) for own in files)


def test_general_code_has_no_roles_as_text() -> None:
    found = {
        path: sorted(str(n.value) for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in ROLES)
        for path, tree in sources()
    }
    assert {p: n for p, n in found.items() if n and not p.startswith(WITH_KEYS)} == {}
