"""Compressed weights: what coremltools.optimize writes, and each decompression by its documented formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools.optimize.coreml as cto
import numpy as np
import pytest

from snapgen_deploy.export.mil import open_package
from snapgen_deploy.export.mil.saved.blob import unpack_bits
from tests.mil.mil_harness import TARGETS, Case, Function, Program, ct, mb, one_program, relative, save, types

RNG = np.random.default_rng(5)
CONV = RNG.normal(size=(16, 8, 3, 3)).astype(np.float32)
LINEAR = RNG.normal(size=(32, 16)).astype(np.float32)
X = {"x": RNG.normal(size=(1, 8, 4, 4)).astype(np.float32)}
Compress = Callable[[Any], Any]


def model(ios: int, path: Path) -> Any:
    """A convolution and a linear layer, saved uncompressed."""
    with Function({"x": mb.TensorSpec(shape=(1, 8, 4, 4))}, opset_version=TARGETS[ios]) as function:
        y = mb.conv(x=function.inputs["x"], weight=CONV, pad_type="same")
        y = mb.linear(x=mb.transpose(x=mb.reshape(x=y, shape=[1, 16, 16]), perm=[0, 2, 1]), weight=LINEAR, name="y")
        function.set_outputs([y])
    program = Program()
    program.add_function("main", function)
    return ct.models.MLModel(str(save(program, path, ios)), skip_model_load=True)


def palettes(joint: bool = False, **options: Any) -> Compress:
    config = cto.OptimizationConfig(cto.OpPalettizerConfig(weight_threshold=100, **options))
    return lambda m: cto.palettize_weights(m, config, **({"joint_compression": True} if joint else {}))


def quantized(joint: bool = False, **options: Any) -> Compress:
    config = cto.OptimizationConfig(cto.OpLinearQuantizerConfig(weight_threshold=100, **options))
    return lambda m: cto.linear_quantize_weights(m, config, **({"joint_compression": True} if joint else {}))


def pruned(**options: Any) -> Compress:
    config = cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(weight_threshold=100, **options))
    return lambda m: cto.prune_weights(m, config)


GROUPED: dict[str, Any] = {"mode": "kmeans", "granularity": "per_grouped_channel", "group_size": 8}
BLOCKS: dict[str, Any] = {"granularity": "per_block", "block_size": 4}
RECIPES: dict[str, tuple[int, tuple[Compress, ...], set[str]]] = {
    "palette4-ios16": (16, (palettes(mode="kmeans", nbits=4),), {"lut_to_dense"}),
    "palette6-ios16": (16, (palettes(mode="uniform", nbits=6),), {"lut_to_dense"}),
    "int8-ios16": (16, (quantized(mode="linear_symmetric"),), {"affine_dequantize"}),
    "uint8-ios16": (16, (quantized(mode="linear", dtype="uint8"),), {"affine_dequantize"}),
    "sparse-ios16": (16, (pruned(target_sparsity=0.6),), {"sparse_to_dense"}),
    "palette4": (18, (palettes(mode="kmeans", nbits=4),), {"lut_to_dense"}),
    "int8": (18, (quantized(mode="linear", dtype="int8", granularity="per_tensor"),), {"blockwise_shift_scale"}),
    "int4-blocks": (18, (quantized(mode="linear_symmetric", dtype="int4", **BLOCKS),), {"blockwise_shift_scale"}),
    "uint4-blocks": (18, (quantized(mode="linear", dtype="uint4", **BLOCKS),), {"blockwise_shift_scale"}),
    "sparse": (18, (pruned(target_sparsity=0.6),), {"sparse_to_dense"}),
    **{f"palette{n}-grouped": (18, (palettes(nbits=n, **GROUPED),), {"lut_to_dense"}) for n in (1, 2, 3, 4, 6)},
    "palette4-vectors": (18, (palettes(mode="kmeans", nbits=4, cluster_dim=2),), {"lut_to_dense"}),
    "palette3-grouped-vectors": (18, (palettes(nbits=3, cluster_dim=4, **GROUPED),), {"lut_to_dense"}),
    "palette-scaled": (
        18,
        (palettes(mode="kmeans", nbits=4, enable_per_channel_scale=True),),
        {"lut_to_dense", "blockwise_shift_scale"},
    ),
    "palette-of-int8": (
        18,
        (palettes(mode="kmeans", nbits=4), quantized(True, mode="linear_symmetric", granularity="per_tensor")),
        {"lut_to_dense", "blockwise_shift_scale"},
    ),
    "sparse-palette": (
        18,
        (pruned(target_sparsity=0.5), palettes(True, mode="kmeans", nbits=4)),
        {"lut_to_sparse", "sparse_to_dense"},
    ),
    "sparse-int8": (
        18,
        (pruned(target_sparsity=0.5), quantized(True, mode="linear_symmetric")),
        {"sparse_blockwise_shift_scale", "sparse_to_dense"},
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Any, np.ndarray]]:
    """The uncompressed model of a target and its result, made once."""
    made: dict[int, tuple[Any, np.ndarray]] = {}

    def of(ios: int) -> tuple[Any, np.ndarray]:
        if ios not in made:
            path = tmp_path_factory.mktemp("plain") / "plain.mlpackage"
            made[ios] = model(ios, path), open_package(path)(X)["y"]
        return made[ios]

    return of


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_coremltools_compresses(recipe: str, plain: Callable[[int], tuple[Any, np.ndarray]], tmp_path: Path) -> None:
    """A compressed package gives what the same package gives after coremltools' own decompression."""
    ios, steps, ops = RECIPES[recipe]
    compressed, original = plain(ios)
    for step in steps:
        compressed = step(compressed)
    compressed.save(str(tmp_path / "small.mlpackage"))
    cto.decompress_weights(compressed).save(str(tmp_path / "dense.mlpackage"))

    small, dense = open_package(tmp_path / "small.mlpackage"), open_package(tmp_path / "dense.mlpackage")
    assert {o.removeprefix("constexpr_") for o in small.ops if o.startswith("constexpr_")} == ops
    assert not any(o.startswith("constexpr_") for o in dense.ops)
    got, wanted = small(X)["y"], dense(X)["y"]
    assert relative(got, wanted) <= 1e-6
    assert relative(original, wanted) > 1e-4, "compression changed nothing: the test would see no wrong weights"


def _type(name: str) -> Any:
    return types.nptype_from_builtin(types.string_to_builtin(name))


def _added(name: str, shape: tuple[int, ...], make: Callable[[], Any], wanted: np.ndarray, ios: int) -> Case:
    """x plus a decompressed constant."""
    return Case(name, {"x": np.zeros(shape, np.float32)}, lambda x: mb.add(x=x, y=make()), lambda x: x + wanted, ios)


_LUT_INDICES = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3]).reshape(6, 2)
_TWO_LUTS = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1)
_BIT_INDICES = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]])
_VECTORS = np.array([[1, 2, 3], [4, 5, 6]], np.float32).reshape(1, 1, 1, 2, 3)
_MASK = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]])
_CHOSEN = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1])
_DATA = RNG.integers(-8, 8, (4, 6)).astype(np.int8)
_SCALE = RNG.uniform(0.1, 1, (2, 3)).astype(np.float32)
_OFFSET = RNG.integers(-3, 3, (2, 3)).astype(np.int8)


def _vectors_along(axis: int) -> np.ndarray:
    """Place (i, j, k) becomes its vector, along `axis`, by loops."""
    shape = list(_BIT_INDICES.shape)
    shape[axis] *= 3
    out = np.zeros(shape, np.float32)
    for at in np.ndindex(*_BIT_INDICES.shape):
        for v in range(3):
            to = list(at)
            to[axis] = at[axis] * 3 + v
            out[tuple(to)] = _VECTORS[0, 0, 0, _BIT_INDICES[at], v]
    return out


def _blockwise() -> np.ndarray:
    out = np.zeros((4, 6), np.float32)
    for i, j in np.ndindex(4, 6):
        out[i, j] = _SCALE[i // 2, j // 2] * (float(_DATA[i, j]) - float(_OFFSET[i // 2, j // 2]))
    return out


def _sparse_vectors() -> np.ndarray:
    """The example in the documentation of constexpr_lut_to_sparse: vectors (2, 2) and (3, 3) along axis 0."""
    dense = np.zeros((4, 6), np.float32)
    dense[_MASK != 0] = np.where(_CHOSEN == 1, 3, 2)
    return dense.repeat(2, 0)


def _sparse_to_dense(pair: Any) -> Any:
    mask, data = pair
    return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask)


FORMULAS = [
    _added(
        "grouped_palettes",
        (6, 2),
        lambda: mb.constexpr_lut_to_dense(indices=_LUT_INDICES.astype(_type("uint2")), lut=_TWO_LUTS),
        np.array([[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]], np.float32),
        18,
    ),
    *(
        _added(
            f"vector_palettes_{axis}",
            _vectors_along(axis).shape,
            lambda axis=axis: mb.constexpr_lut_to_dense(  # type: ignore[misc]
                indices=_BIT_INDICES.astype(_type("uint1")), lut=_VECTORS, vector_axis=np.int32(axis)
            ),
            _vectors_along(axis),
            18,
        )
        for axis in (0, 1, 2)
    ),
    _added(
        "blocks_with_offset",
        (4, 6),
        lambda: mb.constexpr_blockwise_shift_scale(
            data=_DATA.astype(_type("int4")), scale=_SCALE, offset=_OFFSET.astype(_type("int4"))
        ),
        _blockwise(),
        18,
    ),
    _added(
        "sparse_vectors",
        (8, 6),
        lambda: _sparse_to_dense(
            mb.constexpr_lut_to_sparse(
                indices_mask=_MASK.astype(_type("uint1")),
                indices_nonzero_data=_CHOSEN.astype(_type("uint1")),
                lut=np.array([[2, 2], [3, 3]], np.float32).reshape(1, 1, 2, 2),
                vector_axis=np.int32(0),
            )
        ),
        _sparse_vectors(),
        18,
    ),
    _added(
        "sparse_columns",
        (4, 4),
        lambda: _sparse_to_dense(
            mb.constexpr_sparse_blockwise_shift_scale(
                data_mask=np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]).astype(_type("uint1")),
                nonzero_data=np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8),
                scale=np.array([[0.1, 0.2, 0.3, 0.4]], np.float32),
                offset=np.array([[1, 2, 3, 4]], np.int8),
            )
        ),
        np.array([[0.9, 1.8, 0, 0], [0.2, 0.4, 0.6, 0], [0, 0, 0.9, 1.2], [0.7, 1.4, 0, 0]], np.float32),
        18,
    ),
    _added(
        "cast",
        (3,),
        lambda: mb.constexpr_cast(source_val=np.array([1, 0.1, -7], np.float16), output_dtype="fp32"),
        np.array([1, 0.1, -7], np.float16).astype(np.float32),
        16,
    ),
    _added(
        "affine_axis",
        (2, 3),
        lambda: mb.constexpr_affine_dequantize(
            quantized_data=np.array([[1, 2, 3], [250, 0, 9]], np.uint8),
            zero_point=np.array([1, 5, 9], np.uint8),
            scale=np.array([0.5, 2, 0.25], np.float32),
            axis=-1,
        ),
        np.array([[0, -6, -1.5], [124.5, -10, 0]], np.float32),
        16,
    ),
    _added(
        "packed_palette",
        (5,),
        # Indices 0, 3, 2, 1, 3 of two bits each, least significant bits first: 01 10 11 00 | .. 11
        lambda: mb.constexpr_lut_to_dense(
            indices=np.array([0b01101100, 0b11], np.uint8),
            lut=np.array([0.5, 1, 2, 4], np.float32),
            shape=np.array([5], np.uint32),
        ),
        np.array([0.5, 4, 2, 1, 4], np.float32),
        16,
    ),
    _added(
        "packed_mask",
        (5,),
        lambda: mb.constexpr_sparse_to_dense(
            nonzero_data=np.array([3, 4], np.float32), mask=np.array([0b01100], np.uint8), shape=np.array([5], np.uint32)
        ),
        np.array([0, 0, 3, 4, 0], np.float32),
        16,
    ),
]


@pytest.mark.parametrize("ios", [16, 18])
def test_formulas(ios: int, tmp_path: Path) -> None:
    cases = [c for c in FORMULAS if c.ios == ios]
    package, inputs, names = one_program(cases, tmp_path / "p.mlpackage", ios)
    outputs = open_package(package)(inputs)
    for case in cases:
        assert relative(outputs[names[case.name][0]], case.expect(**case.inputs)) <= 1e-6, case.name


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_bits_unpack_across_bytes(bits: int, signed: bool) -> None:
    values = RNG.integers(0, 2**bits, 37)
    number = sum(int(v) << (i * bits) for i, v in enumerate(values))  # one long little-endian number
    packed = np.frombuffer(number.to_bytes(-(-37 * bits // 8), "little"), np.uint8)
    wanted = np.where(values >= 2 ** (bits - 1), values - 2**bits, values) if signed else values
    assert unpack_bits(packed, bits, 37, signed=signed).astype(int).tolist() == wanted.tolist()
