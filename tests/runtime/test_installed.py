"""What the extras bring, and what is said in an environment that has none of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.extras import TO_DRAW, TO_EXPORT, Extra, NotInstalled, need

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: {re.split(r"[=<>,]", one)[0] for one in asked} for name, asked in PROJECT["optional-dependencies"].items()}
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn", "license-expression": "license_expression"}
NOT_LOOKED_FOR = {"executorch", "onnx", "optimum-onnx"}  # names of targets, and a part of `optimum`


def alone(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that has the standard library and this package only."""
    begin = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", begin, *words], capture_output=True, text=True, timeout=60)


def test_pip_brings_what_is_asked_for() -> None:
    assert PROJECT["dependencies"] == []
    assert EXTRAS["runtime"] == {"numpy", "onnxruntime", "pillow", "tokenizers"}
    assert "snapgen-deploy[runtime]" in EXTRAS["export"]
    assert all("snapgen-deploy[export]" in asked for name, asked in EXTRAS.items() if name not in ("runtime", "export"))


def test_what_is_looked_for_is_what_pip_brings() -> None:
    assert set(TO_DRAW.modules) == {MODULES.get(name, name) for name in EXTRAS["runtime"]}
    brought = EXTRAS["export"] - {"snapgen-deploy[runtime]"} | EXTRAS["runtime"]
    assert set(TO_EXPORT.modules) == {MODULES.get(name, name) for name in brought - NOT_LOOKED_FOR}


def test_the_command_says_what_to_install() -> None:
    done = alone("from snapgen_deploy.command import start_command; start_command()", "devices", "--json")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    said = "snapgen-deploy needs packages that are not installed (numpy, onnxruntime, PIL, tokenizers and 17 more): "
    assert line == f'error: {said}python -m pip install "snapgen-deploy[export]"'
    assert json.loads(done.stdout) == {"error": line.removeprefix("error: "), "exit_code": 2}


def test_open_bundle_says_what_to_install() -> None:
    done = alone("import snapgen_deploy; print(snapgen_deploy.__version__); from snapgen_deploy import open_bundle")
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
    said = "open_bundle needs packages that are not installed (numpy, onnxruntime, PIL, tokenizers): "
    assert done.stderr.splitlines()[-1] == (
        f'snapgen_deploy.extras.NotInstalled: {said}python -m pip install "snapgen-deploy[runtime]"'
    )


def test_writing_golden_vectors_says_what_to_install() -> None:
    done = alone("from snapgen_deploy.golden import Recorder")
    assert done.returncode == 1
    said = "snapgen_deploy.golden needs packages that are not installed (numpy, onnxruntime, PIL, tokenizers and 17 more): "
    assert done.stderr.splitlines()[-1] == (
        f'snapgen_deploy.extras.NotInstalled: {said}python -m pip install "snapgen-deploy[export]"'
    )


def test_it_is_caught_as_either_error() -> None:
    need(Extra("some", ("json",)), "this")
    for kind in (BadInput, ImportError):
        with pytest.raises(
            kind, match=r'^this needs .* \(no_such\): python -m pip install "snapgen-deploy\[some\]"$'
        ) as caught:
            need(Extra("some", ("json", "no_such")), "this")
        assert isinstance(caught.value, NotInstalled)
