"""The file of golden vectors, read and held against a configuration (docs/golden.md has the format).

Arrays are called `<component>.<port>` and have a row for each call; those of whole pictures are called `pipeline.<name>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from snapgen_deploy.checkpoint.header import Header, read_header
from snapgen_deploy.drawing.pipeline import Condition, in_calls, tokenize
from snapgen_deploy.drawing.ports import NEGATIVE, absent_text, empty_text
from snapgen_deploy.errors import BadInput, nearest
from snapgen_deploy.export.base import Arrays, Role
from snapgen_deploy.families.component import LATENT, MASK, PICTURE, TIME, TOKENS, WHOLE, ComponentSpec, Drawing, Shape
from snapgen_deploy.families.registry import components_of, family_of
from snapgen_deploy.models import ModelConfig, time_features
from snapgen_deploy.plan.sizes import latent_of
from snapgen_deploy.system.documents import in_one_line, parse_json, several, shown
from snapgen_deploy.system.files import sha256_of
from snapgen_deploy.system.typed import read_as

PIPELINE = WHOLE  # stands for a component in names of arrays: the whole picture
_NOISE, _SIGMA, _INSIDE = "noise", "sigma", "layers"
HELD_TO = "held_to"  # key in a file's metadata: component -> library that made its vectors, as JSON
OWN_REFERENCE = "compared with this package's own reference only"
# How far a sound reference may be from outputs that were computed so: relative error of a component, PSNR of a picture in dB.
TOLERANCES: Mapping[str, tuple[float, float]] = {
    "fp32": (1e-4, 50.0), "tf32": (3e-3, 40.0), "fp16": (5e-3, 35.0), "bf16": (4e-2, 25.0),
}  # fmt: skip
_STORED = {"F64": "fp32", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64")


@dataclass(frozen=True)
class GoldenCases:
    """Calls of one component, stacked: `inputs` and `outputs` of shape (N, ...), and outputs of modules inside it."""

    inputs: Arrays
    outputs: Arrays  # a pooled vector may be missing
    layers: Arrays  # by the reference's name of the module

    def __len__(self) -> int:
        return len(next(iter(self.outputs.values())))

    def rows(self, count: int = 1) -> Iterator[tuple[Arrays, Arrays]]:
        """Inputs and expected outputs of one call after the other, each with a first axis of `count`.

        The last call is filled up with rows from the start.
        """
        for picked in in_calls(len(self), count):
            inputs, outputs = ({n: v[picked] for n, v in side.items()} for side in (self.inputs, self.outputs))
            yield inputs, outputs


@dataclass(frozen=True)
class GoldenPicture:
    """Whole pictures, stacked over P: where they begin, what they are of, and what came out."""

    noise: np.ndarray  # (P, C, h, w), or (P, 1 + fresh, C, h, w) where steps draw noise
    tokens: Mapping[Role, Arrays]  # per text encoder its inputs
    text: Arrays  # the student's text inputs that no encoder makes
    latent: np.ndarray | None  # (P, C, h, w) after the last step
    picture: np.ndarray | None  # (P, 3, H, W) in -1 ... 1
    tokens_off: Mapping[Role, int]  # per text encoder: tokens that the checkpoint's own tokenizer makes otherwise
    negative: Condition | None = None  # with guidance: the negative prompts

    def conditions(self, rows: Sequence[int]) -> list[Condition]:
        """What some of the pictures are of: the prompts, and with guidance the negative prompts."""

        def of(arrays: Arrays) -> Arrays:
            return {name: value[list(rows)] for name, value in arrays.items()}

        both = [Condition(self.tokens, self.text), *([] if self.negative is None else [self.negative])]
        return [Condition({role: of(given) for role, given in c.tokens.items()}, of(c.text)) for c in both]

    def __len__(self) -> int:
        return len(self.noise)


@dataclass(frozen=True)
class GoldenVectors:
    """A file of golden vectors that fits a configuration."""

    path: Path
    sha256: str
    width: str  # sub-network that they are of; "" where the file does not say
    computed_in: str  # a key of `TOLERANCES`
    drawing: GoldenSize
    cases: Mapping[Role, GoldenCases] = field(default_factory=dict)
    picture: GoldenPicture | None = None
    held_to: Mapping[Role, str] = field(default_factory=dict)  # library and version that made a component's calls

    @property
    def error(self) -> float:
        """Largest relative error that the arithmetic of their outputs explains."""
        return TOLERANCES[self.computed_in][0]

    @property
    def psnr(self) -> float:
        """Least PSNR in dB that the arithmetic of their outputs explains."""
        return TOLERANCES[self.computed_in][1]

    @property
    def counts(self) -> dict[str, int]:
        """Calls by component, and pictures."""
        whole = {PIPELINE: len(self.picture)} if self.picture is not None else {}
        return {role: len(cases) for role, cases in self.cases.items()} | whole


@dataclass(frozen=True)
class GoldenSize:
    """Width and picture size of golden vectors."""

    width: str
    resolution: tuple[int, int]  # of the picture: height, width
    latent: tuple[int, int, int]  # channels, height, width
    batch: int = 1  # every row is a call


def compared_with(golden: GoldenVectors | None, config: ModelConfig) -> str:
    """What the files of a bundle were held against, in one line.

    >>> from snapgen_deploy.models.presets import shapes
    >>> compared_with(None, shapes())
    "compared with this package's own reference only"
    """
    if golden is None:
        return OWN_REFERENCE
    left = [spec.title for spec in components_of(config) if spec.name not in golden.cases]
    theirs = [name.replace("_", " ") for name in golden.counts if name not in golden.held_to]
    libraries = [f"{role.replace('_', ' ')} held to {library}" for role, library in golden.held_to.items()]
    said = [f"compared with golden vectors of {', '.join(theirs)}"] if theirs else []
    own = [f"{', '.join(left)} {'' if theirs else 'compared '}with this package's own reference only"] if left else []
    return "; ".join([*said, *libraries, *own])


def refuse_without_vectors(golden: GoldenVectors | None, config: ModelConfig) -> None:
    """Raise BadInput where a component has no oracle but the team's own golden vectors, and they have no calls of it.

    Raises:
        BadInput: for the first such component.
    """
    for spec in components_of(config):
        if spec.needs_vectors and (golden is None or spec.name not in golden.cases):
            got = f"{golden.path} has no calls of the {spec.title}" if golden is not None else "got none"
            raise BadInput(
                f"golden vectors: {got}, and no library can check this {spec.title}; give inputs and outputs of your own code "
                "with --golden FILE (docs/golden.md)"
            )


def open_golden(
    path: Path, config: ModelConfig, drawing: Drawing | None = None, tokenizers: Mapping[Role, str] | None = None
) -> GoldenVectors:
    """Read golden vectors and check that they fit a configuration at the picture size of `drawing`.

    None: the size that the file's own latents have. `tokenizers` read the prompts in its metadata.

    Raises:
        BadInput: if the file cannot be read, an array is missing, unknown, misshapen or not finite, or it is of another width.
    """
    header = read_header(path)
    width, computed_in, prompts = _metadata(path, header, config)
    libraries = _libraries(path, header)
    if drawing is not None and width and width != drawing.width:
        raise BadInput(
            f"{path}: the golden vectors are of width {width}, the plan exports {drawing.width}; pass --width {width}"
        )
    arrays = _Arrays(path, header, _values(path, header))
    size = GoldenSize(width or (drawing.width if drawing else ""), *_size(config, header, drawing))
    arrays.refuse_unknown(config)
    cases = {
        spec.name: _cases(arrays, spec, size)
        for spec in components_of(config)
        if any(name.startswith(f"{spec.name}.") for name in header.tensors)
    }
    picture = _picture(arrays, config, size, _Reading(prompts, tokenizers or {})) if arrays.of(PIPELINE) else None
    arrays.finish()
    if not cases and picture is None:
        raise BadInput(f"{path}: holds no arrays; expected <component>.<port> of {', '.join(components_of(config).names)}")
    outputs = [f"{role}.{components_of(config)[role].output}" for role in cases]
    outputs += [name for name in (f"{PIPELINE}.{PICTURE}", f"{PIPELINE}.{LATENT}") if name in header.tensors]
    stored = [_STORED[header.tensors[name].dtype] for name in outputs]
    kept = max(stored, key=lambda kind: TOLERANCES[kind][0])
    held = {role: libraries[role] for role in cases if role in libraries}
    return GoldenVectors(path, sha256_of(path), width, computed_in or kept, size, cases, picture, held)


def _metadata(path: Path, header: Header, config: ModelConfig) -> tuple[str, str, list[str] | None]:
    """Width, arithmetic and prompts; "" and None where the file does not say."""
    width, computed_in = (header.metadata.get(key, "") for key in ("width", "computed_in"))
    if width and width not in config.student.widths:
        known = config.student.widths
        raise BadInput(f"{path}: width: got {shown(width)}, expected one of {several(list(known))}{nearest(width, known)}")
    if computed_in and computed_in not in TOLERANCES:
        raise BadInput(f"{path}: computed_in: got {shown(computed_in)}, expected one of {', '.join(TOLERANCES)}")
    text = header.metadata.get("prompts")
    if text is None:
        return width, computed_in, None
    try:
        prompts, problems = read_as(list[str], parse_json(text))
    except ValueError as error:
        prompts, problems = None, [str(error)]
    if prompts is None:
        raise BadInput(f"{path}: prompts: {problems[0]}; expected a JSON list of texts")
    return width, computed_in, prompts


def _libraries(path: Path, header: Header) -> dict[Role, str]:
    """Which components' vectors a library made."""
    try:
        found, problems = read_as(dict[str, str], parse_json(header.metadata.get(HELD_TO, "{}")))
    except ValueError as error:
        found, problems = None, [str(error)]
    if found is None:
        raise BadInput(f"{path}: {HELD_TO}: {problems[0]}; expected a JSON object of texts")
    return found


def _values(path: Path, header: Header) -> Arrays:
    """All arrays: numbers with a fraction as float32, others as int32."""
    from safetensors import SafetensorError, safe_open

    wrong = [
        f"{shown(n)} has dtype {i.dtype}" for n, i in header.tensors.items() if i.dtype not in (*_STORED, *_INTEGERS, "BOOL")
    ]
    if wrong:
        raise BadInput(in_one_line(str(path), wrong, f"; expected one of {', '.join((*_STORED, *_INTEGERS, 'BOOL'))}"))
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in header.tensors}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); write it again") from None
    kinds = {name: torch.float32 if tensor.is_floating_point() else torch.int32 for name, tensor in tensors.items()}
    found = {name: tensor.to(kinds[name]).numpy() for name, tensor in tensors.items()}
    if broken := [
        f"{shown(name)} has values that are not finite" for name, value in found.items() if not np.isfinite(value).all()
    ]:
        raise BadInput(in_one_line(str(path), broken, "; write it again from a run that draws"))
    return found


def _size(config: ModelConfig, header: Header, drawing: Drawing | None) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Picture size and latent: of the plan, else of the first latent in the file, else the configuration's own."""
    if drawing is not None:
        return drawing.resolution, drawing.latent
    components = components_of(config)
    names = [f"{components.denoiser.name}.{LATENT}", f"{PIPELINE}.{_NOISE}", f"{PIPELINE}.{LATENT}"]
    names += [f"{components.decoder.name}.{LATENT}"] if components.decoder else []
    for name in names:
        info = header.tensors.get(name)
        if info is not None and len(info.shape) == 4 and min(info.shape) > 0:
            factor = config.student.latent_factor
            return (info.shape[2] * factor, info.shape[3] * factor), (info.shape[1], info.shape[2], info.shape[3])
    return config.resolution, latent_of(config, config.resolution)


@dataclass(frozen=True)
class _Reading:
    """Prompts and what reads them."""

    prompts: Sequence[str] | None
    tokenizers: Mapping[Role, str]


class _Arrays:
    """The arrays of a file, and all that is wrong with them."""

    def __init__(self, path: Path, header: Header, values: Arrays) -> None:
        self.path, self.header, self.values = path, header, values
        self.problems: list[str] = []
        self.known: set[str] = set()

    def of(self, component: str) -> dict[str, str]:
        """Names of a component's arrays by what follows the component."""
        return {n.removeprefix(f"{component}."): n for n in self.values if n.startswith(f"{component}.")}

    def refuse_unknown(self, config: ModelConfig) -> None:
        """BadInput for an array of a component that the configuration does not have."""
        known = (*components_of(config).names, PIPELINE)
        for name in self.values:
            first = name.partition(".")[0]
            if first not in known:
                tail = f"expected <component>.<port> of {', '.join(known)}{nearest(first, known)}"
                raise BadInput(f"{self.path}: {shown(name)} is of no component of this checkpoint; {tail}")

    def take(self, name: str, shape: Shape, dtype: str, rows: int | None) -> np.ndarray | None:
        """An array of `shape` without its first axis, which has a row for each call; None where it is amiss, and noted."""
        self.known.add(name)
        value = self.values.get(name)
        axes = ", ".join(map(str, shape))
        expected = f"{shown(name)} of shape [{'rows' if rows is None else rows}{', ' if axes else ''}{axes}]"
        if value is None:
            self.problems.append(f"missing {expected}")
        elif value.shape[1:] != shape or value.ndim == 0 or not len(value) or (rows is not None and len(value) != rows):
            self.problems.append(f"got shape {list(value.shape)}, expected {expected}")
        elif dtype == "int32" and value.dtype != np.int32:
            self.problems.append(f"{shown(name)} has dtype {self.header.tensors[name].dtype}, expected integers")
        else:
            return np.ascontiguousarray(value.astype(dtype))
        return None

    def finish(self) -> None:
        """BadInput with everything that was noted, and arrays that nobody took."""
        left = [f"{shown(name)} is no port" for name in self.values if name not in self.known]
        if found := [*self.problems, *left]:
            raise BadInput(in_one_line(f"{self.path}: golden vectors", found))


def _rows_of(arrays: _Arrays, name: str) -> int | None:
    value = arrays.values.get(name)
    return None if value is None or value.ndim == 0 else len(value)


def _cases(arrays: _Arrays, spec: ComponentSpec, size: GoldenSize) -> GoldenCases:
    """The calls of one component; what is amiss is noted in `arrays`, and stands as an empty array."""
    inputs, outputs, _ = spec.ports(size)
    rows = _rows_of(arrays, f"{spec.name}.{spec.output}")
    empty = np.zeros((0,), np.float32)
    given: Arrays = {}
    for port in inputs:
        name = f"{spec.name}.{port.name}"
        if port.name == TIME and name not in arrays.values and f"{spec.name}.{_SIGMA}" in arrays.values:
            sigma = arrays.take(f"{spec.name}.{_SIGMA}", (), "float32", rows)
            if sigma is not None:
                given[TIME] = time_features(torch.from_numpy(sigma), port.shape[1]).numpy()
            continue
        value = arrays.take(name, port.shape[1:], port.dtype, rows)
        given[port.name] = empty if value is None else value
    if spec.text is not None:
        _check_text(arrays, spec, given, f"{spec.name}.")
    arrays.known.add(f"{spec.name}.{_SIGMA}")
    expected = {spec.output: empty}
    for port in outputs:
        if port.name == spec.output or f"{spec.name}.{port.name}" in arrays.values:
            value = arrays.take(f"{spec.name}.{port.name}", port.shape[1:], port.dtype, rows)
            expected |= {} if value is None else {port.name: value}
    layers = {n.removeprefix(f"{_INSIDE}."): full for n, full in arrays.of(spec.name).items() if n.startswith(f"{_INSIDE}.")}
    arrays.known |= set(layers.values())
    for full in layers.values():
        if _rows_of(arrays, full) != rows:
            arrays.problems.append(f"got shape {list(arrays.values[full].shape)}, expected {shown(full)} of {rows} rows")
    inside = {name: arrays.values[full] for name, full in layers.items()}
    return GoldenCases(given, expected, inside)


def _check_text(arrays: _Arrays, spec: ComponentSpec, given: Arrays, prefix: str) -> None:
    """Note token ids that have no embedding, and masks of anything but 0 and 1."""
    tokens, mask = given.get(TOKENS), given.get(MASK)
    if tokens is not None and tokens.size and (tokens.min() < 0 or tokens.max() >= spec.reads.vocab):
        found = f"{tokens.min()} to {tokens.max()}"
        arrays.problems.append(f"{prefix}{TOKENS} has ids {found}, the {spec.title} embeddings 0 to {spec.reads.vocab - 1}")
    if mask is not None and mask.size and not np.isin(mask, (0.0, 1.0)).all():
        arrays.problems.append(f"{prefix}{MASK} has other values than 0 and 1")


def _picture(arrays: _Arrays, config: ModelConfig, size: GoldenSize, reading: _Reading) -> GoldenPicture:
    """The whole pictures; what is amiss is noted in `arrays`."""
    components = components_of(config)
    fresh = family_of(config).schedule(config).fresh
    begun = (1 + fresh, *size.latent) if fresh else size.latent
    noise = arrays.take(f"{PIPELINE}.{_NOISE}", begun, "float32", None)
    rows = None if noise is None else len(noise)
    found = {
        name: arrays.take(f"{PIPELINE}.{name}", shape, "float32", rows)
        for name, shape in ((LATENT, size.latent), (PICTURE, (3, *size.resolution)))
        if f"{PIPELINE}.{name}" in arrays.values
    }
    if not found:
        arrays.problems.append(f"missing '{PIPELINE}.{PICTURE}' or '{PIPELINE}.{LATENT}'")
    if PICTURE in found and components.decoder is None:
        arrays.problems.append(f"'{PIPELINE}.{PICTURE}' needs a decoder, which the checkpoint has not")
    tokens, off = {}, {}
    for spec in components.encoders:
        tokens[spec.name], off[spec.name] = _picture_tokens(arrays, spec, rows, reading)
    made = {*(spec.reads.stream for spec in components.encoders), *config.absent_streams}
    text = absent_text(config, rows or 0)
    for s in config.student.text_streams:
        if s.name not in made:
            for name, shape in s.shapes.items():
                value = arrays.take(f"{PIPELINE}.{name}", shape, "float32", rows)
                text |= {} if value is None else {name: value}
    empty = np.zeros((0,), np.float32)
    whole = GoldenPicture(empty if noise is None else noise, tokens, text, found.get(LATENT), found.get(PICTURE), off)
    return replace(whole, negative=_negative(arrays, config, rows, reading)) if config.guided else whole


def _negative(arrays: _Arrays, config: ModelConfig, rows: int | None, reading: _Reading) -> Condition:
    """The negative prompts, whose arrays are called `pipeline.negative.<name>`; the configuration's where the file has none."""
    components = components_of(config)
    count = rows if reading.prompts is None else len(reading.prompts)
    reading = replace(reading, prompts=[config.negative_prompt] * (count or 0))
    tokens = {spec.name: _picture_tokens(arrays, spec, rows, reading, NEGATIVE)[0] for spec in components.encoders}
    made = {spec.reads.stream for spec in components.encoders}
    text = empty_text(config, [s.name for s in config.student.text_streams if s.name not in made], rows or 0)
    for name, empty in list(text.items()):
        if f"{PIPELINE}.{NEGATIVE}{name}" in arrays.values:
            value = arrays.take(f"{PIPELINE}.{NEGATIVE}{name}", empty.shape[1:], "float32", rows)
            text |= {} if value is None else {name: value}
    return Condition(tokens, text)


def _picture_tokens(
    arrays: _Arrays, spec: ComponentSpec, rows: int | None, reading: _Reading, kind: str = ""
) -> tuple[Arrays, int]:
    """What a text encoder reads of the prompts: the file's own tokens, else those of the checkpoint's tokenizer.

    With both, how many of the file's tokens the tokenizer makes otherwise. `kind` is `NEGATIVE` for the negative prompts.
    """
    prefix = f"{PIPELINE}.{kind}{spec.name}."
    own: Arrays = {}
    if spec.name in reading.tokenizers and reading.prompts is not None:
        if rows is not None and len(reading.prompts) != rows:
            arrays.problems.append(f"got {len(reading.prompts)} prompts, expected one for each of {rows} pictures")
        try:
            read = [tokenize(reading.tokenizers[spec.name], prompt, spec.reads) for prompt in reading.prompts]
        except BadInput as error:
            raise BadInput(f"{arrays.path}: prompts: {error}") from None
        own = {name: np.concatenate([one[name] for one in read]) for name in (TOKENS, MASK)} if read else {}
    names = {TOKENS: "int32", MASK: "float32"}
    if own and not any(f"{prefix}{name}" in arrays.values for name in names):
        return own, 0
    taken = {n: arrays.take(f"{prefix}{n}", (spec.reads.length,), dtype, rows) for n, dtype in names.items()}
    given = {name: value for name, value in taken.items() if value is not None}
    _check_text(arrays, spec, given, prefix)
    same = own and len(given) == len(own) and all(own[name].shape == value.shape for name, value in given.items())
    return given, int(sum((own[name] != value).sum() for name, value in given.items())) if same else 0
