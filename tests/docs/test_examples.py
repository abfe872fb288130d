"""The examples in docstrings: each gives what it says."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from snapgen_deploy.system.source import package_root
from tests.test_architecture import dotted, python_files

MODULES = sorted(dotted(path) for path in python_files(package_root()) if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    found = doctest.testmod(import_module(f"snapgen_deploy.{name}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0, "the difference is on standard output"
