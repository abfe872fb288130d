"""`estimate` and `export --max-latency`, as a user types them."""

import inspect
import json

import pytest

from snapgen_deploy.asked import asked_options
from snapgen_deploy.cli import app
from snapgen_deploy.latency.estimate.calibrate import HostCalibration, key_of, store
from snapgen_deploy.latency.estimate.cost_ops import OP_KINDS
from snapgen_deploy.latency.estimate.machine import Machine, Rate
from tests.cli.conftest import invoke


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def test_a_phone_s_estimates_as_table_and_as_data():
    shown = invoke("estimate", "--device", "iphone16pm")
    assert shown.exit_code == 0, shown.output
    assert all(word in shown.stdout for word in ("tiny", "small", "full", "fitted", "2601.08303"))
    assert "each of them, estimated from the other 4, is off by A -11 %, C +18 %" in shown.stdout
    data = json.loads(invoke("estimate", "--device", "iphone16pm", "--width", "small", "--steps", 8, "--json").stdout)
    (found,) = data["estimates"]
    assert (data["device"], data["target"], found["width"], found["steps"]) == ("iphone16pm", "coreml", "small", 8)
    assert found["low"] < found["ms"] < found["high"]


def test_a_network_that_the_fit_does_not_describe_says_which_published_one_it_is_like():
    shown = invoke("estimate", "--device", "iphone16pm", "--preset", "shapes-unet")
    assert "full, student: convolutions over maps" in shown.stdout
    assert "like SnapGen's U-Net, which this fit underestimates by 56 %" in shown.stdout


def test_what_is_said_of_the_model_counts():
    where = ("estimate", "--device", "iphone16pm", "--width", "small", "--json")
    (whole,), (without,) = (
        json.loads(invoke(*where, *more).stdout)["estimates"] for more in ((), ("--without-text-encoder", "text"))
    )
    assert without["ms"] < whole["ms"]
    assert "text_encoder" not in without["parts"] or without["parts"]["text_encoder"] == 0
    refused = invoke(*where, "--preset", "shapes", "--without-text-encoder", "text")
    assert (refused.exit_code, "leave out what is said of a checkpoint" in refused.stderr) == (2, True)


def test_all_commands_that_open_a_checkpoint_have_the_same_options():
    found = {c.callback.__name__: inspect.signature(c.callback).parameters for c in app.registered_commands if c.callback}
    opening = [name for name, own in found.items() if "checkpoint" in own]
    assert set(opening) == {"inspect", "estimate", "export"}
    assert all({o.name for o in asked_options()} <= set(found[name]) for name in opening)


def test_the_sweep_is_drawn_and_printed(tmp_path):
    plot = tmp_path / "sweep.png"
    done = invoke("estimate", "--device", "android-mid", "--width", "tiny", "--sweep", "-o", plot)
    assert done.exit_code == 0, done.output
    assert "64x64" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    data = json.loads(invoke("estimate", "--device", "android-mid", "--width", "tiny", "--sweep", "--json").stdout)
    assert [e["steps"] for e in data["steps"]] == [1, 2, 4, 8]
    assert {tuple(e["resolution"]) for e in data["resolutions"]} == {(64, 64), (128, 128)}  # 96 x 96: 36 tokens, 8 blocks


def test_a_host_that_is_not_calibrated_is_refused_and_told_how():
    done = invoke("estimate", "--device", "host", "--threads", 1)
    assert done.exit_code == 3
    assert "--calibrate" in done.stderr
    rates = {k: Rate(op=1e-6, mac=1e-10) for k in OP_KINDS}
    store(HostCalibration(key_of("onnx:cpu", 1), Machine(rates), 0.05, {"a": 1.0}))
    done = invoke("estimate", "--device", "host", "--threads", 1)
    assert done.exit_code == 0, done.output
    assert "calibrated" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "iphone16pn"), "iphone16pm"),
        (("--device", "iphone16pm", "--preset", "sd3"), "snapgenpp"),
        (("--device", "iphone16pm", "--width", "wide"), "tiny, small, full"),
        (("--device", "iphone16pm", "--target", "tflite"), "unknown target"),
        (("--device", "iphone16pm", "--target", "onnx:gpu"), "target onnx has no variant 'gpu'"),
        (("--device", "iphone16pm", "--calibrate"), "expected --device host"),
        (("--device", "iphone16pm", "-o", "x.png"), "--sweep"),
        (("--device", "iphone16pm", "--resolution", "100"), "does not fit latent factor 8"),
        (("--device", "iphone16pm", "--preset", "shapes", "--checkpoint", "x"), "expected one of them"),
    ],
)
def test_bad_questions_are_one_line(options, message):
    done = invoke("estimate", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def plan(*options):
    return json.loads(invoke("export", "--device", "iphone16pm", "--dry-run", "--overwrite", "--json", *options).stdout)


def test_max_latency_takes_the_widest_width_whose_upper_estimate_fits():
    found = json.loads(invoke("estimate", "--device", "iphone16pm", "--json").stdout)["estimates"]
    high = {e["width"]: e["high"] for e in found}
    assert high["tiny"] < high["small"] < high["full"]
    between = (high["small"] + high["full"]) / 2
    assert plan("--max-latency", f"{between}ms")["width"] == "small"
    assert plan("--max-latency", f"{between / 1000}s")["width"] == "small"
    assert plan("--max-latency", f"{high['full'] + 1}ms")["width"] == "full"
    reasons = " ".join(plan("--max-latency", f"{between}ms")["reasons"])
    assert "upper estimate over" in reasons
    assert "fitted" in reasons


def test_max_latency_that_nothing_meets_is_refused():
    done = invoke("export", "--device", "iphone16pm", "--dry-run", "--max-latency", "0.001s")
    assert done.exit_code == 3
    assert "upper estimate over 1 ms" in done.stderr
    done = invoke("export", "--device", "server", "--dry-run", "--max-latency", "5s")
    assert done.exit_code == 3
    assert "no basis" in done.stderr


@pytest.mark.parametrize("text", ["fast", "1.5", "-1s", "0s", "1m"])
def test_a_time_that_is_none(text):
    done = invoke("export", "--device", "iphone16pm", "--dry-run", "--max-latency", text)
    assert done.exit_code == 2
    assert "1.5s or 1500ms" in done.stderr
