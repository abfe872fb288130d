"""The inputs of the components while the fp32 reference draws: all calibration inputs, recorded once and kept on disk.

They come from real few-step trajectories, not from noised pictures, since a quantised student only ever sees such inputs.
Samples are drawn and written one at a time, so that memory holds one sample; recorded arrays are memory-mapped. The same
checkpoint, width, latent, samples and number of threads give the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from snapgen_deploy.checkpoint import Checkpoint, CheckpointPlace
from snapgen_deploy.drawing.pipeline import Condition, Pipeline, StudentTrace, noise_for, stacked_rows, step_inputs
from snapgen_deploy.drawing.ports import condition_arrays, recorded_conditions, recorded_tokens, text_inputs
from snapgen_deploy.drawing.prompts import Sample
from snapgen_deploy.drawing.reference import encoded_conditions, reference_runners, schedule_of
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role
from snapgen_deploy.families.component import LATENT, Components, ComponentSpec
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import ModelConfig, Schedule
from snapgen_deploy.models.noise import TORCH
from snapgen_deploy.system.documents import LONGEST_NAME, cut, parse_json
from snapgen_deploy.system.progress import OnProgress, ignore_progress
from snapgen_deploy.system.typed import Closed, read_as

TRAJECTORIES_INDEX = "trajectories.json"  # written last: a folder without it is not complete


NO_PROMPT = "no prompt: seeded random text"  # label of a picture where nothing reads prompts


@dataclass(frozen=True)
class Trajectories:
    """Recorded samples: P pictures of S steps each; arrays are memory-mapped.

    `arrays`: latents and velocities (P, S, C, h, w), drawn (P, C, h, w), per text stream its embeddings (P, L, dim),
    `<stream>_mask` (P, L) and perhaps `<stream>_pooled` (P, N), and per text encoder tokens (P, L) int32 with mask (P, L). With
    guidance, velocities are (P, S, 2, C, h, w), and the arrays of text and tokens have a twin `negative.<name>`.
    """

    samples: tuple[Sample, ...]
    schedule: Schedule
    components: Components
    text: tuple[str, ...]  # names of the student's text inputs
    arrays: Mapping[str, np.ndarray]

    @property
    def steps(self) -> int:
        """Calls of the student for a picture."""
        return len(self.schedule.sigmas) - 1

    def student(self, sample: int, step: int) -> Arrays:
        """The student's inputs at one step of one sample, by the names of its ports: one row, with guidance two."""
        text = stacked_rows([condition.text for condition in self.conditions([sample], ())])
        latent = _row(self.arrays["latents"][sample], step)
        return step_inputs(latent, self.schedule.features(step), text, self.rows)

    def velocity(self, sample: int, step: int) -> np.ndarray:
        """The fp32 student's velocity there, (1, C, h, w), with guidance (2, C, h, w)."""
        found = _row(self.arrays["velocities"][sample], step)
        return found if self.rows == 1 else found[0]

    def conditions(self, samples: Sequence[int], roles: Collection[Role] | None = None) -> list[Condition]:
        """What some samples are of; `text` is what the reference's encoders made of it, `roles` those that get tokens."""
        return recorded_conditions(self.components, self.arrays, samples, text=self.text, roles=roles)

    @property
    def rows(self) -> int:
        """Rows of one call of the student."""
        return self.components.denoiser.rows

    def inputs(self, role: Role) -> Iterator[Arrays]:
        """Every recorded input of a component by the names of its ports; none if there is no such component."""
        for spec in (s for s in self.components if s.name == role):
            for sample in range(len(self.samples)):
                yield from _INPUTS[spec.part](self, spec, sample)


def _encoded(of: Trajectories, spec: ComponentSpec, sample: int) -> Iterator[Arrays]:
    yield from recorded_tokens(of.components, of.arrays, [sample], (spec.name,)).values()


def _denoised(of: Trajectories, spec: ComponentSpec, sample: int) -> Iterator[Arrays]:
    for step in range(of.steps):
        yield of.student(sample, step)


def _decoded(of: Trajectories, spec: ComponentSpec, sample: int) -> Iterator[Arrays]:
    yield {LATENT: _row(of.arrays["drawn"], sample)}


_INPUTS = {"encode": _encoded, "denoise": _denoised, "decode": _decoded}


@dataclass(frozen=True)
class Recording:
    """The input of the child process that draws and records the reference."""

    checkpoint: CheckpointPlace
    width: str
    latent: tuple[int, int, int]  # channels, height, width
    samples: tuple[Sample, ...]
    folder: Path
    threads: int

    def run(self, opened: Checkpoint, on_progress: OnProgress = ignore_progress) -> Trajectories:
        """`record` with so many threads."""
        import torch

        torch.set_num_threads(self.threads)
        count = len(self.samples)
        return record(opened, self.width, self.latent, self.samples, self.folder, lambda done: on_progress(done, count))


def record(
    checkpoint: Checkpoint,
    width: str,
    latent: tuple[int, int, int],
    samples: Sequence[Sample],
    folder: Path,
    on_sample: Callable[[int], None] = lambda done: None,
) -> Trajectories:
    """Draw every sample with the fp32 reference at `width` and record the inputs of its components in `folder`.

    `latent` is (channels, height, width). A folder that already holds these samples is reused; an incomplete one is never left,
    since it gets its name last. `on_sample` gets how many samples are done. Streams without an encoder get seeded random
    embeddings, an encoder without a tokenizer seeded random tokens, as in `reference.make_vectors`.

    Raises:
        BadInput: if there are no samples, or a latent that the student draws is not finite.
    """
    if not samples:
        raise BadInput("calibration: got no prompts; give at least one")
    if (folder / TRAJECTORIES_INDEX).is_file():
        with suppress(BadInput):  # damaged: drawn again
            found = load_trajectories(folder, checkpoint.config)
            if found.samples == tuple(samples):
                return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _draw(checkpoint, width, latent, samples, part, on_sample)
        index = {"samples": [asdict(s) for s in samples], "arrays": _shapes({p.stem: _open(p) for p in part.glob("*.npy")})}
        (part / TRAJECTORIES_INDEX).write_text(json.dumps(index, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return load_trajectories(folder, checkpoint.config)


class _Index(Closed):
    samples: tuple[Sample, ...]
    arrays: dict[str, tuple[str, tuple[int, ...]]]


def _open(path: Path) -> np.ndarray:
    found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(array.dtype), array.shape) for name, array in sorted(arrays.items())}


def load_trajectories(folder: Path, config: ModelConfig) -> Trajectories:
    """The samples that `record` wrote to `folder`.

    Raises:
        BadInput: if they cannot be read.
    """
    try:
        index, problems = read_as(_Index, parse_json((folder / TRAJECTORIES_INDEX).read_text(encoding="utf-8")))
        if index is None:
            raise ValueError(problems[0])
        arrays = {path.stem: _open(path) for path in sorted(folder.glob("*.npy"))}
        if not index.arrays.items() <= _shapes(arrays).items():
            raise ValueError("its arrays are not those that were recorded")
    except Exception as error:  # numpy raises a dozen kinds for what is damaged
        said = cut(str(error), LONGEST_NAME)
        raise BadInput(f"trajectories in {folder} cannot be read ({said}); remove the folder and run again") from None
    return Trajectories(index.samples, schedule_of(config), components_of(config), text_inputs(config), arrays)


def _draw(
    checkpoint: Checkpoint,
    width: str,
    latent: tuple[int, int, int],
    samples: Sequence[Sample],
    folder: Path,
    on_sample: Callable[[int], None],
) -> None:
    """Write one file per array, row by row."""
    config, components = checkpoint.config, components_of(checkpoint.config)
    runners = reference_runners(checkpoint, width, ("encode", "denoise"))  # pictures are not kept
    pipeline = Pipeline(components, runners, schedule_of(config), latent)
    files: dict[str, np.memmap] = {}
    for number, sample in enumerate(samples):
        conditions = encoded_conditions(checkpoint, pipeline, sample.prompt, sample.seed)
        row = condition_arrays(components, conditions)
        trace = StudentTrace()
        noise = noise_for(sample.seed, latent, TORCH, pipeline.schedule.fresh)  # decides the bytes of files
        row["drawn"] = pipeline.denoise(noise, stacked_rows([c.text for c in conditions]), trace)
        if not np.isfinite(row["drawn"]).all():
            raise BadInput(f"calibration: the student at width {width} draws values that are not finite for {sample.prompt!r}")
        row["latents"], row["velocities"] = trace.arrays()
        for name, value in row.items():
            if name not in files:
                shape = (len(samples), *value.shape[1:])
                files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", value.dtype, shape)
            files[name][number] = value[0]
        on_sample(number + 1)
    for file in files.values():
        file.flush()


def _row(array: np.ndarray, index: int) -> np.ndarray:
    """One row as a batch of 1, copied: torch needs writable memory, which a view of the file is not."""
    return np.array(array[index : index + 1])
