"""Where a target's files lie in a bundle: in one flat folder, or in the folders that its profile asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.export.base import Role
from snapgen_deploy.job.records import Exported
from snapgen_deploy.job.sizes import relocated, whole
from snapgen_deploy.job.state import Job
from snapgen_deploy.models.tokenizer import WordTokenizer
from snapgen_deploy.plan.plan import TargetPlan


def folder_of(root: Path, key: str) -> Path:
    """Where a target's files lie in a bundle."""
    return root / key.replace(":", "-")


def is_arranged(target: TargetPlan) -> bool:
    """Whether the target's files are moved into the folders of a layout when all are there."""
    return dict(target.options).get("folders") == "diffusers"


def arranged(job: Job, target: TargetPlan, parts: Mapping[Role, Exported]) -> Mapping[Role, Exported]:
    """The folder layout that the profile asks for; only `diffusers` differs from one flat folder a target."""
    if not is_arranged(target):
        return parts
    from snapgen_deploy.export.onnx.optimum_layout import arrange, renamed

    root, checkpoint = folder_of(job.stage.root, target.key), job.checkpoint
    artifacts = {role: whole(part) for role, part in parts.items()}
    moved = arrange(root, artifacts, checkpoint.config, tokenizer_of(checkpoint), width=job.plan.width)
    return {role: relocated(part, moved[role], renamed) for role, part in parts.items()}


def tokenizer_of(checkpoint: Checkpoint) -> str | None:
    """The tokenizer.json that an app is to use: it pads to the text encoder's length; None where prompts are not read."""
    encoder = checkpoint.config.text_encoder
    if not checkpoint.tokenizer or encoder is None:
        return checkpoint.tokenizer or None
    return WordTokenizer(checkpoint.tokenizer).padded_json(encoder.length)
