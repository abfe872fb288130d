"""Reading a bundle of several picture sizes: its files' names, and its manifest as one size sees it.

What such a manifest holds: `snapgen_deploy.job.manifest_sizes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def vectors_name(size: str | None) -> str:
    """File of the test vectors: of the default size, or of another one."""
    return f"test_vectors-{size}.safetensors" if size else "test_vectors.safetensors"


def preview_name(size: str | None) -> str:
    """File of the preview: of the default size, or of another one."""
    return f"preview-{size}.png" if size else "preview.png"


def at_size(manifest: Mapping[str, Any], size: str) -> dict[str, Any]:
    """The manifest as if the bundle held one of its sizes alone; `vectors_of` names it where it is not the default one."""
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
