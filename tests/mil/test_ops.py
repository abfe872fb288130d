"""Every operation against an independent oracle, through packages that were saved and read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snapgen_deploy.export.mil import open_package
from snapgen_deploy.export.mil.ops.registry import OPS
from tests.mil.mil_cases_convolutions import CONVOLUTION_CASES
from tests.mil.mil_cases_elementwise import ELEMENTWISE
from tests.mil.mil_cases_gather import GATHER_CASES
from tests.mil.mil_cases_products import PRODUCT_CASES
from tests.mil.mil_cases_resizing import RESIZING
from tests.mil.mil_cases_shapes import SHAPE_CASES
from tests.mil.mil_harness import Arrays, Case, one_program, relative

CASES: list[Case] = [*ELEMENTWISE, *CONVOLUTION_CASES, *PRODUCT_CASES, *RESIZING, *SHAPE_CASES, *GATHER_CASES]
Results = tuple[Arrays, dict[str, list[str]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Results]:
    """Outputs of all cases of a target, computed once."""
    done: dict[int, Results] = {}

    def of(ios: int) -> Results:
        if ios not in done:
            cases = [c for c in CASES if c.ios == ios]
            path: Path = tmp_path_factory.mktemp("ops") / f"ios{ios}.mlpackage"
            package, inputs, names = one_program(cases, path, ios)
            done[ios] = open_package(package)(inputs), names
        return done[ios]

    return of


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"ios{c.ios}-{c.name}")
def test_operation(case: Case, results: Callable[[int], Results]) -> None:
    outputs, names = results(case.ios)
    wanted = case.expect(**case.inputs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert len(wanted) == len(names[case.name])
    for name, array in zip(names[case.name], wanted, strict=True):
        got, array = outputs[name], np.asarray(array)
        assert got.shape == array.shape
        assert (got.dtype.kind == "f") == (array.dtype.kind == "f"), "a real result where an integer is due, or the reverse"
        assert relative(got, array) <= case.tolerance


def test_names_are_unique() -> None:
    keys = [(c.ios, c.name) for c in CASES]
    assert len(keys) == len(set(keys))


def test_every_operation_has_a_test() -> None:
    """An operation in the table is built by some case or has a test of its own (constexpr, random, recurrent and so on)."""
    elsewhere = {o for o in OPS if o.startswith(("constexpr_", "random_"))} | {
        "read_state",
        "write_state",
        "classify",
        "gru",
        "lstm",
        "rnn",
    }
    covered = {str(c.extra.get("op", c.name.split("__")[0])) for c in CASES}
    assert set(OPS) - elsewhere - covered == set()
