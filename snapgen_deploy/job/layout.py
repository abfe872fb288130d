"""Where a target's files are in a bundle: in one flat folder, or in the folders that the device profile asks for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.export.base import Role
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.job.records import Exported
from snapgen_deploy.job.sizes import relocated, whole
from snapgen_deploy.job.state import ExportJob
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.plan.plan import TargetPlan


def folder_of(root: Path, key: str) -> Path:
    """The folder of a target's files in a bundle.

    >>> folder_of(Path("bundle"), "onnx:cpu").as_posix()
    'bundle/onnx-cpu'
    """
    return root / key.replace(":", "-")


def is_arranged(target: TargetPlan) -> bool:
    """Whether the target's files are moved into the folders of a layout once all exist."""
    return _module_of(target) is not None


def _module_of(target: TargetPlan) -> str | None:
    """The module with the `arrange` and `renamed` of the layout that the option `folders` names; None for one flat folder."""
    return target.spec.folders.get(dict(target.options).get("folders", ""))


def arranged(job: ExportJob, target: TargetPlan, parts: Mapping[Role, Exported]) -> Mapping[Role, Exported]:
    """The components in the folder layout that the profile asks for."""
    if (name := _module_of(target)) is None:
        return parts
    layout = import_module(name)
    root, checkpoint = folder_of(job.stage.root, target.key), job.checkpoint
    artifacts = {role: whole(part) for role, part in parts.items()}
    moved = layout.arrange(root, artifacts, checkpoint.config, tokenizers_of(checkpoint), job.plan.width, batch=job.plan.batch)
    return {role: relocated(part, moved[role], layout.renamed) for role, part in parts.items()}


def tokenizers_of(checkpoint: Checkpoint) -> dict[Role, str]:
    """The tokenizer.json for apps, by text encoder. It pads to the encoder's length."""
    lengths = {spec.name: spec.reads.length for spec in components_of(checkpoint.config).encoders}
    return {
        role: WordTokenizer(text).padded_json(lengths[role]) if role in lengths else text
        for role, text in checkpoint.tokenizers.items()
        if text
    }
