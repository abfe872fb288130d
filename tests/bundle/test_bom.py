"""The bill of materials is valid by CycloneDX's own schema, and says what the bundle holds."""

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion

from snapgen_deploy.bundle.bom import as_text, bill_of_materials
from snapgen_deploy.bundle.reader import MANIFEST, open_bundle, write_manifest
from snapgen_deploy.system.files import sha256_of
from tests.cli.conftest import invoke
from tests.manifests import files_of, least_manifest

KEY = "onnx:cpu"
GATE = {"target": KEY, "component": "student", "name": "relative_error", "value": 0.5}


def schema_error(text: str) -> object:
    """What CycloneDX's own schema says against a document; None where it is valid."""
    from cyclonedx.validation.json import JsonStrictValidator  # builds a grammar for IRIs, a second

    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def made(root: Path, license: str | None, trained: bool = True) -> Path:
    (root / "onnx").mkdir(parents=True)
    for name in ("graph", "weights"):
        (root / "onnx" / name).write_text(name)
    port = {"name": "latent", "dtype": "float32", "shape": [1, 4, 8, 8]}
    student = {"path": "onnx/graph", "files": files_of(root), "bytes": 12, "inputs": [port], "outputs": [port]}
    checkpoint = {"sha256": "a" * 64, "license": license}
    manifest = least_manifest(
        {KEY: {"student": student}},
        checkpoint=checkpoint,
        gates=[GATE | {"limit": 1, "detail": "", "verdict": "passed"}],
        trained=trained,
    )
    write_manifest(root, manifest)
    return root


@pytest.mark.parametrize(
    ("license", "said"),
    [
        ("Apache-2.0", [{"expression": "Apache-2.0"}]),
        ("MIT OR (Apache-2.0 AND BSD-3-Clause)", [{"expression": "MIT OR (Apache-2.0 AND BSD-3-Clause)"}]),
        ("proprietary", [{"license": {"name": "proprietary"}}]),
        ("ask us first", [{"license": {"name": "ask us first"}}]),
        (None, None),
    ],
)
def test_it_is_valid_and_states_the_licence(tmp_path: Path, license: str | None, said: list[dict] | None) -> None:
    document = bill_of_materials(open_bundle(made(tmp_path / "b", license)))
    assert schema_error(as_text(document)) is None
    assert [component.get("licenses") for component in document["components"]] == [said, said]


def test_every_model_has_its_own_licence(tmp_path: Path) -> None:
    root = made(tmp_path / "b", "MIT")
    manifest = json.loads((root / MANIFEST).read_text())

    def stated(**licences: str) -> tuple[object, object, object]:
        write_manifest(root, manifest | {"licenses": licences})
        document = bill_of_materials(open_bundle(root))
        assert schema_error(as_text(document)) is None
        model, origin = document["components"]
        return model["licenses"], origin["licenses"], document["metadata"]["component"]["licenses"]

    assert stated(student="MIT OR BSD-3-Clause", decoder="Apache-2.0") == (
        [{"expression": "MIT OR BSD-3-Clause"}],
        [{"expression": "MIT"}],
        [{"expression": "Apache-2.0 AND (MIT OR BSD-3-Clause)"}],
    )
    whole = [{"license": {"name": "MIT"}}, {"license": {"name": "gemma"}}]
    assert stated(student="gemma", decoder="MIT") == (whole[1:], [{"expression": "MIT"}], whole)


def test_it_says_what_the_bundle_holds(tmp_path: Path) -> None:
    root = made(tmp_path / "b", "MIT", trained=False)
    model, origin = bill_of_materials(open_bundle(root))["components"]
    assert (model["bom-ref"], model["version"], origin["bom-ref"]) == (f"{KEY} student", "fp32", "checkpoint")
    assert {c["name"]: c["hashes"][0]["content"] for c in model["components"]} == {
        name: sha256_of(root / name) for name in ("onnx/graph", "onnx/weights")
    }
    card = model["modelCard"]
    assert card["modelParameters"]["inputs"] == [{"format": "latent: float32 [1, 4, 8, 8]"}]
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [{"type": "relative_error", "value": "0.5", "slice": "all"}]
    assert "noise" in card["considerations"]["technicalLimitations"][0]


def test_equal_bundles_have_equal_documents(tmp_path: Path) -> None:
    documents = [bill_of_materials(open_bundle(made(tmp_path / name / "b", "MIT"))) for name in ("one", "two")]
    assert documents[0] == documents[1]


def test_the_command(tmp_path: Path) -> None:
    root = made(tmp_path / "b", "MIT")
    assert json.loads(invoke("bundle", "bom", root).stdout)["bomFormat"] == "CycloneDX"
    done = invoke("bundle", "bom", root, "-o", tmp_path / "bom.json")
    assert done.exit_code == 0, done.output
    assert schema_error((tmp_path / "bom.json").read_text()) is None
    (root / "onnx" / "graph").write_text("another")
    assert invoke("bundle", "bom", root).exit_code == 1  # no document about files that are not what was exported
