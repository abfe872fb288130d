"""For every rule a small real package that breaks it and no other, and a clean one.

They are written exactly as the builder says: no pass of coremltools touches them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

logging.disable(logging.WARNING)  # coremltools' import-time warnings about versions and macOS libraries
import coremltools as ct  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402

logging.disable(logging.NOTSET)

HALF, INT = types.fp16, types.int32
Body = Callable[..., Any]
IMAGE = ((1, 64, 8, 32), HALF)  # 32 kB, rows of 64 bytes


def weight(*shape: int) -> np.ndarray:
    """A half-precision weight of modest numbers."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float16)


def save(path: Path, body: Body, *inputs: tuple[tuple[Any, ...], Any], **convert: Any) -> Path:
    """Build `body(x, ...)` over inputs of (shape, type) and save it."""
    specs = [mb.TensorSpec(shape, dtype=dtype) for shape, dtype in inputs]
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(body)
    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS18,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        **convert,
    )
    model.save(str(path))
    return path


def edit(path: Path, change: Callable[[Any], None]) -> Path:
    """Change the specification of a saved package in place: for what coremltools refuses to write itself."""
    manifest = json.loads((path / "Manifest.json").read_text())
    file = path / "Data" / manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    model = ct.proto.Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    change(model)
    file.write_bytes(model.SerializeToString())
    return path


def block(model: Any) -> Any:
    """The operations of a package's only function."""
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def clean(path: Path) -> Path:
    """A channels-first block as a Neural Engine likes it: nothing to say."""

    def body(x: Any) -> Any:
        h = mb.conv(x=x, weight=weight(64, 64, 1, 1))
        h = mb.gelu(x=h, mode="TANH_APPROXIMATION")
        h = mb.conv(x=h, weight=weight(64, 64, 3, 3), pad_type="same")
        h = mb.add(x=mb.clip(x=h, alpha=np.float16(-np.inf), beta=np.float16(9)), y=x)
        q = mb.reshape(x=mb.conv(x=h, weight=weight(64, 64, 1, 1)), shape=(1, 64, 256))
        scores = mb.softmax(x=mb.matmul(x=q, y=q, transpose_x=True), axis=-1)
        o = mb.reshape(x=mb.matmul(x=q, y=scores, transpose_y=True), shape=(1, 64, 8, 32))
        return mb.conv(x=o, weight=weight(64, 64, 1, 1), name="y")

    return save(path, body, IMAGE)


def constant_range(path: Path) -> Path:
    """The two classic masks: -inf, and the smallest fp32 number on its way to half precision."""
    mask = np.zeros((1, 1, 8, 32), np.float16)
    mask[..., 5:] = -np.inf

    def body(x: Any) -> Any:
        h = mb.add(x=x, y=mask)
        return mb.add(x=h, y=mb.cast(x=np.full((1, 1, 8, 32), np.finfo(np.float32).min), dtype="fp16"), name="y")

    return save(path, body, IMAGE)


def empty_mask_row(path: Path) -> Path:
    """A causal mask one step too strict: the first row sees nothing."""
    mask = np.tril(np.ones((64, 64), bool), -1)

    def body(x: Any) -> Any:
        return mb.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=mask, name="y")

    return save(path, body, ((1, 4, 64, 32), HALF))


def fp32_island(path: Path) -> Path:
    """exp in fp32 between half-precision convolutions."""

    def body(x: Any) -> Any:
        h = mb.cast(x=mb.conv(x=x, weight=weight(64, 64, 1, 1)), dtype="fp32")
        return mb.conv(x=mb.cast(x=mb.exp(x=h), dtype="fp16"), weight=weight(64, 64, 1, 1), name="y")

    return save(path, body, IMAGE)


def cast_pair(path: Path) -> Path:
    """There and back again; the identity in the middle of a real network."""

    def body(x: Any) -> Any:
        h = mb.cast(x=mb.conv(x=x, weight=weight(64, 64, 1, 1)), dtype="fp32")
        return mb.relu(x=mb.cast(x=h, dtype="fp16"), name="y")

    return save(path, body, IMAGE)


def rank(path: Path) -> Path:
    """Six axes: coremltools refuses to write them, other tools do not."""

    def body(x: Any) -> Any:
        return mb.relu(x=mb.reshape(x=x, shape=(1, 2, 32, 8, 32), name="folded"), name="y")

    def six(model: Any) -> None:
        tensor = next(v.type.tensorType for op in block(model).operations for v in op.outputs if v.name == "folded")
        del tensor.dimensions[:]
        for size in (1, 1, 2, 32, 8, 32):
            tensor.dimensions.add().constant.size = size
        tensor.rank = len(tensor.dimensions)

    return edit(save(path, body, IMAGE), six)


def narrow_last_axis(path: Path) -> Path:
    """Tokens and heads before a last axis of 8."""
    return save(path, lambda x: mb.relu(x=mb.exp(x=x), name="y"), ((1, 8, 1024, 8), HALF))


def long_axis(path: Path) -> Path:
    """A picture of 144 x 144 flattened into tokens."""
    return save(path, lambda x: mb.relu(x=x, name="y"), ((1, 1, 1, 144 * 144), HALF))


def dynamic_shape(path: Path) -> Path:
    """A range of heights."""

    def body(x: Any) -> Any:
        return mb.conv(x=x, weight=weight(64, 64, 1, 1), name="y")

    height = ct.RangeDim(8, 32, default=8)
    return save(path, body, ((1, 64, height.symbol, 32), HALF), inputs=[ct.TensorType(name="x", shape=(1, 64, height, 32))])


def layout_between_convolutions(path: Path) -> Path:
    """Channels to the last axis for a norm, and back."""

    def body(x: Any) -> Any:
        h = mb.transpose(x=mb.conv(x=x, weight=weight(64, 64, 1, 1)), perm=(0, 2, 3, 1))
        h = mb.layer_norm(x=h, axes=[-1])
        return mb.conv(x=mb.transpose(x=h, perm=(0, 3, 1, 2)), weight=weight(64, 64, 1, 1), name="y")

    return save(path, body, IMAGE)


def gather_scatter(path: Path) -> Path:
    """An embedding lookup."""

    def body(tokens: Any) -> Any:
        return mb.relu(x=mb.gather(x=weight(100, 64), indices=tokens, axis=0, validate_indices=False), name="y")

    return save(path, body, ((1, 16), INT))


def off_engine(path: Path) -> Path:
    """A sort, a product, a very wide kernel and arithmetic on integers."""

    def body(x: Any, n: Any) -> Any:
        h = mb.conv(x=x, weight=weight(64, 1, 1, 17), groups=64, pad_type="same")
        h = mb.add(x=h, y=mb.cast(x=mb.add(x=n, y=np.int32(1)), dtype="fp16"))
        values, _ = mb.topk(x=h, k=32, axis=-1)
        return mb.mul(x=values, y=mb.reduce_prod(x=x, axes=[1], keep_dims=True), name="y")

    return save(path, body, IMAGE, ((1,), INT))


def softmax_rows(path: Path) -> Path:
    """A few queries against 4096 keys, spelled out and fused."""

    def body(x: Any) -> Any:
        h = mb.softmax(x=x, axis=1)
        k = mb.reshape(x=h, shape=(1, 1, 4096, 32))
        q = mb.slice_by_index(x=k, begin=[0, 0, 0, 0], end=[1, 1, 32, 32])
        return mb.scaled_dot_product_attention(query=q, key=k, value=k, name="y")

    return save(path, body, ((1, 4096, 1, 32), HALF))


def working_set(path: Path) -> Path:
    """Activations of 2 MB each."""
    return save(path, lambda x: mb.add(x=mb.relu(x=x), y=mb.exp(x=x), name="y"), ((1, 256, 64, 64), HALF))


def width_slice(path: Path) -> Path:
    """Neighbouring blocks of tokens along the last axis, by slice and by split; the slice from the start is fine."""

    def body(x: Any) -> Any:
        first = mb.slice_by_index(x=x, begin=[0, 0, 0, 0], end=[1, 64, 1, 64])
        second = mb.slice_by_index(x=x, begin=[0, 0, 0, 64], end=[1, 64, 1, 128])
        third, _ = mb.split(x=x, split_sizes=[64, 64], axis=-1)
        channels = mb.slice_by_index(x=x, begin=[0, 32, 0, 0], end=[1, 64, 1, 128])
        return mb.add(x=mb.add(x=first, y=second), y=mb.add(x=third, y=mb.reduce_mean(x=channels)), name="y")

    return save(path, body, ((1, 64, 1, 128), HALF))


def several_fused_attentions(path: Path) -> Path:
    """Two fused attentions over 1024 keys of 256, and a short one."""

    def body(x: Any) -> Any:
        h = mb.scaled_dot_product_attention(query=x, key=x, value=x)
        h = mb.scaled_dot_product_attention(query=h, key=x, value=x)
        few = mb.slice_by_index(x=h, begin=[0, 0, 0, 0], end=[1, 1, 32, 256])
        return mb.scaled_dot_product_attention(query=h, key=few, value=few, name="y")

    return save(path, body, ((1, 1, 1024, 256), HALF))


def attention_batch(path: Path) -> Path:
    """Ten windows in the batch: fused, and as the pattern that Core ML fuses itself."""

    def body(x: Any) -> Any:
        h = mb.scaled_dot_product_attention(query=x, key=x, value=x)
        scores = mb.add(x=mb.matmul(x=h, y=h, transpose_y=True), y=weight(1, 1, 32, 32))
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=h, name="y")

    return save(path, body, ((10, 2, 32, 32), HALF))


def argmax(path: Path) -> Path:
    """The class of every pixel."""
    return save(path, lambda x: mb.reduce_argmax(x=x, axis=1, keep_dims=True, name="y"), IMAGE)


def empty_tensor(path: Path) -> Path:
    """A split whose last part has no width: coremltools refuses to write it, other tools do not."""

    def body(x: Any) -> Any:
        first, _ = mb.split(x=x, split_sizes=[63, 1], axis=1, name="parts")
        return mb.relu(x=first, name="y")

    def without_width(model: Any) -> None:
        (op,) = (op for op in block(model).operations if op.type == "split")
        op.outputs[1].type.tensorType.dimensions[1].constant.size = 0

    return edit(save(path, body, IMAGE), without_width)


CASES: dict[str, Callable[[Path], Path]] = {
    "constant-range": constant_range,
    "empty-mask-row": empty_mask_row,
    "fp32-island": fp32_island,
    "cast-pair": cast_pair,
    "rank": rank,
    "narrow-last-axis": narrow_last_axis,
    "long-axis": long_axis,
    "dynamic-shape": dynamic_shape,
    "layout-between-convolutions": layout_between_convolutions,
    "gather-scatter": gather_scatter,
    "off-engine": off_engine,
    "softmax-rows": softmax_rows,
    "several-fused-attentions": several_fused_attentions,
    "attention-batch": attention_batch,
    "argmax": argmax,
    "empty-tensor": empty_tensor,
    "width-slice": width_slice,
    "working-set": working_set,
}
"""weights-over-limit is a matter of the limit: see the tests."""
