"""The checkpoints inside the package, by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapgen_deploy.checkpoint import EMBEDDED, embedded_path, open_checkpoint
from snapgen_deploy.checkpoint.opener import named_checkpoint
from snapgen_deploy.drawing.prompts import is_embedded
from snapgen_deploy.models.presets import UNET
from tests.cli.conftest import invoke

MOST_BYTES = 12_000_000  # of the U-Net, in a wheel that people download


def test_a_name_is_a_checkpoint_where_no_file_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {name: named_checkpoint(Path(name)) for name in EMBEDDED} == {name: embedded_path(name) for name in EMBEDDED}
    assert named_checkpoint(None) is None
    assert named_checkpoint(Path("shapes-other")) == Path("shapes-other")
    (tmp_path / "shapes-unet").mkdir()
    assert named_checkpoint(Path("shapes-unet")) == Path("shapes-unet")


def test_each_is_trained_and_known_by_its_bytes(tmp_path: Path) -> None:
    assert embedded_path("shapes-unet").stat().st_size <= MOST_BYTES
    for name in EMBEDDED:
        checkpoint = open_checkpoint(embedded_path(name))
        assert (checkpoint.config.name, checkpoint.config.trained, checkpoint.license) == (name, True, "Apache-2.0")
        (tmp_path / "copy.safetensors").write_bytes(embedded_path(name).read_bytes())
        assert is_embedded(checkpoint)
        assert is_embedded(open_checkpoint(tmp_path / "copy.safetensors"))
    assert open_checkpoint(embedded_path("shapes-unet")).config.family == UNET


def test_a_plan_by_name() -> None:
    done = invoke("export", "--device", "iphone16pm", "--checkpoint", "shapes-unet", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "full fits" in done.output


@pytest.mark.slow
def test_the_unet_draws_what_is_asked() -> None:
    from examples.shapes.unet import score, shipped

    found = score(shipped())
    assert isinstance(found["objects"], float)
    assert found["objects"] >= 0.88
