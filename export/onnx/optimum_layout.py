"""The server bundle's folders: ONNX components as diffusers and optimum lay out a pipeline.

    model_index.json                        which library and class loads each part; noise levels of the sampler
    transformer/model.onnx  config.json     the student        (model.onnx_data holds weights beyond 2 GB)
    transformer/model-<height>x<width>.onnx   the student for another picture size; model.onnx_data then holds what both use
    vae_decoder/model.onnx  config.json     the decoder; the latent that it takes is normalised, so its scale is 1 and shift 0
    text_encoder/model.onnx config.json     the text encoder
    scheduler/scheduler_config.json         FlowMatchEulerDiscreteScheduler of diffusers
    tokenizer/tokenizer.json                with tokenizer_config.json for transformers
    pipeline.py                             SnapgenPipeline for diffusers, with server_loop.py and philox.py

File and folder names are those of optimum's diffusion export. Each component folder loads on its own with
`ORTModelForCustomTasks`, see `load`. No pipeline class of diffusers fits the student (it takes features of sigma, not a
timestep), so model_index.json names `SnapgenPipeline`, which is the app's own loop over the three components: the levels in
`snapgen.sigmas`, and per level x <- x + (next - sigma) * velocity. With `snapgen.guidance_scale` s, a call of the student has
rows of the prompt and of the negative prompt, and velocity = negative + s * (prompt - negative). With diffusers' scheduler the
same levels come from `set_timesteps(sigmas=snapgen.unshifted_sigmas)`; `set_timesteps(4)` alone spaces them differently. A
student of another sampler has no scheduler/, and `snapgen` has the manifest's coefficients.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snapgen_deploy.assets import server_code
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact, Role
from snapgen_deploy.families.names import tokenizer_name
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.models import ModelConfig, Schedule
from snapgen_deploy.models.schedule import EULER
from snapgen_deploy.runtime import noise

MODEL = "model.onnx"
_DATA = "model.onnx_data"  # optimum looks for this name beside a model
SETTINGS = "ort_config.json"  # what ORTOptimizer was told
LATER = ("pipeline.py", "server_loop.py", "philox.py")  # not in bundles of earlier releases
LOADER = ["optimum.onnxruntime", "ORTModelForCustomTasks"]


def arrange(
    directory: Path,
    artifacts: Mapping[Role, Artifact],
    config: ModelConfig,
    tokenizers: Mapping[Role, str],
    width: str | None = None,
    *,
    batch: int = 1,
) -> dict[Role, Artifact]:
    """Move exported ONNX artifacts into the folders below `directory`, write the configurations, return the new artifacts.

    `width` is the student's; without it config.json has only the hyperparameters of all widths. `tokenizers` has the text of a
    tokenizer.json for text encoders that have one. A call of the files draws `batch` pictures. The artifacts must be on the
    file system of `directory`; a component that an interrupted run left there is replaced. The same arguments give the same
    bytes.

    Raises:
        BadInput: if an artifact is not ONNX; nothing has been moved then.
    """
    for artifact in artifacts.values():
        if artifact.target.split(":")[0] != "onnx" or artifact.path.suffix != ".onnx":
            raise BadInput(f"{artifact.path.name}: got an artifact of {artifact.target}; the server layout takes onnx")
    components, moved = components_of(config), dict[Role, Artifact]()
    for spec in components:
        if spec.name in artifacts:
            folder = directory / spec.folder
            files = _move(artifacts[spec.name], folder)
            moved[spec.name] = Artifact(
                artifacts[spec.name].target, spec.name, folder / MODEL, (*files, folder / "config.json")
            )
    for name, text in texts(config, list(moved), tokenizers, width, batch=batch).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    return moved


def texts(
    config: ModelConfig, roles: Sequence[Role], tokenizers: Mapping[Role, str], width: str | None, *, batch: int = 1
) -> dict[str, str]:
    """The files that are written beside the components `roles`, by name: the same configuration gives the same text."""
    components, schedule = components_of(config), family_of(config).schedule(config)
    found = {
        # its own hyperparameters, and the names that transformers and diffusers use for them
        f"{spec.folder}/config.json": _json({**spec.hyperparameters(width or ""), "model_type": f"snapgen-{spec.name}"})
        for spec in components
        if spec.name in roles
    }
    if schedule.sampler == EULER:
        found["scheduler/scheduler_config.json"] = _json(scheduler_config(config.shift))
    lengths = {spec.name: spec.reads.length for spec in components.encoders}
    for role, text in tokenizers.items():
        found[f"{tokenizer_name(role)}/tokenizer_config.json"] = _json(_tokenizer_config(text, lengths.get(role)))
        found[f"{tokenizer_name(role)}/tokenizer.json"] = text
    found |= {f"{name}.py": server_code(name) for name in ("pipeline", "server_loop")}
    found["philox.py"] = Path(noise.__file__).read_text(encoding="utf-8")
    found["model_index.json"] = _json(_index(config, roles, [tokenizer_name(role) for role in tokenizers], batch))
    return found


def load(directory: Path, folder: str) -> Any:
    """The ORTModelForCustomTasks of the component in `folder`; called with named tensors or arrays it returns named outputs.

    The configuration is read as a plain PretrainedConfig: transformers' AutoConfig does not know the model types.

    Raises:
        BadInput: if there is no such component.
    """
    from snapgen_deploy.system.quiet import quiet

    with quiet():
        from optimum.onnxruntime import ORTModelForCustomTasks
        from transformers import PretrainedConfig

        place = directory / folder
        if not (place / MODEL).is_file():
            raise BadInput(f"{place / MODEL}: no such file; the layout has no {folder}")
        return ORTModelForCustomTasks.from_pretrained(place, config=PretrainedConfig.from_pretrained(place))


def scheduler_config(shift: float) -> dict[str, Any]:
    """Configuration of diffusers' FlowMatchEulerDiscreteScheduler with a fixed time shift."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "invert_sigmas": False,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": shift,
        "shift_terminal": None,
        "stochastic_sampling": False,
        "time_shift_type": "exponential",
        "use_beta_sigmas": False,
        "use_dynamic_shifting": False,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    }


def unshifted(level: float, shift: float) -> float:
    """Inverse of the time shift s -> shift*s / (1 + (shift - 1)*s).

    >>> unshifted(0.9, 3.0)
    0.75
    """
    return level / (shift - (shift - 1) * level)


def _index(config: ModelConfig, roles: Sequence[Role], tokenizers: Sequence[str], batch: int) -> dict[str, Any]:
    schedule, components = family_of(config).schedule(config), components_of(config)
    levels = schedule.sigmas
    guidance = {"guidance_scale": config.guidance_scale, "negative_prompt": config.negative_prompt} if config.guided else {}
    index: dict[str, Any] = {
        "_class_name": "SnapgenPipeline",
        **({"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]} if schedule.sampler == EULER else {}),
        "snapgen": {
            "name": config.name,
            "sigmas": list(levels),
            **_of_sampler(schedule, config.shift),
            **guidance,
            **({} if batch == 1 else {"batch": batch}),
        },
    }
    for name in tokenizers:
        index[name] = ["transformers", "PreTrainedTokenizerFast"]
    return {**index, **{components[role].folder: LOADER for role in roles}}


def _of_sampler(schedule: Schedule, shift: float) -> dict[str, Any]:
    """What the sampler needs beside the levels: keep, scale and noise of each step are those of the bundle's manifest."""
    timesteps = {"timesteps": list(schedule.timesteps)} if schedule.timesteps else {}
    if schedule.sampler == EULER:
        return {"unshifted_sigmas": [unshifted(level, shift) for level in schedule.sigmas[:-1]], **timesteps}
    rows = [list(step) for step in schedule.coefficients]
    return {"sampler": schedule.sampler, "start": schedule.start, "coefficients": rows, **timesteps}


def _tokenizer_config(tokenizer_json: str, length: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if length is not None:
        settings["model_max_length"] = length
    if padding := json.loads(tokenizer_json).get("padding"):
        settings |= {"pad_token": padding["pad_token"], "padding_side": padding["direction"].lower()}
    return settings


def _move(artifact: Artifact, folder: Path) -> tuple[Path, ...]:
    """Move an artifact's files into `folder` under optimum's names; return where they are now."""
    if artifact.path.with_name(f"{artifact.path.name}.data") in artifact.files:
        for model in (file for file in artifact.files if file.suffix == artifact.path.suffix):
            _relocate(model)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MODEL, _DATA, SETTINGS):
        (folder / name).unlink(missing_ok=True)
    moved = [folder / renamed(artifact, file) for file in artifact.files]
    for source, target in zip(artifact.files, moved, strict=True):
        os.replace(source, target)
    return tuple(moved)


def renamed(artifact: Artifact, file: Path) -> Path:
    """The name in its folder of a file of an artifact that `arrange` moved."""
    names = {artifact.path: MODEL, artifact.path.with_name(f"{artifact.path.name}.data"): _DATA}
    if file.name.startswith(f"{artifact.role}-"):  # another picture size
        return Path(f"model{file.name.removeprefix(artifact.role)}")
    return Path(names.get(file, file.name.removeprefix(f"{artifact.role}.")))


def _relocate(path: Path) -> None:
    """Point the weights of the model at `path` to the name that its data file is about to get."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = _DATA
    path.write_bytes(model.SerializeToString(deterministic=True))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
