"""Students whose class is a user's own: a flat checkpoint under the class's names, and a configuration that says the rest.

    resolution = [64, 64]
    [student]
    arguments = { hidden = 64, depth = 2 }
    latent_channels = 4
    latent_factor = 8
    time_features = 64
    text_streams = [{ name = "text", dim = 32, length = 8 }]
    scheduler = { _class_name = "FlowMatchEulerDiscreteScheduler", shift = 3.0 }

The class is named on the command line alone, so that opening a file imports nothing that the file names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from snapgen_deploy.checkpoint.about import config_table
from snapgen_deploy.checkpoint.expected import expected_shapes
from snapgen_deploy.checkpoint.float8 import dequantised
from snapgen_deploy.checkpoint.lora import Adapter, Update
from snapgen_deploy.checkpoint.opener import Checkpoint
from snapgen_deploy.checkpoint.renamed import RenamedSource
from snapgen_deploy.checkpoint.stored import stored_as
from snapgen_deploy.checkpoint.student_folder import bundle_name_of
from snapgen_deploy.checkpoint.tensors import locate
from snapgen_deploy.checkpoint.wrappers import Selection, unwrapped
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import DECODER, STUDENT, TEXT_ENCODER
from snapgen_deploy.families.registry import student_types
from snapgen_deploy.models.config import ModelConfig
from snapgen_deploy.models.module_config import ClassRecord, NamedModule, module_student_of
from snapgen_deploy.models.module_student import module_class
from snapgen_deploy.models.serialise import config_from_dict
from snapgen_deploy.system.files import sha256_of

OF_A_MODULE = "module"  # the family
_RECORDED = "code"  # field of `student` that only this package writes


@dataclass(frozen=True)
class ModuleReading:
    """How such a checkpoint is read."""

    module: str  # package.module:Class
    config: Path | None
    selection: Selection


def open_module(
    path: Path, reading: ModuleReading, adapters: Sequence[Adapter]
) -> tuple[Checkpoint, list[tuple[Adapter, list[Update]]]]:
    """The student alone; adapters are returned as they are, for the tensors under our names.

    Raises:
        BadInput: if a file is missing or damaged, the configuration is invalid, or the class is not installed or makes no
            network of it.
    """
    if reading.config is None:
        raise BadInput(f"--module {reading.module}: has no configuration; name its file with --config")
    found = module_class(reading.module)
    plain = _config(path, reading.config)
    code = ClassRecord(reading.module, found.distribution, found.version, sha256_of(found.file))
    config = replace(plain, student=NamedModule.of(module_student_of(plain.student), code))
    config = replace(config, shift=module_student_of(config.student).schedule(config.steps).shift)
    source, index = locate(path)
    expected = [name.removeprefix(f"{STUDENT}.") for name in expected_shapes(config)]
    taken = unwrapped(path, source, reading.selection, partial(_fitting, frozenset(expected)))
    numbers, _ = dequantised(path, taken.source)
    named = RenamedSource(numbers, {f"{STUDENT}.{name}": name for name in numbers.tensors})
    extra = [file for file in (index, reading.config) if file is not None]
    checkpoint = Checkpoint(
        path=path,
        config=config,
        tokenizers={},
        license=None,
        files=(*source.files, *extra, *found.sources),
        stored=stored_as(named),
        notes=(taken.said,) if taken.said else (),
    )
    return checkpoint, [(adapter, list(adapter.updates)) for adapter in adapters]


def _fitting(expected: frozenset[str], names: Sequence[str]) -> int:
    return len(expected.intersection(names))


def _config(path: Path, given: Path) -> ModelConfig:
    """The configuration in a file, with what it may leave out."""
    said = config_table(given)
    student = said.get(STUDENT)
    if isinstance(student, dict) and _RECORDED in student:
        raise BadInput(f"{given}: student.{_RECORDED}: is written by exports, expected none; the class is named with --module")
    document: dict[str, Any] = {
        DECODER: None,
        TEXT_ENCODER: None,
        "name": bundle_name_of(path),
        "trained": True,
        "shift": 1.0,  # that of the scheduler takes its place
        "steps": 4,
        "prompts": [],
        "family": OF_A_MODULE,
    }
    if (family := said.get("family", OF_A_MODULE)) != OF_A_MODULE:
        raise BadInput(f"{given}: family: got {family!r}, expected {OF_A_MODULE}, which --module is of")
    return config_from_dict(document | said, student_types(), str(given))
