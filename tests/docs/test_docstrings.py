"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from snapgen_deploy.system.source import package_root
from tests.test_architecture import dotted, python_files

WITH_EXAMPLES = [dotted(path) for path in python_files(package_root()) if "    >>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings(module: str) -> None:
    failed, attempted = doctest.testmod(import_module(f"snapgen_deploy.{module}"))
    assert attempted > 0
    assert failed == 0
