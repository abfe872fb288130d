"""The stage that writes a bundle: files that all targets share, the manifest with the hashes, the record of the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.preview import write_preview
from snapgen_deploy.bundle.reader import CONFORMANCE, GOLDEN, write_manifest
from snapgen_deploy.bundle.sizes import preview_name, vectors_name
from snapgen_deploy.check.conformance import Conforming, HeldTarget, conformance_of, steadiest, write_conformance
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Role
from snapgen_deploy.families.component import PICTURE
from snapgen_deploy.families.names import tokenizer_file
from snapgen_deploy.golden.vectors import GoldenVectors
from snapgen_deploy.job.layout import tokenizers_of
from snapgen_deploy.job.manifest import manifest_of
from snapgen_deploy.job.records import forget
from snapgen_deploy.job.run_record import write_run_record
from snapgen_deploy.job.sizes import SIZES_FOLDER
from snapgen_deploy.job.state import ExportJob, Made
from snapgen_deploy.quantise.report import copy_into
from snapgen_deploy.system.files import sha256_of


def write_bundle(job: ExportJob, made: Made) -> Mapping[str, Any]:
    """Write everything in the bundle's directory except the components, which are there; returns the record of the run."""
    root = job.stage.root
    forget(root)
    shutil.rmtree(root / SIZES_FOLDER, ignore_errors=True)  # exists if the run can be resumed
    if made.recipe.folder is not None:
        copy_into(root, made.recipe.folder)
    tokenizers = tokenizers_of(job.checkpoint)
    for role, text in tokenizers.items():
        (root / tokenizer_file(role)).write_text(text, encoding="utf-8")
    _write_vectors(root, made)
    write_conformance(root / CONFORMANCE, _conformance(job, made, tokenizers))
    if (golden := job.golden) is not None:
        _copy_golden(golden, root / GOLDEN)
    write_manifest(root, manifest_of(job, made))
    return write_run_record(root, made)


def _conformance(job: ExportJob, made: Made, tokenizers: Mapping[Role, str]) -> dict[str, Any]:
    """The cases for apps, of the default picture size."""
    plan, config = job.plan, job.checkpoint.config
    targets = {target.key: HeldTarget(target.precision, target.limits) for target in plan.targets}
    checked = [target.checked.by_size[plan.sizes[0]].decibels for target in made.targets.values()]
    pictured = steadiest(one for one in checked if one)
    of = Conforming(config, tokenizers, plan.latent, plan.noise, plan.batch, targets, pictured)
    return conformance_of(of, made.reference.vectors[plan.sizes[0]])


def _copy_golden(golden: GoldenVectors, to: Path) -> None:
    """The file that every gate was held to, so that `verify` can run them again."""
    try:
        shutil.copyfile(golden.path, to)
    except OSError as error:
        raise BadInput(f"{golden.path}: cannot be copied ({error.strerror})") from None
    if sha256_of(to) != golden.sha256:
        raise BadInput(f"{golden.path} was changed during the export; export again")


def _write_vectors(root: Path, made: Made) -> None:
    """Write test vectors for every picture size, and a preview if there are pictures."""
    from safetensors.numpy import save_file

    from snapgen_deploy.drawing.pipeline import to_bytes

    for number, (size, of) in enumerate(made.reference.vectors.items()):
        other = size if number else None
        # one metadata key only: the library writes several keys in an order that changes from run to run
        save_file(of.arrays, root / vectors_name(other), {"prompts": json.dumps(of.prompts)})
        if PICTURE in of.arrays:
            columns = {"reference": [to_bytes(p[None]) for p in of.arrays[PICTURE]]}
            checked = {key: target.checked.by_size[size] for key, target in made.targets.items()}
            columns |= {key: list(one.pictures) for key, one in checked.items() if one.pictures}
            write_preview(root / preview_name(other), of.prompts, columns)
