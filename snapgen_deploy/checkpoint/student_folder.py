"""Students of `diffusers`, from the folder that the library writes, and what such a folder does not say.

The folder of a pipeline has model_index.json, transformer/, scheduler/ and perhaps text encoders and vae/. Where there is a
component's folder alone, or a file, a configuration says the rest. It may name any field of a configuration, of `student` as
well, in the place of what the folder says:

    steps = 2
    prompts = ["a red ring"]
    [student]
    guidance_embedded = 4.5
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from snapgen_deploy.checkpoint.about import config_table
from snapgen_deploy.checkpoint.lora import Adapter, Update
from snapgen_deploy.checkpoint.opener import Checkpoint
from snapgen_deploy.checkpoint.pipeline_folder import PipelineFolder
from snapgen_deploy.checkpoint.renamed import RenamedSource
from snapgen_deploy.checkpoint.sources import KEYS
from snapgen_deploy.checkpoint.stored import stored_as
from snapgen_deploy.checkpoint.tensors import json_object, locate
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import DECODER, STUDENT, TEXT_ENCODER
from snapgen_deploy.families.registry import family_of, student_types
from snapgen_deploy.models.autoencoders import facts_of
from snapgen_deploy.models.config import LibraryDecoder, ModelConfig, TextStream
from snapgen_deploy.models.diffusers_classes import CLASS
from snapgen_deploy.models.schedulers import FLOW
from snapgen_deploy.models.serialise import config_from_dict
from snapgen_deploy.models.students import LibraryStudent, student_facts

OF_DIFFUSERS = "diffusers"  # the family
_CONFIG = "config.json"


def is_library_student(path: Path, given: Path | None) -> bool:
    """Whether `path` holds a student of diffusers: by the config.json in the folder, or by the configuration that is given.

    A configuration of another student, given or in the header, comes before such a config.json.
    """
    said = {} if given is None else config_table(given)
    if "family" in said:
        return bool(said["family"] == OF_DIFFUSERS)
    student = said.get(STUDENT)
    if isinstance(student, dict) and not student.keys() <= {f.name for f in fields(LibraryStudent)}:
        return False
    beside = path / _CONFIG
    if not path.is_dir() or not beside.is_file() or CLASS not in json_object(beside):
        return False
    return KEYS[0] not in locate(path)[0].metadata


def open_student(
    path: Path, pipeline: PipelineFolder | None, given: Path | None, adapters: Sequence[Adapter]
) -> tuple[Checkpoint, list[tuple[Adapter, list[Update]]]]:
    """The student alone; adapters are returned as they are, for the tensors under our names.

    Raises:
        BadInput: if a file is missing or damaged, or the class, the scheduler or one of their settings is not taken.
    """
    source, index = locate(path)
    said = {} if given is None else config_table(given)
    beside = path / _CONFIG if path.is_dir() else None
    document, files = _document(path, beside, pipeline, said)
    where = str(given or beside or path)
    config = config_from_dict(document, student_types(), where)
    config = replace(config, shift=family_of(config).schedule(config).shift)
    named = RenamedSource(source, {f"{STUDENT}.{name}": name for name in source.tensors})
    extra = [f for f in (index, *files, given) if f is not None]
    checkpoint = Checkpoint(
        path=path,
        config=config,
        tokenizers={},
        license=None,
        files=(*source.files, *extra),
        stored=stored_as(named),
        folders={} if beside is None else {STUDENT: path},
    )
    return checkpoint, [(adapter, list(adapter.updates)) for adapter in adapters]


def usual_reading(config: ModelConfig, stream: TextStream) -> Mapping[str, Any]:
    """How the pipelines of a student of diffusers read the text of a stream; nothing for other students."""
    student = config.student
    return student.facts.reading(student.text_streams.index(stream)) if isinstance(student, LibraryStudent) else {}


def _document(
    path: Path, beside: Path | None, pipeline: PipelineFolder | None, said: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Path]]:
    """The configuration as a document, and the files that it was read from."""
    given = said.get(STUDENT, {})
    given = given if isinstance(given, dict) else {}
    files = [] if beside is None else [beside]
    config = given.get("config", {} if beside is None else json_object(beside))
    facts = student_facts(config)
    scheduler = given.get("scheduler")
    if scheduler is None and pipeline is not None and pipeline.scheduler is not None:
        scheduler = json_object(pipeline.scheduler)
    if scheduler is None:
        raise BadInput(
            f"student {path}: has no scheduler; give the pipeline's folder, or student.scheduler with --config, "
            f'such as {{"_class_name": "{FLOW}"}}'
        )
    factor = given.get("latent_factor", _factor(pipeline) or facts.FACTOR)
    student: dict[str, Any] = {
        "library": OF_DIFFUSERS,
        "config": config,
        "scheduler": scheduler,
        "latent_factor": factor,
        "text_streams": facts.streams(),
    }
    if facts.embeds_guidance:
        student["guidance_embedded"] = facts.GUIDANCE
    side = facts.side * factor if isinstance(factor, int) else 0
    document: dict[str, Any] = {
        STUDENT: student | given,
        DECODER: None,
        TEXT_ENCODER: None,
        "name": bundle_name_of(path if pipeline is None else pipeline.path),
        "trained": True,
        "shift": 1.0,
        "steps": 4,
        "resolution": [side, side],
        "prompts": [],
        "family": OF_DIFFUSERS,
    }
    return document | {key: value for key, value in said.items() if key != STUDENT}, files


def _factor(pipeline: PipelineFolder | None) -> int | None:
    """Pixels for each cell of the latent, by the pipeline's autoencoder."""
    if pipeline is None or pipeline.decoder is None or not (pipeline.decoder / _CONFIG).is_file():
        return None
    try:
        return facts_of(LibraryDecoder("diffusers", json_object(pipeline.decoder / _CONFIG))).factor
    except BadInput as error:
        raise BadInput(f"{DECODER} {pipeline.decoder}: {error}") from None


def bundle_name_of(path: Path) -> str:
    """A name for the bundle, after the folder or the file."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name.removesuffix(".safetensors"))
    return plain.lstrip("._-")[:64] or STUDENT
