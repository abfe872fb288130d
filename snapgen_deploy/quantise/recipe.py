"""A complete recipe: trajectories, sensitivities, allocation, tuning. Every stage is cached under a key of its inputs.

Stages that several recipes share (trajectories and sensitivities of one checkpoint and width) are made once; an interrupted run
resumes with the layer or the iteration that it had reached. Executor and threads are not part of the key.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.networks import load_student
from snapgen_deploy.checkpoint.unchanged import refuse_changed
from snapgen_deploy.drawing.prompts import samples_of
from snapgen_deploy.errors import BadInput
from snapgen_deploy.plan.mixed import MixedSettings, levels_for
from snapgen_deploy.quantise.allocation import Allocation, Candidate, allocate
from snapgen_deploy.quantise.curve import write_curve
from snapgen_deploy.quantise.executors import Executor
from snapgen_deploy.quantise.memory import moments_at_once
from snapgen_deploy.quantise.network import Network, load_tuned, quantise_network
from snapgen_deploy.quantise.sensitivity import Sensitivity, measure_sensitivities, measured_pictures
from snapgen_deploy.quantise.trajectories import NO_PROMPT, Trajectories, record
from snapgen_deploy.quantise.tuning import TunedNetwork, Tuning, tune_network
from snapgen_deploy.system.documents import parse_json
from snapgen_deploy.system.files import cache_root, discard_oldest, files_under, sha256_of, stamps, write_text
from snapgen_deploy.system.source import source_sha256
from snapgen_deploy.system.typed import Closed, Number, Table, read_as

_Report = Callable[[str, int, int], None]  # what is being done, how much is done, of how much
RECIPE, TUNED_WEIGHTS, CURVE, CURVE_PICTURE = "recipe.json", "tuned.safetensors", "tuning.json", "tuning.png"
RECIPE_SEAL = "recipe.sha256"  # over all of them: what is damaged is made again
_FILES = (RECIPE, TUNED_WEIGHTS, CURVE, CURVE_PICTURE)
FIX = "choose another place with XDG_CACHE_HOME"


@dataclass(frozen=True)
class Recipe:
    """A finished recipe: per layer its bits and palette, and the values of everything that stays exact."""

    bits: Mapping[str, int]
    palettes: Mapping[str, tuple[float, ...]]
    tuned: Mapping[str, Tensor]
    about: Mapping[str, Any]  # for the manifest: settings, sensitivities, allocation, tuning

    def apply(self, student: Network) -> Network:
        """Put it into the fp32 student that it was made for, in place; returns the student."""
        return load_tuned(quantise_network(student, self.palettes), self.tuned)


class _Layer(Closed):
    bits: Annotated[int, Field(strict=True, ge=1, le=8)]
    palette: Annotated[tuple[Number, ...], Field(min_length=1, max_length=256)]


class _RecipeFile(Closed):
    about: Table
    layers: dict[str, _Layer]
    tuned_sha256: str


def recipes_root() -> Path:
    """`$XDG_CACHE_HOME/snapgen-deploy/recipes`, or the same below ~/.cache."""
    return cache_root() / "recipes"


def make_recipe(
    checkpoint: Checkpoint,
    width: str,
    latent: tuple[int, int, int],
    settings: MixedSettings,
    executor: Executor,
    root: Path,
    *,
    report: _Report = lambda what, done, total: None,
) -> Path:
    """The folder of the finished recipe below `root`; finished stages are reused.

    `latent` is (channels, height, width). The folder holds recipe.json, tuned.safetensors, tuning.json and tuning.png.

    Raises:
        BadInput: if `root` cannot be written to, no worker can be reached, the checkpoint changes meanwhile, or its weights or
            velocities are not finite.
        GateFailed: if a loss of the tuning is not finite.
    """
    before = stamps(checkpoint.files)
    if (finished := finished_recipe(checkpoint, width, latent, settings, root)) is not None:
        return finished
    base, folder = _place(checkpoint, width, latent, settings, root)
    executor.check()
    _make_room(root)
    samples = samples_of(settings.prompts or (NO_PROMPT,), settings.pictures)
    count = len(samples)
    report("recording trajectories", 0, count)
    with _of_one_checkpoint(checkpoint, before, root, base):
        trajectories = record(
            checkpoint,
            width,
            latent,
            samples,
            root / f"trajectories-{base}",
            lambda n: report("recording trajectories", n, count),
        )
    levels = levels_for(settings.bits)
    known = root / f"sensitivity-{base}"
    with _of_one_checkpoint(checkpoint, before, root, base):  # nothing is read of it afterwards
        found, measured = _sensitivities(checkpoint, width, trajectories, executor, known, levels=levels, report=report)
        chosen = allocate([Candidate(s.name, s.weights, s.errors) for s in found.values()], settings.bits)
        palettes = {name: found[name].palettes[b] for name, b in chosen.bits.items()}
        student = quantise_network(load_student(checkpoint, width), palettes)
    state, total = root / f"tuning-{_hash(base, settings.as_key())}", settings.iterations
    report("tuning", 0, total)
    tuned = tune_network(
        student, trajectories, Tuning(total), state, lambda n, loss: report(f"tuning (error {loss:.2g})", n, total)
    )
    _write(folder, settings, found, measured, chosen, tuned)
    shutil.rmtree(state, ignore_errors=True)
    return folder


def finished_recipe(
    checkpoint: Checkpoint, width: str, latent: tuple[int, int, int], settings: MixedSettings, root: Path
) -> Path | None:
    """The folder of the recipe if it is finished, else None."""
    _, folder = _place(checkpoint, width, latent, settings, root)
    if load_recipe(folder) is None:
        return None
    _touch(folder)
    return folder


@contextmanager
def _of_one_checkpoint(checkpoint: Checkpoint, before: Sequence[tuple[int, int, int]], root: Path, base: str) -> Iterator[None]:
    """A block whose stages are removed if the checkpoint has changed since `before`: they would be stored under a wrong hash.

    Raises:
        BadInput: if it has changed, whatever else the block raised.
    """
    try:
        yield
    finally:
        try:
            refuse_changed(checkpoint, before)
        except BadInput:
            for stage in root.glob(f"*-{base}*"):
                if stage.is_dir():
                    shutil.rmtree(stage, ignore_errors=True)
                else:
                    stage.unlink(missing_ok=True)
            raise


def _place(
    checkpoint: Checkpoint, width: str, latent: tuple[int, int, int], settings: MixedSettings, root: Path
) -> tuple[str, Path]:
    """The key of the stages that several recipes share, and the recipe's folder."""
    base = _hash(_sources(), checkpoint.sha256(), width, latent, settings.prompts, settings.pictures)
    return base, root / f"recipe-{_hash(base, settings.as_key())}"


def load_recipe(folder: Path) -> Recipe | None:
    """A recipe that `make_recipe` wrote; None if there is none, or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        data, _ = read_as(_RecipeFile, parse_json((folder / RECIPE).read_text(encoding="utf-8")))
        if data is None or (folder / RECIPE_SEAL).read_text(encoding="utf-8") != seal_of(folder):
            return None
        tuned = load_file(folder / TUNED_WEIGHTS)
    except (OSError, ValueError, SafetensorError):
        return None
    bits = {name: layer.bits for name, layer in data.layers.items()}
    return Recipe(bits, {name: layer.palette for name, layer in data.layers.items()}, tuned, data.about)


def seal_of(folder: Path) -> str:
    """What the seal of the files in a recipe's folder has to say."""
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in _FILES)


def keep_within(root: Path, limit: int, spare: Path) -> None:
    """Remove the least recently used stages until `limit` bytes are left, but never the recipe `spare`."""
    entries = []
    try:
        for path in root.iterdir():
            if path != spare:
                files = files_under(path) if path.is_dir() else [path]
                newest = max((f.stat().st_mtime for f in files), default=0.0)
                entries.append((newest, sum(f.stat().st_size for f in files), path))
    except OSError:  # another process is removing stages at the same time, to the same limit
        return
    discard_oldest(entries, limit)


def _sensitivities(
    checkpoint: Checkpoint,
    width: str,
    trajectories: Trajectories,
    executor: Executor,
    folder: Path,
    *,
    levels: tuple[int, int],
    report: _Report,
) -> tuple[dict[str, Sensitivity], int]:
    """Every layer's sensitivity at these levels, and on how many pictures; each is appended to a file as it is found."""
    path = folder.with_name(f"{folder.name}-{levels[0]}-{levels[1]}.jsonl")
    student = load_student(checkpoint, width)
    from snapgen_deploy.quantise.layers import layers_of

    layers = layers_of(student)
    known = _read_lines(path, lambda s: s.name in layers and s.fits(layers[s.name].weight.numel(), levels))
    total, done, pictures = len(layers_of(student)), len(known), measured_pictures(student, trajectories)
    report("measuring layers", done, total)
    with path.open("a", encoding="utf-8") as file:

        def on_layer(found: Sensitivity) -> None:
            nonlocal done
            done += 1
            file.write(json.dumps(found.as_dict()) + "\n")
            file.flush()
            report("measuring layers", done, total)

        memory = moments_at_once(student, executor)
        found = measure_sensitivities(
            student, trajectories, pictures, levels, executor, known=known, memory=memory, on_layer=on_layer
        )
    return found, pictures


def _read_lines(path: Path, sound: Callable[[Sensitivity], bool]) -> list[Sensitivity]:
    """Whole lines of a file that a kill may have cut; what was cut is removed from it, and all where one line is not sound."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    try:
        found, _ = read_as(list[Sensitivity], [parse_json(line) for line in whole.splitlines()])
    except ValueError:
        found = None
    if found is None or not all(map(sound, found)):
        found, whole = [], ""
    if whole != text:
        write_text(path, whole, FIX)
    return found


def _write(
    folder: Path,
    settings: MixedSettings,
    found: Mapping[str, Sensitivity],
    measured: int,
    chosen: Allocation,
    tuned: TunedNetwork,
) -> None:
    """The recipe's files; their seal last, since it makes the others valid."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tuned.values.items()}, folder / TUNED_WEIGHTS)
    write_curve(folder / CURVE, folder / CURVE_PICTURE, tuned)
    about = {
        "asked_bits": settings.bits,
        "average_bits": chosen.average,
        "error": chosen.error,
        "error_bound": chosen.bound,
        "tune_iterations": settings.iterations,
        "tuning_helped": tuned.helped,
        "held_out_error": {"untuned": tuned.before, "tuned": min(tuned.after, tuned.before)},
        "calibration": {
            "prompts": len(settings.prompts),
            "prompts_sha256": settings.prompts_sha256,
            "pictures": settings.pictures,
            "measured": measured,
        },
        "sensitivities": {
            name: {"weights": s.weights, "bits": chosen.bits[name], "mse": {str(b): e for b, e in s.errors.items()}}
            for name, s in found.items()
        },
    }
    layers = {name: {"bits": b, "palette": list(found[name].palettes[b])} for name, b in chosen.bits.items()}
    data = {"about": about, "layers": layers, "tuned_sha256": sha256_of(folder / TUNED_WEIGHTS)}
    write_text(folder / RECIPE, json.dumps(data, sort_keys=True, allow_nan=False) + "\n", FIX)
    write_text(folder / RECIPE_SEAL, seal_of(folder), FIX)
    if load_recipe(folder) is None:
        raise BadInput(f"the recipe in {folder} cannot be read back; {FIX}")


def _make_room(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write to {root} ({error.strerror}); {FIX} or pass --no-cache") from None


def _touch(folder: Path) -> None:
    try:
        (folder / RECIPE).touch()
    except OSError:  # a read-only cache
        return


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@cache
def _sources() -> str:
    """Hash of the code and the tools that compute a recipe."""
    code = source_sha256("quantise", "families", "models", "checkpoint", "drawing", "plan")
    return _hash(code, metadata.version("torch"), metadata.version("numpy"))
