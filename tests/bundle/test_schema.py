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
        ("name", 3, "name: got 3, expected a non-empty string"),
        ("device", None, "device: got nothing, expected a table"),
        ("device", {}, "device.id: got nothing, expected a non-empty string"),
        ("device.guards", 0, "device.guards: got 0, expected a list of texts"),
        ("resolution", [64], "resolution: got [64], expected [height, width]"),
        ("latent", {}, "latent.shape: got nothing"),
        ("schedule", "x", "schedule: got 'x', expected a table"),
        ("schedule.sigmas", None, "schedule.sigmas: got nothing"),
        ("schedule.sigmas", [1.0, float("nan")], "schedule.sigmas[1]: got nan, expected a finite number"),
        ("schedule.time_features.count", 10**30, "schedule.time_features.count: got 1000"),
        ("schedule.time_features.count", True, "schedule.time_features.count: got true"),
        ("sizes", [None], "sizes[0]: got nothing, expected a table"),
        ("sizes", -1, "sizes: got -1, expected a list of 1 or more"),
        ("target_order", None, "target_order: got nothing"),
        ("target_order", ["coreml"], "target_order: got ['coreml'], expected the names of its targets"),
        ("targets.onnx:cpu", None, "targets.onnx:cpu: got nothing, expected a table"),
        ("targets.onnx:cpu.components.student.bytes", "5", "targets.onnx:cpu.components.student.bytes: got '5'"),
        ("targets.onnx:cpu.components.student.path", "../x.onnx", "got '../x.onnx', expected files of this bundle"),
        ("targets.onnx:cpu.components.student.path", "/x.onnx", "got '/x.onnx', expected files of this bundle"),
        ("targets.onnx:cpu.components.student.files", {"a/../../x": {}}, "got 'a/../../x', expected files of this bundle"),
        ("targets.onnx:cpu.components.student.sizes", {"64x96": {"path": "../x"}}, "sizes.64x96.path: got '../x'"),
        ("targets.onnx:cpu.components.student.sizes", {"64x96": 1}, "sizes.64x96: got 1, expected a table"),
        ("targets.onnx:cpu.components.student.sizes", {"64x96": {"files": ["x"]}}, "expected files of the component"),
        ("targets.onnx:cpu.components.student.sizes", None, "student.sizes: got nothing, expected a table"),
        ("targets.onnx:cpu.components.student.files", {"a": {"bytes": "5", "sha256": ""}}, "student.files.a.bytes: got '5'"),
        ("targets.onnx:cpu.components.student.files", {"a": None}, "student.files.a: got nothing, expected a table"),
        ("targets.onnx:cpu.components.student.macs", 10**400, "student.macs: got 1000"),
        ("targets.onnx:cpu.precision", "fp3", "targets.onnx:cpu.precision: got 'fp3', expected one of fp32, fp16, "),
        ("targets.onnx:gpu", {}, "targets: got 'onnx:gpu', expected one of coreml, coreai, "),
        ("targets.onnx:cpu.limits", [], "targets.onnx:cpu.limits: got [], expected a table"),
        ("targets.onnx:cpu.limits", {"psnr": "9"}, "targets.onnx:cpu.limits.psnr: got '9', expected a finite number"),
        ("targets.onnx:cpu.limits", {"pnsr": 9}, "targets.onnx:cpu.limits: got 'pnsr', expected one of error, psnr"),
        ("schedule.shift", 10**400, "schedule.shift: got 1000"),
        ("schedule.time_features.values", [[10**400]], "schedule.time_features.values[0][0]: got 1000"),
        ("gates", [{"target": {}}], "gates[0].target: got {}, expected a non-empty string; gates[0].component: got nothing"),
        ("targets.onnx:cpu.components.student.sizes", {"../x": {}}, "student.sizes: got '../x', expected HEIGHTxWIDTH"),
        ("targets.onnx:cpu.components.student.ops", [], "student.ops: got [], expected a table"),
        ("targets.onnx:cpu.components.student.placement", {"cpu": "x"}, "placement.cpu: got 'x', expected a whole number"),
        ("checkpoint", {}, "checkpoint.sha256: got nothing, expected a string; checkpoint.license: got nothing, expected"),
        ("sizes", [{"name": "../../x", "resolution": [8, 8], "latent": [1, 1, 1]}], "sizes[0].name: got '../../x', expected H"),
        ("seeds", [10**400], "seeds[0]: got 1000"),
        ("vectors_of", "../x", "vectors_of: got '../x', expected HEIGHTxWIDTH"),
        ("prompts", [3], "prompts[0]: got 3, expected a string"),
    ],
)  # fmt: skip
def test_what_is_amiss_is_told(tmp_path, path, value, said):
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
    assert len(str(caught.value).replace(str(tmp_path), "")) <= 300
    assert str(caught.value).endswith("; export the bundle again")
