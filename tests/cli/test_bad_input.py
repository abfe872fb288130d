import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from snapgen_deploy.job import begin
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
        (("--device", "iphone16pm", "--target", "onnx:rocm"), ("no variant 'rocm'", "cpu")),
        (("--device", "iphone16pm", "--precision", "fp8"), ("no precision 'fp8'", "fp16")),
        (("--device", "iphone16pm", "--resolution", "100"), ("100x100", "the nearest that do are")),
        (("--device", "iphone16pm", "--resolution", "64", "--resolution", "64x64"), ("64x64 was given twice", "default")),
        (("--device", "iphone16pm", "--resolution", "64", "--resolution", "100"), ("100x100", "the nearest that do are")),
        (("--device", "iphone16pm", "--resolution", "wide"), ("got 'wide'", "HEIGHTxWIDTH")),
        (("--device", "iphone16pm", "--resolution", "²"), ("got '²'", "HEIGHTxWIDTH")),
        (("--device", "iphone16pm", "--resolution", "1000000"), ("got '1000000'", "HEIGHTxWIDTH")),
        (("--device", "iphone16pm", "--noise", "pink"), ("--noise: got 'pink'", "torch")),
        (("--device", "iphone16pm", "--prompts", "nowhere.txt"), ("nowhere.txt",)),
        (("--device", "iphone16pm", "--prompts", "nowhere.txt", "--dry-run"), ("nowhere.txt",)),
        (("--device", "iphone16pm", "--fidelity", "--scorer", "nowhere", "--dry-run"), ("--scorer nowhere", "MODULE:FUNCTION")),
        (("--device", "iphone16pm", "--scorer", "a:b"), ("--scorer is for the fidelity gate", "--fidelity")),
        (("--device", "iphone16pm", "--fidelity-samples", "3"), ("--fidelity-samples is for the fidelity gate",)),
        (("--device", "iphone16pm", "--calibration", "a.txt"), ("--calibration is for calibrated and mixed", "--precision")),
        (("--device", "iphone16pm", "--memory-budget", "9" * 400 + "GB"), ("--memory-budget: got", "500MB")),
    ],
)
def test_export_refuses_in_one_line_and_writes_nothing(checkpoint, tmp_path, arguments, parts, monkeypatch):
    monkeypatch.setattr("snapgen_deploy.cli.devices.render_plan", lambda plan, console: None)
    one_line(invoke("export", *arguments, "--checkpoint", checkpoint, "-o", tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s | {f"ema.{i}": torch.zeros(2) for i in range(3)}, "3 problems: extra 'ema.0', got shape [2]"),
        (lambda s: {f"{n}_old": t for n, t in s.items()}, "missing 'student."),
        (lambda s: {n: t.to(torch.int8) for n, t in s.items()}, "got dtype I8, expected one of F32, F16, BF16"),
        (lambda s: {n: t.to(torch.float8_e4m3fn) for n, t in s.items()}, "tensors are in fp8 without scales, such as"),
        (lambda s: {n: t[:1] if t.ndim > 1 else t for n, t in s.items()}, "got shape [1, "),
    ],
    ids=["extra", "no key map", "int8", "fp8", "shapes"],
)
def test_a_dry_run_refuses_what_inspect_does(checkpoint, tmp_path, change, problem):
    with safe_open(checkpoint, "pt") as file:
        state, metadata = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({n: t.contiguous() for n, t in change(state).items()}, tmp_path / "a.safetensors", metadata)
    done = invoke("export", "--device", "server", "--checkpoint", tmp_path / "a.safetensors", "--dry-run")
    one_line(done, problem)
    assert done.stderr == invoke("inspect", tmp_path / "a.safetensors").stderr


def test_inspect_lists_all_that_a_message_has_no_room_for(checkpoint, tmp_path):
    with safe_open(checkpoint, "pt") as file:
        state, metadata = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(state | {f"ema.{i}": torch.zeros(2) for i in range(40)}, tmp_path / "a.safetensors", metadata)
    where, extra = ("inspect", tmp_path / "a.safetensors"), [f"extra 'ema.{i}', got shape [2]" for i in range(40)]
    done, data = invoke(*where), json.loads(invoke(*where, "--json").stdout)
    assert (done.exit_code, set(extra) <= set(done.stdout.splitlines())) == (2, True)
    assert set(data["problems"]) == set(extra)
    assert len(data["error"].replace(str(tmp_path), "")) <= 300
    assert data["error"].endswith("more; `inspect` lists all, `inspect --names` shows both sides")


def test_a_dry_run_refuses_what_would_end_an_export(checkpoint, bundle, tmp_path, monkeypatch):
    """The same line and code, before any work; the folder is as it was."""
    with safe_open(checkpoint, "pt") as file:
        state, metadata = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({n: t * float("nan") for n, t in state.items()}, tmp_path / "nan.safetensors", metadata)
    (tmp_path / "file").write_text("")
    (tmp_path / "out").mkdir()

    def refused(*options, said):
        done = [
            invoke("export", "--device", "iphone16pm", *options, *more)
            for more in ((), ("--dry-run",), ("--dry-run", "--json"))
        ]
        assert done[0].stderr == done[1].stderr == done[2].stderr
        assert said in " ".join(done[0].stderr.split())
        assert json.loads(done[2].stdout)["exit_code"] == done[0].exit_code == done[1].exit_code
        return done[0].exit_code

    own, out = ("--checkpoint", checkpoint), ("-o", tmp_path / "out")
    assert refused(*own, "-o", bundle.parent, said="already there; pass --overwrite") == 2
    assert refused(*own, "-o", tmp_path / "file" / "out", said="cannot write to") == 2
    assert refused("--checkpoint", tmp_path / "nan.safetensors", *out, said="NaN") == 2
    with monkeypatch.context() as patch:
        patch.setattr(begin, "available_bytes", lambda: 2**26)
        assert refused(*own, *out, said="available 0.07 GB, does not fit") == 3
    monkeypatch.setattr(begin.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert refused(*own, *out, said="0.00 GB free, the bundle may need") == 2
    assert list((tmp_path / "out").iterdir()) == []


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
    monkeypatch.setattr("snapgen_deploy.job.begin.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
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


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([], "targets: got [], expected a table"),
        ({"onnx:cpu": None}, "targets.onnx:cpu: got nothing, expected a table"),
        (dict.fromkeys(("coreml", "executorch:xnnpack", "onnx:cpu")), "targets.coreml: got nothing, expected a table"),
    ],
)
def test_a_manifest_of_another_shape_is_no_regression(bundle, tmp_path, targets, said):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"targets": targets}))
    for arguments in (("doctor", tmp_path), ("compare", tmp_path / "manifest.json", bundle, "--guards-only")):
        one_line(invoke(*arguments), said)


@pytest.mark.parametrize("option", ["--summary", "--junit", "-o"])
def test_places_are_looked_at_before_the_work(bundle, tmp_path, option):
    for place in (tmp_path, tmp_path / "nowhere" / "x"):
        one_line(invoke("compare", bundle, bundle, "--guards-only", option, place), "expected a file in a folder that exists")
    one_line(invoke("bench", bundle, "--output", tmp_path), "--output")
    one_line(invoke("bench", bundle, "--output", tmp_path / "x", "--plot", tmp_path / "x"), "expected two files")


def test_annotations_leave_one_json_object(bundle):
    done = invoke("compare", bundle, bundle, "--guards-only", "--json", "--annotations")
    assert json.loads(done.stdout)["verdict"]


def test_more_threads_than_any_runtime_takes(bundle):
    done = invoke("generate", bundle, "--prompt", "a red ring", "--threads", 100_000)
    assert done.exit_code == 2
    assert "less than or equal to 1" in " ".join(done.stderr.split())


def test_a_prompt_that_nobody_can_read_ends_a_dry_run_too(checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ring\na blorp ring\n")
    arguments = ("--checkpoint", checkpoint, "--device", "server", "--prompts", tmp_path / "prompts.txt", "--dry-run")
    one_line(invoke("export", *arguments), "'a blorp ring'", "does not know: 'blorp'")


def test_with_json_an_error_is_an_object_too(tmp_path):
    done = invoke("verify", tmp_path / "none", "--json")
    said = json.loads(done.stdout)
    assert (done.exit_code, said["exit_code"]) == (2, 2)
    assert "is not a bundle" in said["error"]
    assert said["error"] in " ".join(done.stderr.split())


def test_an_error_that_nobody_foresaw_is_neither_a_gate_nor_a_regression(bundle, monkeypatch):
    def fails(*_):
        raise KeyError("a library's")

    monkeypatch.setattr("snapgen_deploy.latency.compare.run.check_hashes", fails)
    one_line(invoke("compare", bundle, bundle, "--guards-only"), "KeyError", "-v for the traceback", code=70)


def test_text_of_a_profile_is_no_markup(tmp_path, checkpoint):
    profile = tmp_path / "mine.toml"
    text = SERVER.read_text().replace('id = "server"', 'id = "mine"')
    name = next(line for line in text.splitlines() if line.startswith("name ="))
    profile.write_text(text.replace(name, 'name = "Phone [beta] x[/y]"', 1))
    for arguments in (("devices", profile), ("export", "--device", profile, "--checkpoint", checkpoint, "--dry-run")):
        done = invoke(*arguments)
        assert done.exit_code == 0, done.output
        assert "Phone [beta] x[/y]" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("devices", "iphone16pm", "--precisions"), "leave out iphone16pm"),
        (("doctor", "x", "--layers", "--memory-limit", "3"), "--memory-limit belongs to doctor without --layers"),
        (("export", "--device", "server", "--target", "coreml:ane", "--dry-run"), "it has none; write coreml"),
    ],
)
def test_what_would_be_ignored_is_refused(arguments, part):
    one_line(invoke(*arguments), part)


def test_a_target_that_the_device_does_not_offer_is_told(checkpoint):
    done = invoke("export", "--device", "server", "--target", "coreml", "--checkpoint", checkpoint, "--dry-run")
    assert done.exit_code == 0
    assert "coreml is not among the targets of server" in " ".join(done.stdout.split())
