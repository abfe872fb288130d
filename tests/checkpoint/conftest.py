from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from snapgen_deploy.checkpoint import save_checkpoint
from snapgen_deploy.models import ElasticDiT
from tests.checkpoint.cases import TOKENIZER, tiny_config, tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model() -> tuple[ElasticDiT, dict[str, Tensor]]:
    return tiny_model()


@pytest.fixture
def state(model: tuple[ElasticDiT, dict[str, Tensor]]) -> dict[str, Tensor]:
    return dict(model[1])


@pytest.fixture
def saved(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(state, tiny_config(), path, TOKENIZER, "Apache-2.0")
    return path
