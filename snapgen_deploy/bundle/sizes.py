"""Bundles of several picture sizes: the names of their files, and the manifest reduced to one size.

`snapgen_deploy.job.manifest_sizes` documents the manifest of such a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def vectors_name(size: str | None) -> str:
    """Name of the file of test vectors; None stands for the default size.

    >>> vectors_name(None), vectors_name("96x128")
    ('test_vectors.safetensors', 'test_vectors-96x128.safetensors')
    """
    return f"test_vectors-{size}.safetensors" if size else "test_vectors.safetensors"


def preview_name(size: str | None) -> str:
    """Name of the preview's file; None stands for the default size."""
    return f"preview-{size}.png" if size else "preview.png"


def at_size(manifest: Mapping[str, Any], size: str) -> dict[str, Any]:
    """The manifest as if the bundle held only this picture size. Unless it is the default, `vectors_of` names it."""
    found = next(s for s in manifest["sizes"] if s["name"] == size)
    targets = {}
    for key, target in manifest["targets"].items():
        components = {}
        for role, data in target["components"].items():
            own = data.get("sizes", {}).get(size, {})
            files = {name: data["files"][name] for name in own.get("files", data["files"])}
            components[role] = {k: v for k, v in data.items() if k not in ("sizes", "sharing")} | own | {"files": files}
            components[role]["bytes"] = sum(f["bytes"] for f in files.values())
        targets[key] = {k: v for k, v in target.items() if k != "sharing"} | {"components": components}
    view = {k: v for k, v in manifest.items() if k != "sizes"}
    latent = {**manifest["latent"], "shape": found["latent"]}
    view |= {"resolution": found["resolution"], "latent": latent, "targets": targets}
    return view if size == manifest["sizes"][0]["name"] else view | {"vectors_of": size}
