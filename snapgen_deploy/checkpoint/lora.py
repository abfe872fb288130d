"""Low-rank updates of weights (LoRA): what an adapter's files say, whoever wrote them.

Read are PEFT's folders (adapter_config.json, adapter_model.safetensors) and single safetensors files as diffusers, PEFT and
kohya's scripts write them. What is not a plain LoRA (DoRA, LoHa, LoKr, whole modules) is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapgen_deploy.checkpoint.header import FLOATS
from snapgen_deploy.checkpoint.sources import SafetensorsSource
from snapgen_deploy.checkpoint.tensors import json_object
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import parse_json, refuse, shown
from snapgen_deploy.system.lfs import refuse_pointer

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_METADATA = "lora_adapter_metadata"  # diffusers' key in a file's header: PEFT's configuration for each component
# Front of a module's name that names the adapter, not the network.
_FRONT = re.compile(r"^(base_model\.model\.|lora_(?=unet|transformer|te|text))")
# (module, A or B): PEFT and diffusers, older diffusers and kohya, diffusers' attention processors, embeddings.
_FORMS = (
    (re.compile(r"(.+)\.lora_(A|B)(?:\.\w+)?\.weight"), {"A": "A", "B": "B"}),
    (re.compile(r"(.+)\.processor\.(?:to_)?\w+?_lora\.(down|up)\.weight"), {"down": "A", "up": "B"}),
    (re.compile(r"(.+)[._]lora[._](down|up)\.weight"), {"down": "A", "up": "B"}),
    (re.compile(r"(.+)\.lora_embedding_(A|B)(?:\.\w+)?"), {"A": "A", "B": "B"}),
)
_PROCESSOR = re.compile(r"(.+)\.processor\.(to_\w+?)_lora\.(?:down|up)\.weight")
# Settings of PEFT that change what an adapter computes, and the values with which they do not.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "use_dora": (False, None), "use_qalora": (False, None), "lora_bias": (False, None), "bias": ("none", None),
    "modules_to_save": (None, []), "layer_replication": (None, []), "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []), "alora_invocation_tokens": (None, []), "megatron_config": (None,),
}  # fmt: skip
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # ways to begin that take something out of the weights themselves
_LITERAL = re.compile(r"\^?[\w.\-]+")


@dataclass(frozen=True)
class Update:
    """One module's update: `scale * B A`, added to its weight."""

    module: str  # as the adapter calls it, without what stands before all names
    a: str  # tensors of the file: (r, in), or (r, in, k, k) of a convolution
    b: str  # (out, r)
    rank: int
    scale: float  # alpha / r
    shape: tuple[int, ...]  # of the weight that it belongs to
    transposed: bool = False  # the weight is (in, out)


@dataclass(frozen=True)
class Adapter:
    """A LoRA: its updates, and how much of them is added."""

    path: Path
    strength: float
    updates: tuple[Update, ...]
    files: tuple[Path, ...]
    source: SafetensorsSource = field(repr=False)


@dataclass(frozen=True)
class _Settings:
    """How a component's updates are scaled."""

    alpha: float | None = None  # None: the rank
    alphas: Mapping[str, float] = field(default_factory=dict)  # by the end of a module's name
    rank_stable: bool = False
    transposed: bool = False

    def scale(self, module: str, rank: int, own: float | None) -> float:
        """Of one module; `own` is the alpha that the file has for it."""
        found = (value for key, value in self.alphas.items() if _ends(module, key))
        alpha = own if own is not None else next(found, self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.rank_stable else rank)


def open_adapter(path: Path, strength: float) -> Adapter:
    """Read an adapter's configuration and headers, and the few numbers that scale it.

    Raises:
        BadInput: if a file is missing or damaged, or it is not a plain LoRA; one message for all problems.
    """
    where = f"LoRA {path}"
    if path.is_dir():
        weights, config = path / _WEIGHTS, path / _CONFIG
        if not weights.is_file() or not config.is_file():
            missing = weights.name if not weights.is_file() else config.name
            raise BadInput(
                f"{where}: has no {missing}; expected a folder as PEFT's save_pretrained writes it, or a .safetensors"
            )
        source = SafetensorsSource.of((weights,))
        settings = _read_settings(where, json_object(config))
        return _adapter(path, strength, source, lambda module: settings, (weights, config))
    if not path.is_file():
        raise BadInput(f"{where}: no such file or folder; give PEFT's folder or a .safetensors")
    if path.suffix.lower() != ".safetensors":
        refuse_pointer(path)
        raise BadInput(
            f"{where}: got the suffix '{path.suffix}', expected .safetensors or PEFT's folder; save it as safetensors"
        )
    source = SafetensorsSource.of((path,))
    return _adapter(path, strength, source, _settings_of_header(where, source.metadata), (path,))


def _adapter(
    path: Path, strength: float, source: SafetensorsSource, settings: Callable[[str], _Settings], files: tuple[Path, ...]
) -> Adapter:
    where = f"LoRA {path}"
    halves: dict[str, dict[str, str]] = {}
    alphas: dict[str, float] = {}
    embeddings, strange = set(), []
    for name, info in source.tensors.items():
        if name.endswith(".alpha") and info.elements == 1:
            alphas[name.removesuffix(".alpha")] = float(source.read(name, info.shape))
            continue
        found = _half(name)
        if found is None:
            strange.append(f"{shown(name)} is no LoRA")
            continue
        module, half = found
        halves.setdefault(module, {})[half] = name
        if "lora_embedding" in name:
            embeddings.add(module)
        if info.dtype not in FLOATS:
            strange.append(f"{shown(name)} has dtype {info.dtype}, expected one of {', '.join(FLOATS)}")
    refuse(where, strange, "; only plain LoRA is merged (no DoRA, LoHa, LoKr, biases or whole modules)")
    updates, problems = [], []
    for module, pair in halves.items():
        if len(pair) < 2:
            problems.append(f"{shown(module)} has only one of its two matrices")
            continue
        own = alphas.get(module)
        try:
            updates.append(_update(module, pair, source, settings(module), own, embedding=module in embeddings))
        except ValueError as error:
            problems.append(f"{shown(module)}: {error}")
    refuse(where, problems)
    if not updates:
        raise BadInput(f"{where}: has no tensors of a LoRA; expected names such as 'X.lora_A.weight' and 'X.lora_B.weight'")
    return Adapter(path, strength, tuple(updates), files, source)


def _half(name: str) -> tuple[str, str] | None:
    """Module, and A or B, of one tensor's name; None if it is none of a LoRA."""
    processor = _PROCESSOR.fullmatch(name)
    for form, halves in _FORMS:
        match = form.fullmatch(name)
        if match:
            if processor is None:
                return match[1], halves[match[2]]
            leaf = "to_out.0" if processor[2] == "to_out" else processor[2]
            return f"{processor[1]}.{leaf}", halves[match[2]]
    return None


def _update(
    module: str,
    pair: Mapping[str, str],
    source: SafetensorsSource,
    settings: _Settings,
    own: float | None,
    *,
    embedding: bool,
) -> Update:
    a, b = source.tensors[pair["A"]].shape, source.tensors[pair["B"]].shape
    if len(a) not in (2, 4) or len(b) != len(a) or a[0] != b[1] or any(n != 1 for n in b[2:]) or not a[0]:
        raise ValueError(f"A {list(a)} and B {list(b)} do not multiply")
    transposed = embedding or settings.transposed
    if transposed and len(a) > 2:
        raise ValueError("a transposed weight is no convolution")
    shape = (a[1], b[0]) if transposed else (b[0], *a[1:])
    plain = _FRONT.sub("", module)
    scale = settings.scale(plain, a[0], own)
    if not math.isfinite(scale):
        raise ValueError(f"its alpha gives the scale {scale}")
    return Update(plain, pair["A"], pair["B"], a[0], scale, shape, transposed)


def _ends(module: str, key: str) -> bool:
    """As PEFT matches the keys of its patterns: the end of a name, or all of it after a `^`."""
    return module == key[1:] if key.startswith("^") else module == key or module.endswith(f".{key}")


def _read_settings(where: str, config: Mapping[str, Any]) -> _Settings:
    """PEFT's configuration.

    Raises:
        BadInput: if it is of another kind of adapter, or has settings that merging does not know.
    """
    if config.get("peft_type", "LORA") != "LORA":
        raise BadInput(f"{where}: is a {shown(config['peft_type'])} adapter, expected LORA")
    problems = [f"{k}: got {shown(config[k])}" for k, plain in _PLAIN.items() if config.get(k) not in plain]
    if str(config.get("init_lora_weights", "")).startswith(_CHANGES_BASE):
        begun = shown(config["init_lora_weights"])
        problems.append(f"init_lora_weights: {begun} changed the weights below it; save it converted to a plain LoRA")
    refuse(where, problems, "; only plain LoRA is merged")
    alphas = config.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or not all(_LITERAL.fullmatch(k) and _is_number(v) for k, v in alphas.items()):
        raise BadInput(f"{where}: alpha_pattern: expected ends of modules' names, and numbers")
    alpha = config.get("lora_alpha")
    if alpha is not None and not _is_number(alpha):
        raise BadInput(f"{where}: lora_alpha: got {shown(alpha)}, expected a number")
    flags = {key: config.get(key) or False for key in ("use_rslora", "fan_in_fan_out")}
    if any(not isinstance(flag, bool) for flag in flags.values()):
        raise BadInput(f"{where}: use_rslora and fan_in_fan_out: expected true or false")
    return _Settings(alpha, dict(alphas), flags["use_rslora"], flags["fan_in_fan_out"])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e9


def _settings_of_header(where: str, metadata: Mapping[str, str]) -> Callable[[str], _Settings]:
    """For each module the settings that diffusers stored for its component, if it did."""
    if _METADATA not in metadata:
        return lambda module: _Settings()
    try:
        data = parse_json(metadata[_METADATA])
    except ValueError as error:
        raise BadInput(f"{where}: {_METADATA} in its header is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise BadInput(f"{where}: {_METADATA} in its header is no object")
    by_component: dict[str, dict[str, Any]] = {}
    for key, value in data.items():
        component, _, field_ = key.partition(".")
        by_component.setdefault(component, {})[field_] = value
    read = {component: _read_settings(where, config) for component, config in by_component.items()}

    def of(module: str) -> _Settings:
        component, _, _ = module.partition(".")
        return read.get(component, _Settings())

    return of


def parsed(text: str) -> tuple[Path, float]:
    """PATH or PATH:SCALE of the command line.

    >>> parsed("style.safetensors:0.8")
    (PosixPath('style.safetensors'), 0.8)

    Raises:
        BadInput: if the scale is not a finite number.
    """
    front, colon, last = text.rpartition(":")
    try:
        scale = float(last) if colon else None
    except ValueError:
        scale = None
    if scale is None:
        return Path(text), 1.0
    if not front or not math.isfinite(scale):
        raise BadInput(f"--lora: got '{text}', expected PATH or PATH:SCALE, such as style.safetensors:0.8")
    return Path(front), scale
