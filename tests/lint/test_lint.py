from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.lint import RULES, SEVERITIES, Finding, counts, lint_package
from snapgen_deploy.export.lint.findings import EXAMPLES
from snapgen_deploy.export.lint.graph import graph_of
from snapgen_deploy.export.lint.memory import live_bytes
from snapgen_deploy.export.lint.rule import Subject
from snapgen_deploy.export.mil.saved.program import Constant, Function, Operation, Package, Value
from snapgen_deploy.export.mil.saved.reader import read_package
from snapgen_deploy.export.mil.saved.types import DTYPES, ValueType
from tests.lint.lint_cases import CASES, HALF, IMAGE, clean, edit, mb, save, weight

# What each broken package shows first, and how many offenders it has.
EXPECTED = {
    "constant-range": (2, "const add_0_y_0 fp16[1, 1, 8, 32] (holds -inf)"),
    "empty-mask-row": (1, "scaled_dot_product_attention y fp16[1, 4, 64, 32] (1 of 64 rows)"),
    "fp32-island": (1, "exp exp_0 fp32[1, 64, 8, 32]"),
    "cast-pair": (1, "cast cast_1 fp16[1, 64, 8, 32] (fp16 → fp32 → fp16)"),
    "rank": (1, "reshape folded fp16[1, 1, 2, 32, 8, 32]"),
    "narrow-last-axis": (3, "input x fp16[1, 8, 1024, 8] (16 bytes a row, 4x the memory)"),
    "long-axis": (2, "input x fp16[1, 1, 1, 20736] (axis of 20736)"),
    "dynamic-shape": (2, "input x float16[1, 64, 8, 32] (sizes 1, 64, 8..32, 32)"),
    "layout-between-convolutions": (2, "transpose transpose_0 fp16[1, 8, 32, 64] (from fp16[1, 64, 8, 32])"),
    "gather-scatter": (1, "gather gather_0 fp16[1, 16, 64]"),
    "off-engine": (4, "conv conv_0 fp16[1, 64, 8, 32] (kernel 17 wide)"),
    "softmax-rows": (2, "softmax softmax_0 fp16[1, 4096, 1, 32] (rows of 4096)"),
    "several-fused-attentions": (
        2,
        "scaled_dot_product_attention scaled_dot_product_attention_0 fp16[1, 1, 1024, 256] (1024 keys of 256)",
    ),
    "attention-batch": (2, "scaled_dot_product_attention scaled_dot_product_attention_0 fp16[10, 2, 32, 32] (batch 10)"),
    "argmax": (1, "reduce_argmax y int32[1, 1, 8, 32]"),
    "empty-tensor": (1, "split parts_1 fp16[1, 0, 8, 32]"),
    "width-slice": (2, "slice_by_index slice_by_index_1 fp16[1, 64, 1, 64]"),
    "working-set": (3, "exp exp_0 fp16[1, 256, 64, 64] (about 6.3 MB alive)"),
}


@pytest.fixture(scope="module")
def clean_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean(tmp_path_factory.mktemp("clean") / "clean.mlpackage")


def test_every_rule_has_a_case_and_says_why() -> None:
    assert set(CASES) | {"weights-over-limit", "buffer-over-4gib", "first-load", "missing-asset"} == set(RULES)
    assert set(EXPECTED) == set(CASES)
    for rule in RULES.values():
        assert rule.severity in SEVERITIES
        assert rule.reason
        assert rule.fix
        assert any(source.startswith("https://") for source in rule.sources)


@pytest.mark.parametrize("rule", CASES)
def test_a_package_trips_exactly_its_rule(rule: str, tmp_path: Path) -> None:
    findings = lint_package(CASES[rule](tmp_path / "broken.mlpackage"))
    assert [f.rule for f in findings] == [rule]
    count, example = EXPECTED[rule]
    assert (findings[0].count, str(findings[0].examples[0])) == (count, example)
    assert findings[0].severity == RULES[rule].severity
    assert counts(findings) == {rule: count}


def test_a_clean_package_trips_none(clean_package: Path) -> None:
    assert lint_package(clean_package) == ()
    assert lint_package(clean_package, memory_limit=10**9) == ()


def test_weights_against_the_limit(clean_package: Path) -> None:
    (finding,) = lint_package(clean_package, memory_limit=50_000)
    assert (finding.rule, finding.severity, finding.count) == ("weights-over-limit", "error", 1)
    # 1x1 kernels of 8 kB and one 3x3 kernel of 74 kB, in half precision
    assert finding.message == "0.10 MB of weights; the app's limit is 0.05 MB"


def test_masks_are_seen_wherever_the_value_stands(tmp_path: Path) -> None:
    large = weight(1, 3, 1200, 1200).astype(np.float32)  # beyond one chunk of the scan
    large[0, 2, 1199, 1199] = np.nan

    def body(x):  # type: ignore[no-untyped-def]
        h = mb.select(cond=mb.greater(x=x, y=np.float16(0)), a=x, b=np.float16(-np.inf))
        return mb.add(x=h, y=mb.reduce_mean(x=mb.cast(x=large, dtype="fp16"), axes=[1, 2, 3], keep_dims=True), name="y")

    (found,) = (f for f in lint_package(save(tmp_path / "m.mlpackage", body, IMAGE)) if f.rule == "constant-range")
    assert sorted(e.note for e in found.examples) == ["holds -inf", "holds nan"]


def test_operations_of_blocks_are_looked_at(tmp_path: Path) -> None:
    def body(x):  # type: ignore[no-untyped-def]
        return mb.cond(
            pred=mb.greater(x=mb.squeeze(x=mb.slice_by_size(x=x, begin=[0] * 4, size=[1] * 4)), y=np.float16(0)),
            _true_fn=lambda: mb.add(x=x, y=np.float16(-np.inf), name="hidden"),
            _false_fn=lambda: mb.relu(x=x),
            name="y",
        )

    found = {f.rule: f for f in lint_package(save(tmp_path / "c.mlpackage", body, IMAGE))}
    assert set(found) == {"constant-range", "off-engine"}
    assert [e.op for e in found["off-engine"].examples] == ["cond"]


def test_a_whole_program_in_fp32_is_said_to_be_one(tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import types

    path = save(tmp_path / "f.mlpackage", lambda x: mb.relu(x=mb.exp(x=x), name="y"), ((1, 64, 8, 32), types.fp32))
    (found,) = lint_package(path)
    assert (found.rule, found.count) == ("fp32-island", 2)
    assert "without any half precision" in found.message


def test_layout_changes_for_a_matmul_are_not_blamed(tmp_path: Path) -> None:
    def body(x):  # type: ignore[no-untyped-def]
        h = mb.reshape(x=mb.conv(x=x, weight=weight(64, 64, 1, 1)), shape=(1, 64, 256))
        h = mb.matmul(x=mb.transpose(x=h, perm=(0, 2, 1)), y=weight(64, 64))
        h = mb.reshape(x=mb.transpose(x=h, perm=(0, 2, 1)), shape=(1, 64, 8, 32))
        return mb.conv(x=h, weight=weight(64, 64, 1, 1), name="y")

    assert lint_package(save(tmp_path / "t.mlpackage", body, IMAGE)) == ()


def test_a_transpose_of_axes_of_one_moves_nothing(tmp_path: Path) -> None:
    def body(x):  # type: ignore[no-untyped-def]
        h = mb.transpose(x=mb.conv(x=x, weight=weight(64, 64, 1, 1)), perm=(2, 1, 0, 3))
        return mb.conv(x=h, weight=weight(64, 64, 1, 1), name="y")

    assert lint_package(save(tmp_path / "t.mlpackage", body, ((1, 64, 1, 64), HALF))) == ()


def test_live_bytes_count_padding_skips_and_views_once(tmp_path: Path) -> None:
    def body(x):  # type: ignore[no-untyped-def]
        a = mb.relu(x=x)  # x, a
        v = mb.reshape(x=a, shape=(1, 64, 1, 8))  # a view of a
        b = mb.exp(x=v)  # x, a, b: x is a skip that the last operation needs
        c = mb.reduce_sum(x=b, axes=[1], keep_dims=True)  # x, b, c
        return mb.add(x=x, y=c, name="y")  # x, c, y

    graph = graph_of(read_package(save(tmp_path / "l.mlpackage", body, ((1, 64, 1, 8), HALF))).functions["main"])
    rows = 64 * 64  # 64 rows of 8 half-precision numbers, each padded to 64 bytes
    assert [size for size, _ in live_bytes(graph)] == [2 * rows, 2 * rows, 3 * rows, 2 * rows + 64, 2 * rows + 64]


def test_examples_are_few_and_findings_travel(tmp_path: Path) -> None:
    def body(x):  # type: ignore[no-untyped-def]
        for _ in range(8):
            x = mb.reduce_prod(x=mb.relu(x=x), axes=[0], keep_dims=True)
        return mb.relu(x=x, name="y")

    findings = lint_package(save(tmp_path / "m.mlpackage", body, IMAGE))
    assert (findings[0].count, len(findings[0].examples)) == (8, EXAMPLES)
    assert pickle.loads(pickle.dumps(findings)) == findings
    assert all(isinstance(f, Finding) and f.as_dict()["examples"][0]["op"] == "reduce_prod" for f in findings)


def test_errors_come_first(tmp_path: Path) -> None:
    findings = lint_package(CASES["working-set"](tmp_path / "w.mlpackage"))
    assert findings[0].severity == "info"
    both = lint_package(CASES["gather-scatter"](tmp_path / "g.mlpackage"), memory_limit=1)
    assert [f.severity for f in both] == ["error", "warning"]


def test_what_is_no_package_is_refused(tmp_path: Path, clean_package: Path) -> None:
    with pytest.raises(BadInput, match="no such"):
        lint_package(tmp_path / "missing.mlpackage")
    broken = shutil.copytree(clean_package, tmp_path / "broken.mlpackage")
    (broken / "Manifest.json").write_text("{")
    with pytest.raises(BadInput, match="malformed"):
        lint_package(broken)

    def unprogram(model):  # type: ignore[no-untyped-def]
        model.ClearField("mlProgram")

    empty = edit(shutil.copytree(clean_package, tmp_path / "empty.mlpackage"), unprogram)
    with pytest.raises(BadInput, match="expected an ML Program"):
        lint_package(empty)


def test_the_converter_s_own_casts_at_the_border_are_fine(tmp_path: Path) -> None:
    import coremltools as ct
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(4, 64, 3, padding=1), torch.nn.GELU(), torch.nn.Conv2d(64, 4, 1)).eval()
    program = torch.export.export(network, (torch.zeros(1, 4, 32, 32),)).run_decompositions({})
    outputs = [ct.TensorType(dtype=np.float32)]
    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, outputs=outputs, skip_model_load=True)
    model.save(str(tmp_path / "t.mlpackage"))
    package = read_package(tmp_path / "t.mlpackage")
    assert [op.type for op in graph_of(package.functions["main"]).operations].count("cast") == 2
    assert lint_package(tmp_path / "t.mlpackage") == ()


def test_attention_that_is_right_is_not_blamed(tmp_path: Path) -> None:
    """One large fused attention, at a batch of 9, and a place of a maximum that is sought in single precision."""

    def body(x):  # type: ignore[no-untyped-def]
        h = mb.scaled_dot_product_attention(query=x, key=x, value=x)
        return mb.reduce_argmax(x=mb.cast(x=h, dtype="fp32"), axis=-1, name="y")

    found = counts(lint_package(save(tmp_path / "a.mlpackage", body, ((9, 1, 1024, 256), HALF))))
    assert not found.keys() & {"several-fused-attentions", "attention-batch", "argmax", "empty-tensor", "buffer-over-4gib"}


def made_of(function: str, shape: tuple[int, ...], weights: tuple[int, ...]) -> Function:
    """A product of an input with a constant of a shape that nobody stores."""

    def value(name: str, sizes: tuple[int, ...]) -> Value:
        return Value(name, ValueType(DTYPES["fp16"], sizes))

    x, w, y = value("x", shape), value("w", weights), value("y", shape)
    constant = Operation("const", "w", 0, {"val": (Constant(w.type, lambda: pytest.fail("was read")),)}, (w,))
    product = Operation("mul", "y", 1, {"x": ("x",), "y": ("w",)}, (y,))
    return Function(function, 8, (x,), (constant, product), ("y",))


def said_of(rule: str, *functions: Function) -> Finding | None:
    package = Package({f.name: f for f in functions}, {}, functions[0].name, 9)
    return RULES[rule].apply(Subject(package, tuple(map(graph_of, functions)), 0, None))


def test_a_buffer_that_metal_does_not_allocate() -> None:
    limit = (1, 2**15, 2**16)  # 4 GiB in half precision
    assert said_of("buffer-over-4gib", made_of("main", limit, limit)) is None
    for shapes in (((1, 2**15, 2**16 + 1), (1,)), ((1,), (2**15 + 1, 2**16))):
        found = said_of("buffer-over-4gib", made_of("main", *shapes))
        assert found is not None
        assert found.severity == "error"
        assert found.examples[0].note == "4.00 GiB"


def test_the_first_load_grows_with_the_weights_and_the_functions() -> None:
    weights = (10_000, 15_000)  # 150M, 45 s
    assert said_of("first-load", made_of("main", (1,), weights)) is None
    found = said_of("first-load", made_of("size_512x512", (1,), weights), made_of("size_768x768", (1,), weights))
    assert found is not None
    assert (found.severity, found.count) == ("info", 2)
    assert found.message == "estimate: about 90 s to compile 2 functions for the Neural Engine"
    assert str(found.examples[1]) == "function size_768x768  (150M weights)"
