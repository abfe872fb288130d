"""The repository for Triton: its configurations by Triton's own schema, and its loop on a made-up server."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml

from snapgen_deploy import open_bundle as open_for_drawing
from snapgen_deploy.apps.registry import APP_MARK, app_of, write_app
from snapgen_deploy.apps.triton import INSTANCES
from snapgen_deploy.bundle.reader import open_bundle
from snapgen_deploy.bundle.vectors import port_values
from tests.apps.conftest import Once
from tests.apps.mobile import as_mobile

PROMPTS = ("a red ring", "a blue ring on gray", "a zebra", "a gray ring")


@pytest.fixture(scope="module")
def mobile(bundle: Path, once: Once) -> Path:
    return once("mobile bundle", lambda folder: as_mobile(bundle, folder))


@pytest.fixture(scope="module")
def repository(mobile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_app(app_of("triton"), open_bundle(mobile), tmp_path_factory.mktemp("triton") / "app")


def loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configurations_are_tritons(mobile: Path, repository: Path) -> None:
    client = importlib.util.find_spec("tritonclient")
    if client is None or client.submodule_search_locations is None:
        pytest.skip("tritonclient is not installed")
    from google.protobuf import text_format

    # by its path: the package around it would import grpc
    schema = loaded("model_config_pb2", Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py")
    found = {}
    for path in (repository / "models").glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(), schema.ModelConfig())
        assert config.name == path.parent.name
        assert [group.count for group in config.instance_group] == [INSTANCES]
        found[config.name] = config
    opened = open_bundle(mobile)
    assert set(found) == {"snapgen", *opened.manifest["targets"]["onnx:cpu"]["components"]}
    assert found["snapgen"].backend == "python"
    assert found["snapgen"].HasField("dynamic_batching")
    assert list(found["snapgen"].output[0].dims) == [64, 64, 3]
    for role, warm in port_values(opened).items():
        config = found[role]
        assert (config.backend, config.max_batch_size) == ("onnxruntime", 0)
        assert {i.name: tuple(i.dims) for i in config.input} == {name: value.shape for name, value in warm.items()}
        warmup = config.model_warmup[0].inputs
        assert set(warmup) == set(warm)
        for name, value in warm.items():
            data = (repository / "models" / role / "warmup" / warmup[name].input_data_file).read_bytes()
            assert data == value.tobytes()


class Tensor:
    def __init__(self, name: str, value: np.ndarray) -> None:
        self.name, self.value = name, value

    def as_numpy(self) -> np.ndarray:
        return self.value


class Response:
    def __init__(self, output_tensors: list[Tensor], error: Any = None) -> None:
        self.tensors, self.failed = output_tensors, error

    def has_error(self) -> bool:
        return self.failed is not None


@pytest.fixture
def model(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An instance of the Python model, on a server of sessions."""
    models = repository / "models"
    calls = []

    class Request:
        def __init__(self, model_name: str, requested_output_names: list[str], inputs: list[Tensor], **_: object) -> None:
            self.model, self.names, self.given = model_name, requested_output_names, {t.name: t.value for t in inputs}

        def exec(self) -> Response:
            calls.append(self.model)
            session = onnxruntime.InferenceSession(str(models / self.model / "1" / "model.onnx"))
            return Response([Tensor(n, v) for n, v in zip(self.names, session.run(self.names, self.given), strict=True)])

    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.InferenceRequest, utils.InferenceResponse = Tensor, Request, Response
    utils.TritonError, utils.TRITONSERVER_MEMORY_CPU, utils.PreferredMemory = str, 0, lambda *_: None
    utils.get_output_tensor_by_name = lambda response, name: next(t for t in response.tensors if t.name == name)
    utils.get_input_tensor_by_name = lambda request, name: getattr(request, name, None)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = loaded("triton_model", models / "snapgen" / "1" / "model.py").TritonPythonModel()
    made.initialize({"model_repository": str(models / "snapgen"), "model_version": "1"})
    yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == "picture"]:
        del sys.modules[name]


def request(prompt: str, seed: int) -> SimpleNamespace:
    text = Tensor("prompt", np.array([[prompt.encode()]], object))
    return SimpleNamespace(prompt=text, seed=Tensor("seed", np.array([[seed]], np.uint64)))


def test_its_loop_draws_what_a_bundle_draws(mobile: Path, model: Any) -> None:
    native = open_for_drawing(mobile, threads=1)
    responses = model.execute([request(prompt, 7 + i) for i, prompt in enumerate(PROMPTS)])
    for i, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        if prompt == "a zebra":
            assert response.failed == "the model does not know the words 'zebra'"
            continue
        (picture,) = (tensor.as_numpy() for tensor in response.tensors)
        assert picture.shape == (1, 64, 64, 3)
        assert np.abs(picture[0].astype(int) - native.draw(prompt, 7 + i).pixels).max() <= 1


def test_kserve_and_the_mark(repository: Path) -> None:
    service = yaml.safe_load((repository / "kserve.yaml").read_text())
    assert (service["kind"], service["apiVersion"]) == ("InferenceService", "serving.kserve.io/v1beta1")
    assert service["spec"]["predictor"]["model"]["modelFormat"]["name"] == "triton"
    assert "nvidia.com/gpu" not in service["spec"]["predictor"]["model"]["resources"]["limits"]
    assert (repository / APP_MARK).is_file()
