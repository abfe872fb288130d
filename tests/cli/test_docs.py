"""Every command of every page: run where that takes seconds (exports as far as their plan), else read by the tool's parser."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file

from snapgen_deploy.checkpoint import open_checkpoint, opener
from snapgen_deploy.cli import app
from snapgen_deploy.models.serialise import config_to_json
from tests.checkpoint.foreign import PIXART_MAP, our_state, pixart_config, pixart_state
from tests.cli.conftest import invoke
from tests.docs.pages import PAGES, ROOT, blocks, code_spans, commands
from tests.golden.golden_cases import write_golden
from tests.library_decoders import config_of, save_folder
from tests.library_students import SCM, save_pipeline
from tests.library_students import config_of as student_of
from tests.own_module import EXAMPLE, example_paths
from tests.text_encoders.folders import write_folder

# Commands that are only parsed: how they begin, and why they are not run. The first that fits counts.
PARSED = {
    "bench": "a minute of timing, or a phone; tests/cli/test_latency.py runs it",
    "compare base-bundle candidate-bundle --fail-on": "minutes of timing; tests/cli/test_latency.py runs it",
    "compare base-bundle candidate-bundle --across": "minutes of timing; tests/latency/test_across.py judges made-up times",
    "compare candidate-bundle --baseline": "a minute of timing; tests/cli/test_latency.py runs it",
    "setup": "fetches 80 MB; tests/machines tries its parts",
    "serve": "a server runs until it is stopped; tests/apps runs it",
    "bundle watch": "needs lines of pictures; tests/bundle/test_watch.py runs it",
    "bundle app": "needs npm's packages; tests/apps writes one",
    "verify bundles/shapes-iphone16pm --hashes-only": "",
    "verify": "half a minute of checks in processes of their own; tests/cli/test_end_to_end.py runs it",
    "doctor bundles/shapes-iphone16pm --layers --target onnx:cpu": "",
    "doctor bundles/shapes-iphone16pm --layers": "half a minute; tests/cli and tests/check run it",
    "estimate --device host --calibrate": "minutes of micro-benchmarks; tests/latency runs it",
    "estimate --device iphone16pm --preset snapgenpp": "traces a full-scale network; tests/cli/test_estimate.py runs it small",
    "export --device server --tune": "times kernels; tests/latency/test_tune.py runs it",
    "init --preset snapgenpp": "writes 7 GB; tests/cli/test_init.py runs it with `shapes`",
    "generate coreai/": "needs an export with the extra `coreai`; tests/export/test_coreai.py draws with one",
    "generate bundles/snapgenpp-iphone16pm": "needs a full-scale bundle; tests/cli/test_embeddings.py runs it",
    "export --checkpoint shapes-unet": "trained weights; tests/families/test_unet.py runs it with a small network",
    "report both/": "needs bundles of both families; tests/report compares several",
    "export --device iphone16pm --checkpoint untrained": "needs a checkpoint of 7 GB; tests/test_full_scale.py runs it",
}


def reason(words):
    """Why a command is only parsed; "" where it is run."""
    line = " ".join(words)
    return next((why for start, why in PARSED.items() if line.startswith(start)), "")


OURS = list(dict.fromkeys(c.words[1:] for page in PAGES for c in commands(page) if c.words[0] == "snapgen-deploy"))
OTHERS = [c for page in PAGES for c in commands(page) if c.words[0] != "snapgen-deploy"]


@pytest.fixture(scope="module")
def desk(checkpoint, tmp_path_factory):
    """A folder with the files that the pages name; the checkpoint is that of tests/cli."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(checkpoint, folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")  # the card of the files that state no licence
    (folder / "prompts.txt").write_text(blocks(ROOT / "docs/formats.md", "text")[0], encoding="utf-8")
    shutil.copy(folder / "prompts.txt", folder / "judged.txt")
    (folder / "profile.toml").write_text(blocks(ROOT / "docs/formats.md", "toml")[0], encoding="utf-8")
    (folder / "map.toml").write_text('"student.patch.weight" = "student.patch.weight"\n', encoding="utf-8")
    write_foreign(folder, checkpoint)
    (folder / "my_scores.py").write_text(blocks(ROOT / "docs/formats.md", "python")[0], encoding="utf-8")
    write_golden(open_checkpoint(checkpoint), folder / "golden.safetensors", "full")
    save_folder(config_of("tiny"), folder / "vae")
    stream = open_checkpoint(checkpoint).config.student.text_streams[0]
    write_folder(folder / "clip", "clip_text_model", hidden_size=stream.dim, max_position_embeddings=stream.length)
    save_pipeline(student_of("sana-sprint", SCM), folder / "sana-sprint")
    (folder / "sprint.toml").write_text(blocks(ROOT / "docs/students.md", "toml")[0], encoding="utf-8")
    np.savez(folder / "x.npz", latent=np.zeros((1, 4, 8, 8), np.float32))
    with pytest.MonkeyPatch.context() as patch:  # the package of examples/postcard is installed meanwhile
        patch.setattr(sys, "path", [*example_paths(tmp_path_factory.mktemp("site")), *sys.path])
        importlib.import_module("postcard_student.write").write(folder)
        yield folder


def write_foreign(folder, checkpoint):
    """The files of docs/own-checkpoint.md: a student with other names, a training checkpoint, a LoRA."""
    opened = open_checkpoint(checkpoint)
    state = {name: opened.read(name) for name in opened.tensors}
    save_file(pixart_state(our_state(pixart_config())), folder / "pixart.safetensors")
    (folder / "pixart.json").write_text(config_to_json(pixart_config()), encoding="utf-8")
    (folder / "pixart.toml").write_text(PIXART_MAP, encoding="utf-8")
    (folder / "mine.json").write_text(config_to_json(opened.config), encoding="utf-8")
    torch.save({"model": state, "ema": {f"module.{n}": t for n, t in state.items()}, "step": 7}, folder / "run.ckpt")
    up = "student.down.0.ffn.up"
    rows, columns = opened.tensors[f"{up}.weight"].shape
    pair = {f"{up}.lora_A.weight": torch.ones(2, columns), f"{up}.lora_B.weight": torch.ones(rows, 2)}
    save_file(pair, folder / "style.safetensors")


@pytest.fixture(scope="module")
def desk_with_bundles(desk, bundle):
    """The same with the bundles that the pages name: all are that of tests/cli."""
    for name in ("bundles/shapes-iphone16pm", "base-bundle", "candidate-bundle"):
        shutil.copytree(bundle, desk / name)
    return desk


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_our_commands(words, request, monkeypatch):
    command = typer.main.get_command(app).commands[words[0]]
    command.make_context(words[0], list(words[1:]))  # exits where an option is unknown or a value is not of its type
    if reason(words):
        return
    folder = request.getfixturevalue("desk_with_bundles" if "bundle" in " ".join(words[:2]) else "desk")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    if "mixed" not in words:  # needs more prompts than the small checkpoint has
        monkeypatch.setattr(opener, "embedded_path", lambda: folder / "model.safetensors")
    extra = [word for word in ("--dry-run", "--overwrite") if words[0] == "export" and word not in words]
    done = invoke(*words, *extra)
    assert done.exit_code == 0, done.output


def test_every_reason_is_used():
    lines = [" ".join(words) for words in OURS]
    first = [next((start for start in PARSED if line.startswith(start)), None) for line in lines]
    assert set(PARSED) == set(first) - {None}


def assert_module_takes(words):
    """The module can be run, and its argparse has every option of the words (read, not imported: some take seconds)."""
    top = EXAMPLE / "src" if words[0].startswith("postcard_student") else ROOT
    path = top / words[0].replace(".", "/")
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert '__name__ == "__main__"' in ast.unparse(tree.body[-1]).replace("'", '"'), words[0]
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    added = [n.args[0].value for n in calls if n.func.attr == "add_argument" and isinstance(n.args[0], ast.Constant)]
    assert {w for w in words if w.startswith("--")} <= {*added, "--help"}
    assert "BUNDLE" not in words or "bundle" in added


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_other_commands(command, request):
    words = command.words
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[:2] == ("pip", "install") or words[:4] == ("python", "-m", "pip", "install"):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if words[2:] == ("-e", str(EXAMPLE.relative_to(ROOT))):
            assert (EXAMPLE / "pyproject.toml").is_file()
            return
        place, extra = re.fullmatch(r"(.*)\[(\w+)\]", words[-1]).groups()
        assert (*words[words.index("install") + 1 : -1], place) in (("-e", "."), (project["name"],))
        assert extra in project["optional-dependencies"]
    elif words[0] == "sha256sum":
        folder = request.getfixturevalue("desk_with_bundles") / command.folder
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    elif words[:2] == ("python", "-m"):
        assert_module_takes(words[2:])
    else:
        assert words == ("source", ".venv/bin/activate")


IN_TEXT = sorted(
    {
        tuple(span.replace("[", "").replace("]", "").split()[2:])
        for page in PAGES
        for span in code_spans(page)
        if span.startswith(("python -m benchmarks.", "python -m examples."))
    }
)


@pytest.mark.parametrize("words", IN_TEXT, ids=" ".join)
def test_benchmarks_in_running_text(words):
    assert_module_takes(words)
