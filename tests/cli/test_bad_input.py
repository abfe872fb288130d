import json
from pathlib import Path

import pytest

from tests.cli.conftest import invoke

SERVER = Path(__file__).parents[2] / "device_profiles" / "server.toml"


def one_line(done, *parts, code=2):
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for part in ("error: ", *parts):
        assert part in lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--device", "iphone16pro"), ("unknown device 'iphone16pro'", "iphone16pm")),
        (("--device", "iphone16pm", "--width", "huge"), ("no width 'huge'", "tiny", "full")),
        (("--device", "iphone16pm", "--target", "coremel"), ("unknown target 'coremel'", "coreml")),
        (("--device", "iphone16pm", "--target", "onnx:cuda"), ("no variant 'cuda'", "cpu")),
        (("--device", "iphone16pm", "--precision", "fp8"), ("no precision 'fp8'", "fp16")),
        (("--device", "iphone16pm", "--resolution", "100"), ("100x100", "the nearest that do are")),
        (("--device", "iphone16pm", "--resolution", "64", "--resolution", "64x64"), ("64x64 was given twice", "default")),
        (("--device", "iphone16pm", "--resolution", "64", "--resolution", "100"), ("100x100", "the nearest that do are")),
        (("--device", "iphone16pm", "--resolution", "wide"), ("got 'wide'", "HEIGHTxWIDTH")),
        (("--device", "iphone16pm", "--prompts", "nowhere.txt"), ("nowhere.txt",)),
    ],
)
def test_export_refuses_in_one_line_and_writes_nothing(checkpoint, tmp_path, arguments, parts, monkeypatch):
    monkeypatch.setattr("snapgen_deploy.cli.devices.render_plan", lambda plan, console: None)
    one_line(invoke("export", *arguments, "--checkpoint", checkpoint, "-o", tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()


def test_no_such_checkpoint(tmp_path):
    one_line(
        invoke("export", "--device", "server", "--checkpoint", tmp_path / "none.safetensors", "-o", tmp_path),
        "none.safetensors",
    )


def test_a_malformed_profile(tmp_path, checkpoint):
    profile = tmp_path / "mine.toml"
    profile.write_text('id = "mine"\nkind = "toaster"\n')
    one_line(invoke("export", "--device", profile, "--checkpoint", checkpoint, "-o", tmp_path / "out"), "mine.toml", "kind")


def test_a_users_own_profile_works(tmp_path, checkpoint):
    from snapgen_deploy.device_profiles import load_profile, profile_ids

    assert len(profile_ids()) >= 9
    source = SERVER.read_text()
    profile = tmp_path / "mine.toml"
    profile.write_text(source.replace('id = "server"', 'id = "mine"'))
    assert load_profile(str(profile)).id == "mine"
    done = invoke("export", "--device", profile, "--checkpoint", checkpoint, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["width"] == "full"


def test_too_little_memory_is_refused_with_the_figures(tmp_path, checkpoint):
    source = SERVER.read_text()
    profile = tmp_path / "small.toml"
    profile.write_text(source.replace('value = 16, unit = "GB"', 'value = 0.01, unit = "MB"'))
    done = invoke("export", "--device", profile, "--checkpoint", checkpoint, "-o", tmp_path / "out")
    one_line(done, "no width of tiny-test fits", "GB", code=3)


def test_a_memory_budget_of_the_user_wins_over_the_profiles(tmp_path, checkpoint):
    chosen = ("export", "--device", "iphone16pm", "--checkpoint", checkpoint, "-o", tmp_path, "--dry-run")
    refused = invoke(*chosen, "--memory-budget", "20 kB")
    assert refused.exit_code == 3
    assert "of 2e-05 GB" in refused.stderr
    assert refused.stderr.strip().endswith("say how much with --memory-budget")
    assert json.loads(invoke(*chosen, "--memory-budget", "7GB", "--json").stdout)["memory_budget"] == 7 * 10**9
    unclear = invoke(*chosen, "--memory-budget", "much")
    assert (unclear.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "--memory-budget: got 'much', expected a size such as" in unclear.stderr


def test_there_already(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("snapgen_deploy.cli.devices.render_plan", lambda plan, console: None)
    (tmp_path / "tiny-test-server").mkdir()
    one_line(
        invoke("export", "--device", "server", "--checkpoint", checkpoint, "-o", tmp_path), "already there; pass --overwrite"
    )


def test_a_full_disk_is_found_before_work_starts(tmp_path, checkpoint, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr("snapgen_deploy.cli.devices.render_plan", lambda plan, console: None)
    monkeypatch.setattr("snapgen_deploy.exporter.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    one_line(invoke("export", "--device", "server", "--checkpoint", checkpoint, "-o", tmp_path), "free space")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["verify", "generate", "doctor"])
def test_what_is_no_bundle(tmp_path, command):
    extra = ("--prompt", "a red ring") if command == "generate" else ()
    one_line(invoke(command, tmp_path, *extra), str(tmp_path))


def test_help_lists_the_commands():
    done = invoke("--help")
    assert done.exit_code == 0
    for command in ("export", "devices", "inspect", "verify", "generate", "run-coreml", "doctor"):
        assert command in done.stdout


def test_inspect_shows_components_and_widths(checkpoint):
    done = invoke("inspect", checkpoint, "--json", "--check")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert set(data["components"]) == {"student", "decoder", "text_encoder"}
    assert data["widths"]["small"]["hidden"] == 32
    assert data["widths"]["tiny"]["parameters"] < data["widths"]["full"]["parameters"]
