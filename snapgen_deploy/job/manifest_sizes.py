"""The part of a manifest that only a bundle of several picture sizes has.

    "sizes": [{name, resolution, latent, test_vectors, preview, prompts}, ...]     the default size first
    "targets"/<key>/"sharing": {separate_bytes, bytes, bytes_saved}                compared with one bundle per size
    "targets"/<key>/"components"/<role>/"sizes"/<name>: the component at one size: path, entry, files, ports, ops, ...
    "targets"/<key>/"components"/<role>/"sharing": {separate_bytes, bytes, shared_bytes, bytes_saved}

Everything else describes the default size, so a reader that does not know sizes draws that one; the schema version is
therefore the same. `entry` is the function of a Core ML package or the method of an ExecuTorch program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from snapgen_deploy.bundle.sizes import preview_name, vectors_name
from snapgen_deploy.drawing.ports import ports_of
from snapgen_deploy.export.base import Role
from snapgen_deploy.job.records import Exported
from snapgen_deploy.job.state import ExportJob, Made
from snapgen_deploy.plan.plan import target_at

DESCRIBED = ("ops", "placement", "portable_ops", "lint")


def add_sizes(manifest: dict[str, Any], job: ExportJob, made: Made) -> None:
    """Add the sizes of the plan to the manifest of the job's bundle."""
    root, plan = job.stage.root, job.plan
    manifest["sizes"] = []
    for size in plan.sizes:
        one, other = plan.at(size), None if size == plan.sizes[0] else size
        manifest["sizes"].append(
            {
                "name": size,
                "resolution": list(one.resolution),
                "latent": list(one.latent),
                "test_vectors": vectors_name(other),
                "preview": preview_name(other) if (root / preview_name(other)).is_file() else None,
                "prompts": len(made.reference.vectors[size].prompts),
            }
        )
    for key, parts in made.parts.items():
        target = manifest["targets"][key]
        for role, part in parts.items():
            if part.joined is None:
                continue
            data = target["components"][role]
            data["sizes"] = {s: _size(job, s, key, role, part.at(s)) for s in plan.sizes}
            beside = (
                data["bytes"] - part.joined.bytes
            )  # files that a folder layout added; every separate bundle would have them
            separate = part.joined.separate_bytes + len(plan.sizes) * beside
            data["sharing"] = {
                "separate_bytes": separate,
                "bytes": data["bytes"],
                "shared_bytes": part.joined.shared_bytes,
                "bytes_saved": separate - data["bytes"],
            }
        target["sharing"] = _sharing(target["components"], len(plan.sizes))


def _size(job: ExportJob, size: str, key: str, role: Role, part: Exported) -> dict[str, Any]:
    """One component at one size."""
    root, plan = job.stage.root, job.plan.at(size)
    inputs, outputs, _ = ports_of(job.checkpoint.config, plan, role)
    about = asdict(part.description)
    return {
        "path": part.artifact.path.relative_to(root).as_posix(),
        "entry": part.artifact.entry,
        "files": [p.relative_to(root).as_posix() for p in part.artifact.files],
        "inputs": [asdict(p) for p in inputs],
        "outputs": [asdict(p) for p in outputs],
        "attention_form": target_at(plan, key).form,
        "macs": job.speed_estimates[size].macs.get(key, {}).get(role),
        "notes": list(part.description.notes),
        **{name: about[name] for name in DESCRIBED},
    }


def _sharing(components: Mapping[str, Any], count: int) -> dict[str, int]:
    """Bytes of one target's components here, and in `count` bundles of one size each, which would repeat the text encoder."""
    separate = sum(c["sharing"]["separate_bytes"] if "sharing" in c else count * c["bytes"] for c in components.values())
    here = sum(c["bytes"] for c in components.values())
    return {"separate_bytes": separate, "bytes": here, "bytes_saved": separate - here}
