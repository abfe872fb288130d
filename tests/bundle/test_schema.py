"""Manifests that were changed by hand, or by a disk, are told in one line."""

import pytest

from snapgen_deploy.bundle.schema import refuse_misshapen
from snapgen_deploy.errors import BadInput
from tests.manifests import component, least_manifest


def manifest():
    made = least_manifest({"onnx:cpu": {"student": component("onnx/student.onnx")}})
    made["sizes"] = [{"name": "64x96", "resolution": [64, 96], "latent": [4, 8, 12]}]
    return made


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("name", 3, "name: got 3, expected a text"),
        ("device", None, "device.id: got nothing, expected a text"),
        ("device.guards", 0, "device.guards: got 0, expected a list of texts"),
        ("resolution", [64], "resolution: got [64], expected [height, width]"),
        ("latent", {}, "latent.shape: got nothing"),
        ("schedule", "x", "schedule.sampler: got nothing"),
        ("schedule.sigmas", None, "schedule.sigmas: got nothing"),
        ("schedule.sigmas", [1.0, float("nan")], "schedule.sigmas: got [1.0, nan], expected a list of numbers"),
        ("schedule.time_features.count", 10**30, "schedule.time_features.count: got 1000"),
        ("schedule.time_features.count", True, "schedule.time_features.count: got True"),
        ("sizes", [None], "sizes: got [None], expected a list of tables"),
        ("sizes", -1, "sizes: got -1, expected a list of tables"),
        ("target_order", None, "target_order: got nothing"),
        ("target_order", ["coreml"], "target_order: got ['coreml'], expected the names of its targets"),
        ("targets.onnx:cpu", None, "targets.onnx:cpu.precision: got nothing"),
        ("targets.onnx:cpu.components.student.bytes", "5", "targets.onnx:cpu.components.student.bytes: got '5'"),
        ("targets.onnx:cpu.components.student.path", "../x.onnx", "got '../x.onnx', expected files of this bundle"),
        ("targets.onnx:cpu.components.student.path", "/x.onnx", "got '/x.onnx', expected files of this bundle"),
        ("targets.onnx:cpu.components.student.files", {"a/../../x": {}}, "got 'a/../../x', expected files of this bundle"),
        ("targets.onnx:cpu.components.student.sizes", {"64x96": {"path": "../x"}}, "sizes.64x96.path: got '../x'"),
        ("targets.onnx:cpu.components.student.sizes", {"64x96": 1}, "sizes.64x96: got 1, expected files of the component"),
    ],
)  # fmt: skip
def test_the_first_thing_amiss_is_told(tmp_path, path, value, said):
    made = manifest()
    refuse_misshapen(tmp_path, made)
    *above, last = path.split(".")
    table = made
    for key in above:
        table = table[key]
    table[last] = value
    with pytest.raises(BadInput) as caught:
        refuse_misshapen(tmp_path / "manifest.json", made)
    assert said in str(caught.value)
    assert str(caught.value).endswith("; export the bundle again")
