"""A CycloneDX 1.6 bill of materials of a bundle: its models with licence, hashes, inputs, outputs and measured errors.

Format: https://cyclonedx.org/docs/1.6/json/ (ECMA-424). The document has no time of its own, so that equal bundles have equal
documents.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from snapgen_deploy import __version__
from snapgen_deploy.bundle.reader import MANIFEST, Bundle
from snapgen_deploy.checkpoint.licences import spdx_expression
from snapgen_deploy.system.files import sha256_of

_SPEC = "1.6"


def bill_of_materials(bundle: Bundle) -> dict[str, Any]:
    """The document for one bundle: the bundle itself, a model for each component of each target, and the checkpoint."""
    manifest = bundle.manifest
    digest = sha256_of(bundle.path / MANIFEST)
    stated = manifest["checkpoint"].get("license")
    parts: Mapping[str, str | None] = manifest.get("licenses") or {}
    roles = [(key, role) for key in bundle.targets for role in manifest["targets"][key]["components"]]
    models = [_model(bundle, key, role) | _licenses([parts.get(role, stated)]) for key, role in roles]
    origin = _checkpoint(manifest) | _licenses([stated])
    whole = {
        "type": "application",
        "bom-ref": "bundle",
        "name": bundle.name,
        "version": digest[:12],
        "description": f"{manifest['name']}, width {manifest['width']}, for {manifest['device']['name']}",
        "hashes": [{"alg": "SHA-256", "content": digest}],
        **_licenses([*parts.values()] or [stated]),
    }
    tool = {"type": "application", "name": "snapgen-deploy", "version": __version__}
    depends = {"ref": "bundle", "dependsOn": [model["bom-ref"] for model in models]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": _SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'sha256:{digest}')}",
        "version": 1,
        "metadata": {"tools": {"components": [tool]}, "component": whole},
        "components": [*models, origin],
        "dependencies": [
            depends,
            *({"ref": model["bom-ref"], "dependsOn": [origin["bom-ref"]]} for model in models),
        ],
    }


def as_text(document: Mapping[str, Any]) -> str:
    """The document as a file has it."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _model(bundle: Bundle, key: str, role: str) -> dict[str, Any]:
    target, component = bundle.manifest["targets"][key], bundle.manifest["targets"][key]["components"][role]
    files = {name: entry["sha256"] for name, entry in sorted(component["files"].items())}
    lines = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    gates = [g for g in bundle.manifest["gates"] if g["target"] == key and g["component"] == role]
    card: dict[str, Any] = {
        "modelParameters": {
            "task": "text-to-image",
            "architectureFamily": "diffusion",
            "modelArchitecture": f"{bundle.config.family} {role}",
            "inputs": [{"format": _port(port)} for port in component.get("inputs", ())],
            "outputs": [{"format": _port(port)} for port in component.get("outputs", ())],
        }
    }
    metrics = [
        {"type": g["name"], "value": str(g["value"]), "slice": g["detail"] or "all"} for g in gates if g["value"] is not None
    ]
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    if not bundle.manifest.get("trained", True):
        card["considerations"] = {"technicalLimitations": ["The weights are untrained: pictures are noise."]}
    return {
        "type": "machine-learning-model",
        "bom-ref": f"{key} {role}",
        "name": f"{bundle.manifest['name']} {role}",
        "version": target["precision"],
        "description": f"{key}, {target['precision']}; SHA-256 of the lines `hash  name` of its files",
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(lines.encode()).hexdigest()}],
        "modelCard": card,
        "components": [
            {"type": "file", "bom-ref": name, "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
            for name, digest in files.items()
        ],
    }


def _checkpoint(manifest: Mapping[str, Any]) -> dict[str, Any]:
    digest = manifest["checkpoint"]["sha256"]
    return {
        "type": "machine-learning-model",
        "bom-ref": "checkpoint",
        "name": manifest["name"],
        "version": digest[:12],
        "description": "The checkpoint that the models were exported from; not part of the bundle.",
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def _licenses(stated: Sequence[str | None]) -> dict[str, Any]:
    """What holds together: one SPDX expression where all are, else their texts; nothing where none is stated."""
    named = [licence for licence in dict.fromkeys(stated) if licence]
    if not named:
        return {}
    if all(spdx_expression(licence) for licence in named):
        terms = [f"({licence})" if len(named) > 1 and " " in licence else licence for licence in named]
        return {"licenses": [{"expression": " AND ".join(terms)}]}
    return {"licenses": [{"license": {"name": licence}} for licence in named]}


def _port(port: Mapping[str, Any]) -> str:
    return f"{port['name']}: {port['dtype']} {list(port['shape'])}"
