"""The records of the targets: what they say is so, they need no backend, and a target that is not known gets one line."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.coreai import compress as coreai_compress
from snapgen_deploy.export.coreml import compress as coreml_compress
from snapgen_deploy.export.executorch import quantise as executorch_quantise
from snapgen_deploy.export.onnx import quantise as onnx_quantise
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.export.registry import TARGETS, find_spec, host_default, spec_of, specs, target_keys, target_of
from snapgen_deploy.job.cache import tool_versions
from snapgen_deploy.latency.links.registry import LINKS
from snapgen_deploy.sparse import FORMS

# What each target's quantiser makes, the default first.
MADE = {
    "coreml": (*coreml_compress.PRECISIONS, "mixed"),
    "coreai": tuple(coreai_compress.PRECISIONS),
    "executorch:xnnpack": tuple(executorch_quantise.PRECISIONS),
    "executorch:coreml": tuple(name for name in coreml_compress.PRECISIONS if name != "w8a8"),
    "executorch:vulkan": ("fp16", "fp32"),
    "onnx:cpu": (*onnx_quantise.PRECISIONS, "mixed"),
    "onnx:cuda": ("fp16", "fp32"),
    "onnx:qnn": ("fp16", "w8a16"),
    "onnx:web": ("fp32", "fp16", "int8-dynamic", "int4"),
}


@pytest.mark.parametrize("row", TARGETS)
def test_a_record_and_its_target_say_the_same(row: str) -> None:
    spec = specs()[row]
    target, variant = target_of(row)
    assert row in (spec.key, spec.name)
    assert variant == spec.variant
    assert spec.precisions == MADE[spec.key]
    told = target.name, target.variants, target.precisions, target.suffix  # type: ignore[attr-defined]
    assert told == (spec.name, spec.variants, spec.precisions, spec.suffix)


def test_records_name_only_what_there_is() -> None:
    assert set(target_keys()) == set(MADE)
    for spec in specs().values():
        assert set(spec.precisions) <= set(PRECISIONS)
        assert set(spec.calibrated) <= set(spec.precisions)
        assert bool(spec.palette_bits) == ("mixed" in spec.precisions)
        assert {*spec.loaded_as, *spec.memory.at_precision} <= set(spec.precisions)
        assert set(spec.loaded_as.values()) <= set(PRECISIONS)
        assert set(spec.writing.forms) <= set(FORMS)
        assert set(spec.links) <= set(LINKS)
    assert [spec.key for spec in specs().values() if spec.runtime.host_default] == [host_default().key]


def test_every_link_has_a_target() -> None:
    assert {link for spec in specs().values() for link in spec.links} == set(LINKS)


def test_every_tool_is_a_package_and_counts_in_the_cache() -> None:
    versions = dict(tool_versions())
    for spec in specs().values():
        assert spec.runtime.package in versions
        if spec.extra is None:
            assert "absent" not in {versions[tool] for tool in spec.tools}, spec.key


def test_a_bare_name_is_the_variant_of_its_record() -> None:
    assert spec_of("onnx") is spec_of("onnx:cpu")
    assert spec_of("executorch").key == "executorch:xnnpack"
    assert spec_of("executorch:vulkan").key == "executorch:vulkan"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("onxn", "unknown target 'onxn': did you mean onnx?"),
        ("zzz", "unknown target 'zzz': did you mean coreml or coreai or executorch or onnx?"),
        ("onnx:gpu", "target onnx has no variant 'gpu': expected one of cpu, cuda, qnn, web"),
        ("coreml:gpu", "target coreml has no variant 'gpu': it has none; write coreml"),
        ("onnx:", "target onnx has no variant ''"),
        ("", "unknown target ''"),
    ],
)
def test_an_unknown_target(key: str, said: str) -> None:
    assert find_spec(key) is None
    with pytest.raises(BadInput) as caught:
        spec_of(key)
    assert str(caught.value).startswith(said)
    with pytest.raises(BadInput, match=f"^{re.escape(said)}"):
        target_of(key)


def test_records_load_without_torch_and_backends() -> None:
    code = (
        "import sys; from snapgen_deploy.export.registry import specs; specs(); "
        "sys.exit(bool({'torch', 'numpy', 'onnxruntime', 'executorch', 'coremltools', 'coreai'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
