"""What `verify` holds against each other beside the vectors: files of a folder layout, values of gates, the configuration."""

import pytest

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.check.facts import _of_checkpoint, _of_layout, refuse_other_values
from snapgen_deploy.check.gates import Gate
from snapgen_deploy.checkpoint import open_checkpoint
from snapgen_deploy.errors import GateFailed
from snapgen_deploy.export.onnx.optimum_layout import texts
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models.serialise import config_to_dict
from tests.checkpoint.cases import TOKENIZER, tiny_config
from tests.manifests import component, least_manifest


@pytest.fixture
def server(tmp_path):
    """The small files of a server's bundle."""
    manifest = least_manifest({"onnx:cpu": {"student": component("onnx-cpu/transformer/model.onnx")}})
    manifest["targets"]["onnx:cpu"]["options"] = {"folders": "diffusers"}
    config = tiny_config()
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    for name, text in texts(config, components_of(config).names, {"text_encoder": TOKENIZER}, "full").items():
        (tmp_path / "onnx-cpu" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "onnx-cpu" / name).write_text(text)
    return Bundle(tmp_path, manifest)


@pytest.mark.parametrize(
    "name",
    [
        "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "model_index.json",
        "transformer/config.json",
    ],
)  # fmt: skip
def test_a_folder_s_own_files_are_those_of_the_configuration(server, name):
    assert list(_of_layout(server, "onnx:cpu")) == []
    path = server.path / "onnx-cpu" / name
    path.write_text(path.read_text().replace("1", "2", 1) + " ")
    assert list(_of_layout(server, "onnx:cpu")) == [
        f"onnx:cpu {name} is not that of the configuration and the bundle's tokenizer"
    ]
    path.unlink()
    assert len(list(_of_layout(server, "onnx:cpu"))) == 1


@pytest.mark.parametrize(
    ("then", "now", "limit", "same"),
    [
        (1e-4, 2e-4, 1e-3, True),  # another processor
        (1e-9, 8e-4, 1e-3, False),
        (128.3, 121.0, 60.0, True),
        (99.0, 61.0, 60.0, False),
        (0.0, 0.0, 0.0, True),
        (0.0, 1.0, 0.0, False),
        (0.1, float("nan"), 1.0, False),
        (None, 0.5, 1.0, True),  # not run then
        (0.5, None, 1.0, True),
    ],
)
def test_values_of_gates_are_those_of_the_export(tmp_path, then, now, limit, same):
    gate = Gate("onnx:cpu", "student", "error", now, limit, "passed")
    recorded = [gate.as_dict() | {"value": then}]
    bundle = Bundle(tmp_path, least_manifest({}, gates=recorded))
    if same:
        refuse_other_values(bundle, [gate])
        return
    with pytest.raises(GateFailed, match="onnx:cpu student error is recorded as"):
        refuse_other_values(bundle, [gate])


def test_what_a_manifest_repeats_of_its_checkpoint(tmp_path):
    embedded = open_checkpoint(None)
    about = {"sha256": embedded.sha256(), "license": embedded.license}
    own = {"name": embedded.config.name, "config": config_to_dict(embedded.config), "checkpoint": about}
    assert list(_of_checkpoint(Bundle(tmp_path, least_manifest({}, **own)))) == []
    for changed, said in (
        ({"trained": False}, "trained is not that of the configuration"),
        ({"name": "mine"}, "name is not that of the configuration"),
        ({"licenses": {"student": "MIT"}}, "checkpoint.license, licenses or config is not that of"),
        ({"checkpoint": about | {"license": "MIT"}}, "checkpoint.license, licenses or config is not that of"),
    ):
        (wrong,) = _of_checkpoint(Bundle(tmp_path, least_manifest({}, **(own | changed))))
        assert said in wrong
