"""Manifests with the least that a reader asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.reader import MANIFEST, SUMS
from snapgen_deploy.models.serialise import config_to_dict
from snapgen_deploy.system.files import files_under, sha256_of
from tests.checkpoint.cases import tiny_config


def component(path: str) -> dict[str, Any]:
    return {"path": path, "files": {}, "bytes": 5}


def least_manifest(targets: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """`targets`: components by role, by key."""
    return {
        "schema_version": 1,
        "name": "shapes",
        "width": "full",
        "device": {"id": "phone", "name": "A phone"},
        "config": config_to_dict(tiny_config()),
        "resolution": [64, 96],
        "latent": {"shape": [4, 8, 12]},
        "schedule": {"sampler": "euler", "shift": 3.0, "sigmas": [1.0, 0.0], "time_features": {"count": 16}},
        "prompts": [],
        "seeds": [],
        "gates": [],
        "files": {},
        "target_order": list(targets),
        "targets": {key: {"precision": "fp32", "components": components} for key, components in targets.items()},
        **changes,
    }


def files_of(root: Path) -> dict[str, Any]:
    """What a manifest says of the files below its bundle."""
    names = {p.relative_to(root).as_posix(): p for p in files_under(root)}
    return {n: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for n, p in names.items() if n not in (MANIFEST, SUMS)}
