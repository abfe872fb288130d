"""Targets whose tools are an optional extra: what is said, and that nothing else needs them."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import pytest

from snapgen_deploy.check.gates import Gate, SavedTarget, check_target
from snapgen_deploy.cli.result import print_gates
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Artifact
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.export.registry import specs, target_of
from snapgen_deploy.job import begin
from tests.cli.conftest import invoke, tiny_config
from tests.cli.test_bad_input import one_line


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra is not installed."""
    known = {name for spec in specs().values() if spec.extra for name in spec.extra.modules}
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name in known else found(name))


@pytest.mark.usefixtures("without")
def test_export_names_the_extra_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(begin, "validate_values", lambda _: pytest.fail("work has begun"))
    monkeypatch.setattr("snapgen_deploy.cli.devices.render_plan", lambda plan, console: None)
    done = invoke("export", "--device", "iphone16pm", "--target", "coreai", "--output-dir", tmp_path)
    one_line(done, "coreai", "pip install 'snapgen-deploy[coreai]'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without")
def test_the_target_says_so_itself(tmp_path: Path):
    target, variant = target_of("coreai")
    assert "snapgen-deploy[coreai]" in str(target.unavailable(variant))
    for call in (lambda: target.open(tmp_path, threads=1), lambda: target.describe(tmp_path)):
        with pytest.raises(BadInput, match=r"coreai, coreai_torch, coreai_opt.*snapgen-deploy\[coreai\]"):
            call()


@pytest.mark.usefixtures("without")
def test_a_gate_that_cannot_run_says_why(capsys: pytest.CaptureFixture[str]):
    config = tiny_config()
    artifacts = {"student": Artifact("coreai", "student", Path("nowhere.aimodel"), ())}
    unused: Any = None
    saved = SavedTarget("coreai", "fp16", PRECISIONS["fp16"].limits, artifacts, config, schedule=unused, threads=1)
    checked = check_target(saved, unused)
    assert {g.verdict for g in checked.gates} == {"not_run"}
    print_gates([g.as_dict() for g in checked.gates])
    assert "coreai student relative_error: not_run: coreai needs an extra" in capsys.readouterr().out


def test_brackets_of_a_reason_are_printed(capsys: pytest.CaptureFixture[str]):
    print_gates([Gate("coreai", "student", "psnr", None, 1.0, "not_run", "pip install 'snapgen-deploy[coreai]'").as_dict()])
    assert "pip install 'snapgen-deploy[coreai]'" in capsys.readouterr().out


def test_every_extra_is_a_target_and_in_the_package():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = {spec.key: spec.extra for spec in specs().values() if spec.extra}
    assert set(named) == {"coreai", "onnx:qnn"}
    for extra in named.values():
        ours, *others = project["optional-dependencies"][extra.name]
        assert ours == "snapgen-deploy[export]"
        assert others
        assert all("==" in requirement for requirement in others)
