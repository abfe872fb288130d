"""One record for each component of a model, with everything that general code needs to know of it.

A component takes part in a picture in one of three ways, and each has its ports:

    encode    tokens (1, L) int32, mask (1, L)   -> embeddings of one of the student's text streams, perhaps a pooled vector
    denoise   latent, time_features, per stream <stream>, <stream>_mask, perhaps <stream>_pooled -> velocity, once per step
    decode    latent                                                 -> picture (1, 3, H, W) in -1 ... 1

A call of `denoise` and `decode` may draw several pictures, each with a row. With classifier-free guidance one of `denoise` has
two rows for a picture: first those of all prompts, then those of all negative prompts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from torch import Tensor, nn

from snapgen_deploy.families.names import title_of
from snapgen_deploy.families.variant import Variant
from snapgen_deploy.models.config import PromptReading
from snapgen_deploy.models.unfilled import without_storage
from snapgen_deploy.sparse import Layout, OpForm, UpsampleForm

Part = Literal["encode", "denoise", "decode"]
PARTS: tuple[Part, ...] = ("encode", "denoise", "decode")
TOKENS, MASK = "tokens", "mask"  # inputs of a text encoder, and its arrays in test vectors
LATENT, TIME, VELOCITY = "latent", "time_features", "velocity"  # of a student, beside its text streams
PICTURE = "picture"  # of a decoder
WHOLE = "pipeline"  # begins names of golden arrays that are of whole pictures, in place of a component's name
LATENT_DOC = "latent, normalised per channel; standard normal noise at the first step"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """One named input or output of a component."""

    name: str
    shape: Shape
    dtype: Literal["float32", "float16", "int32"]
    doc: str


class Ports(NamedTuple):
    """Named inputs and outputs of a component, and what it does in one line."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    doc: str


class Drawing(Protocol):
    """What ports depend on besides the configuration; a plan and a bundle satisfy it."""

    @property
    def width(self) -> str:
        """The sub-network's name."""

    @property
    def resolution(self) -> tuple[int, int]:
        """Picture height and width."""

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels, height and width."""

    @property
    def batch(self) -> int:
        """Pictures that a call draws."""


@dataclass(frozen=True)
class Spelling:
    """In which operations networks are written for a target."""

    layout: Layout
    ops: OpForm  # of the token layout
    upsample: UpsampleForm | None  # None: the layout's own
    form: str  # kernel form of the student's local attention
    text_form: str = "per_head"  # kernel form of text encoders, which matters to the channels layout only
    keep_weights: bool = False  # fold nothing into weights, because they are palettes
    batch: int = 1  # rows of a call


@dataclass(frozen=True)
class StoredTensor:
    """A component's tensor in a checkpoint."""

    name: str  # without the component's name in front
    whole: bool = True  # False: widths share it, and each takes its leading part


@dataclass(frozen=True)
class Initial:
    """Normal distribution of a tensor's initial values."""

    deviation: float
    mean: float = 0.0


def initial(name: str, shape: Shape) -> Initial:
    """Standard deviation fan_in^-1/2 for a matrix or convolution of `shape` (out, in, ...)."""
    return Initial(math.prod(shape[1:]) ** -0.5)


def initial_overlap_free(shape: Shape) -> Initial:
    """The same for a transposed convolution of `shape` (in, out, k, k) whose kernel does not overlap."""
    return Initial(shape[0] ** -0.5)


@dataclass(frozen=True)
class TextInput:
    """What a text encoder reads, and which of the student's text streams it feeds."""

    stream: str
    length: int  # tokens
    vocab: int  # rows of its embedding
    key: str  # key of its tokenizer in a checkpoint's metadata
    file: str  # file name of its tokenizer in a bundle
    arrays: str = ""  # prefix of the names of its arrays in test vectors
    dropped: int = 0  # first tokens that the student does not see
    reading: PromptReading = field(default_factory=PromptReading)


@dataclass(frozen=True)
class OracleTask:
    """What a library's own network is run on."""

    folder: Path | None  # that the library wrote; None: the checkpoint holds the tensors in another file
    read: Callable[[str], Tensor]  # one of the component's tensors in the checkpoint, by its name there without the component's
    drawing: Drawing
    adapted: frozenset[str] = frozenset()  # tensors that the folder has without the LoRA that `read` gives them with


@dataclass(frozen=True)
class Oracle:
    """The library whose own forward pass a component is held to. `record` runs it: port -> values of some calls (N, ...).

    Values of whole pictures have names that begin with `WHOLE`.
    """

    library: str  # name of its distribution
    record: Callable[[OracleTask], Mapping[str, Tensor]]


@dataclass(frozen=True)
class ComponentSpec:
    """A component of one configuration: its ports, and how it is built, loaded, rewritten and checked.

    `build` returns the reference network at a width on torch's current device, `apply` runs it on named tensors and returns its
    output, or a tuple of its outputs in the order of their names. `rewrite` returns it for a latent (height, width) in a
    target's spelling, `activations` the bytes of its largest activations for a width, a latent (channels, height, width) and a
    picture (height, width).
    """

    name: str  # in checkpoints, manifests and measurements
    part: Part
    build: Callable[[str], nn.Module]
    output: str  # name of its first output, most often the only one
    ports: Callable[[Drawing], Ports]
    apply: Callable[[nn.Module, Mapping[str, Tensor]], Tensor | tuple[Tensor, ...]]
    rewrite: Callable[[nn.Module, tuple[int, int], Spelling], nn.Module]
    folder: str  # in diffusers' layout of a pipeline
    hyperparameters: Callable[[str], dict[str, object]]  # at a width, also under the names that transformers uses
    activations: Callable[[str, tuple[int, int, int], tuple[int, int]], int] = lambda width, latent, size: 0
    stored: Callable[[str, str], StoredTensor] = lambda name, width: StoredTensor(name)
    shapes: Callable[[], dict[str, Shape]] | None = None  # of all stored tensors, if a checkpoint has those of several widths
    text: TextInput | None = None  # of a text encoder
    pooled: str = ""  # name of a text encoder's second output, a vector of the whole text; "": it has none
    initial: Callable[[str, Shape], Initial] = initial  # of weights, by their own name; biases are zero and norms one
    holds: Callable[[Collection[str], str], bool] = lambda tensors, width: True  # whether a checkpoint has a width
    variants: Callable[[nn.Module], Sequence[Variant]] = lambda network: ()  # other arithmetic that its tensors fit
    oracle: Oracle | None = None  # of a class of a library
    latent_mean: tuple[float, ...] = ()  # per channel, of the normalisation that a decoder undoes; () means zeros
    latent_std: tuple[float, ...] = ()  # per channel; () means ones
    needs_vectors: bool = False  # no library is an oracle for it, so that golden vectors must be given
    has_constants: bool = False  # has buffers outside its state dict, so that it cannot be built on the meta device
    layers: int = 0  # repeated ones, at all widths together; a checkpoint has more tensors than these
    guidance: float = 1.0  # scale of classifier-free guidance, which is computed outside of the network; 1: none
    sized: bool = True  # depends on the picture size
    elastic: bool = False  # depends on the width
    has_forms: bool = False  # its local attention can be written in several kernel forms
    takes_recipe: bool = False  # takes a mixed-precision recipe; other components are fp16 there
    must_pack: bool = False  # below 16 bits its file must have packed weights, or a reason for each layer
    in_delegate: bool = True  # all of it must run in a delegate
    by_tensor: bool = False  # its rewrite changes no large tensor, so that a large network may stay on disk

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its outputs."""
        return (self.output, self.pooled) if self.pooled else (self.output,)

    def run(self, network: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of its network, or of one rewritten, by name."""
        found = self.apply(network, inputs)
        return dict(zip(self.outputs, (found,) if isinstance(found, Tensor) else found, strict=True))

    @property
    def rows(self) -> int:
        """Rows of a call for each picture."""
        return 1 if self.guidance == 1.0 else 2

    def pictures_in(self, batch: int) -> int:
        """Pictures that one of its calls is for, where a call of student and decoder draws `batch`.

        A text encoder reads one prompt: a server that draws many pictures of few prompts keeps what it encoded.
        """
        return 1 if self.part == "encode" else batch

    def rows_in(self, batch: int) -> int:
        """Rows of one of its calls."""
        return self.rows * self.pictures_in(batch)

    def called(self, drawing: Drawing) -> Ports:
        """The ports of its exported network: those of `ports` with the rows of a call."""
        one, rows = self.ports(drawing), self.rows_in(drawing.batch)
        if rows == 1:
            return one
        inputs, outputs = (tuple(replace(p, shape=(rows, *p.shape[1:])) for p in side) for side in one[:2])
        return Ports(inputs, outputs, f"{one.doc}; {self._rows_doc(drawing.batch)}")

    def _rows_doc(self, batch: int) -> str:
        """What the rows of a call are."""
        if self.rows == 1:
            return f"a row for each of {batch} pictures"
        if batch == 1:
            return "row 0 for the prompt, row 1 for the negative prompt"
        return f"rows 0 to {batch - 1} for the prompts, rows {batch} to {2 * batch - 1} for the negative prompts"

    def activation_bytes(self, width: str, latent: tuple[int, int, int], size: tuple[int, int], batch: int = 1) -> int:
        """Bytes of the largest activations in a call of its exported network that draws `batch` pictures."""
        return self.rows_in(batch) * self.activations(width, latent, size)

    @property
    def title(self) -> str:
        """Its name in text, such as `text encoder 2`."""
        return title_of(self.name)

    def stored_shapes(self) -> dict[str, Shape]:
        """Name -> shape of all its tensors in a checkpoint, without the component's name; built without storage."""
        if self.shapes is not None:
            return self.shapes()
        with without_storage():
            return {name: tuple(tensor.shape) for name, tensor in self.build("").state_dict().items()}

    def parameters(self, width: str) -> int:
        """Number of parameters at a width; built without storage, once."""
        return _parameters(self, width)

    @property
    def reads(self) -> TextInput:
        """What a text encoder reads."""
        assert self.text is not None, f"{self.name} encodes no text"
        return self.text

    def calls(self, steps: int, batch: int = 1) -> int:
        """How often it runs while `batch` pictures of so many steps are drawn together."""
        return steps if self.part == "denoise" else batch // self.pictures_in(batch)


@functools.lru_cache(maxsize=256)
def _parameters(spec: ComponentSpec, width: str) -> int:
    with without_storage():
        return sum(p.numel() for p in spec.build(width).parameters())


@dataclass(frozen=True)
class Components:
    """The components of a configuration, in the order in which a picture uses them; a decoder may be absent."""

    encoders: tuple[ComponentSpec, ...]
    denoiser: ComponentSpec
    decoder: ComponentSpec | None

    def __iter__(self) -> Iterator[ComponentSpec]:
        yield from self.encoders
        yield self.denoiser
        if self.decoder is not None:
            yield self.decoder

    def __getitem__(self, name: str) -> ComponentSpec:
        return next(spec for spec in self if spec.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in the same order."""
        return tuple(spec.name for spec in self)

    @property
    def largest_first(self) -> tuple[ComponentSpec, ...]:
        """In the order in which a checkpoint's contents are listed: the student, the decoder, the text encoders."""
        return (self.denoiser, *(() if self.decoder is None else (self.decoder,)), *self.encoders)


def encoded(network: nn.Module, x: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
    """Run a text encoder on its inputs."""
    found: Tensor | tuple[Tensor, ...] = network(x[TOKENS], x[MASK])
    return found


def decoded(network: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
    """Run a decoder on its input."""
    picture: Tensor = network(x[LATENT])
    return picture


def decoder_ports(drawing: Drawing) -> Ports:
    """Of every decoder."""
    latent = Port(LATENT, (1, *drawing.latent), "float32", LATENT_DOC)
    picture = Port(PICTURE, (1, 3, *drawing.resolution), "float32", "red, green, blue in -1 ... 1 (clamp before use)")
    return Ports((latent,), (picture,), "latent to picture")
