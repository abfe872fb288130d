"""A model in the folder layout of diffusers: model_index.json, and a folder for each component.

model_index.json                 which folders there are
student/ (transformer/, unet/)   the student, as `open_checkpoint` reads it
text_encoder/, text_encoder_2/   as transformers saves them, with tokenizer/, tokenizer_2/ beside them
vae/                             as diffusers saves it; its decoder is taken
scheduler/                       the shift of the noise levels, which must be the student's
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.checkpoint.tensors import json_object
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.names import STUDENT, TEXT_ENCODER
from snapgen_deploy.models.config import ModelConfig

_INDEX = "model_index.json"
_SCHEDULER = Path("scheduler") / "scheduler_config.json"
_STUDENTS = (STUDENT, "transformer", "unet")
_AUTOENCODER = "vae"
_FLOW = "FlowMatchEulerDiscreteScheduler"  # the schedule of our few-step sampler


@dataclass(frozen=True)
class PipelineFolder:
    """Where the components of such a folder lie."""

    path: Path
    student: Path
    text_encoders: tuple[Path, ...]  # in the order of the student's text streams
    decoder: Path | None
    scheduler: Path | None  # its configuration
    files: tuple[Path, ...]  # beside those of the components: all that decides what is in it

    def check_schedule(self, config: ModelConfig) -> None:
        """Hold the student's schedule against the folder's.

        Raises:
            BadInput: if the folder's scheduler is of another class, or has another shift.
        """
        if self.scheduler is None:
            return
        said = json_object(self.scheduler)
        if (name := said.get("_class_name")) != _FLOW:
            raise BadInput(f"{self.scheduler}: got the class {str(name)[:80]}, expected {_FLOW}, which few-step students use")
        if said.get("use_dynamic_shifting"):
            raise BadInput(
                f"{self.scheduler}: got use_dynamic_shifting, expected a constant shift; save the one that was trained"
            )
        if (shift := said.get("shift", 1.0)) != config.shift:
            raise BadInput(f"{self.scheduler}: got shift {str(shift)[:40]}, the student's configuration says {config.shift:g}")


def is_pipeline(path: Path) -> bool:
    """Whether it is such a folder."""
    return (path / _INDEX).is_file()


def open_pipeline_folder(path: Path) -> PipelineFolder | None:
    """The components of a folder with a model_index.json; None if `path` is none.

    Raises:
        BadInput: if the index names a component without a folder, or there is no student or more than one.
    """
    if not is_pipeline(path):
        return None
    said = json_object(index := path / _INDEX)
    names = [name for name, value in said.items() if isinstance(value, list) and any(value)]
    missing = [name for name in names if not (path / name).is_dir()]
    if missing:
        raise BadInput(f"{index}: names {missing[0][:80]!r}, which is no folder here; fetch it, or remove it from the index")
    students = [name for name in _STUDENTS if name in names]
    if len(students) != 1:
        got = " and ".join(students) or "none"
        raise BadInput(f"{index}: got {got}, expected one of {', '.join(_STUDENTS)}: the folder of the student")
    encoders = sorted(name for name in names if name == TEXT_ENCODER or name.startswith(f"{TEXT_ENCODER}_"))
    scheduler = path / _SCHEDULER if (path / _SCHEDULER).is_file() else None
    return PipelineFolder(
        path=path,
        student=path / students[0],
        text_encoders=tuple(path / name for name in encoders),
        decoder=path / _AUTOENCODER if _AUTOENCODER in names else None,
        scheduler=scheduler,
        files=(index, *((scheduler,) if scheduler else ())),
    )
