"""The file of golden vectors: what is read, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.errors import BadInput
from snapgen_deploy.golden import Recorder, open_golden
from snapgen_deploy.golden.__main__ import write_golden_vectors
from snapgen_deploy.golden.vectors import compared_with
from snapgen_deploy.models import time_features
from tests.checkpoint.cases import refused

Arrays = dict[str, Tensor]


def loaded(path: Path) -> tuple[Arrays, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_what_is_in_it(tiny: Checkpoint, golden: Path) -> None:
    found = open_golden(golden, tiny.config, tokenizers=tiny.tokenizers)
    assert found.counts == {"text_encoder": 2, "student": 8, "decoder": 2, "pipeline": 2}
    assert (found.width, found.computed_in, found.error) == ("small", "fp32", 1e-4)
    assert found.drawing.resolution == (64, 64)
    assert found.picture is not None
    assert found.picture.tokens["text_encoder"]["tokens"].shape == (2, 16)  # of the prompts
    assert compared_with(found, tiny.config) == "compared with golden vectors of text encoder, student, decoder, pipeline"


def test_a_part_of_it_and_a_sigma(tiny: Checkpoint, golden: Path, tmp_path: Path) -> None:
    arrays, _ = loaded(golden)
    kept = {n: a.bfloat16() for n, a in arrays.items() if n.startswith("student.")}
    features = kept.pop("student.time_features")
    save_file(kept | {"student.sigma": torch.linspace(0, 1, 8)}, tmp_path / "part.safetensors")
    found = open_golden(tmp_path / "part.safetensors", tiny.config)
    assert (found.counts, found.computed_in, found.width) == ({"student": 8}, "bf16", "")
    assert found.cases["student"].inputs["time_features"].shape == features.shape
    expected = time_features(torch.linspace(0, 1, 8), 16).numpy()
    np.testing.assert_array_equal(found.cases["student"].inputs["time_features"], expected)
    said = "compared with golden vectors of student; text encoder, decoder with this package's own reference only"
    assert compared_with(found, tiny.config) == said


def test_tokens_of_another_tokenizer_are_counted(tiny: Checkpoint, golden: Path, tmp_path: Path) -> None:
    arrays, metadata = loaded(golden)
    for name in ("tokens", "mask"):
        arrays[f"pipeline.text_encoder.{name}"] = arrays[f"text_encoder.{name}"].clone()
    arrays["pipeline.text_encoder.tokens"][0, :3] += 1
    save_file(arrays, tmp_path / "g.safetensors", metadata)
    found = open_golden(tmp_path / "g.safetensors", tiny.config, tokenizers=tiny.tokenizers)
    assert found.picture is not None
    assert found.picture.tokens_off == {"text_encoder": 3}


def without(name: str) -> Callable[[Arrays, dict[str, str]], None]:
    return lambda arrays, said: arrays.__delitem__(name)


def with_array(name: str, value: Tensor) -> Callable[[Arrays, dict[str, str]], None]:
    return lambda arrays, said: arrays.update({name: value})


def saying(**values: str) -> Callable[[Arrays, dict[str, str]], None]:
    return lambda arrays, said: said.update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("student.latent"), "missing 'student.latent' of shape [8, 4, 8, 8]"),
        (without("text_encoder.text"), "missing 'text_encoder.text' of shape [rows, 16, 16]"),
        (without("pipeline.picture"), "missing 'pipeline.picture' or 'pipeline.latent'"),
        (
            with_array("decoder.picture", torch.zeros(2, 3, 32, 32)),
            "got shape [2, 3, 32, 32], expected 'decoder.picture'",
        ),
        (
            with_array("decoder.latent", torch.zeros(3, 4, 8, 8)),
            "got shape [3, 4, 8, 8], expected 'decoder.latent'",
        ),
        (with_array("text_encoder.mask", torch.full((2, 16), 0.5)), "text_encoder.mask has other values than 0 and 1"),
        (with_array("text_encoder.tokens", torch.full((2, 16), 14)), "ids 14 to 14, the text encoder embeddings 0 to 13"),
        (with_array("text_encoder.tokens", torch.zeros(2, 16)), "'text_encoder.tokens' has dtype F32, expected integers"),
        (with_array("student.latent", torch.full((8, 4, 8, 8), torch.nan)), "'student.latent' has values that are not finite"),
        (with_array("student.guidance", torch.zeros(8)), "'student.guidance' is no port"),
        (with_array("text_encodr.tokens", torch.zeros(1)), "is of no component of this checkpoint"),
        (with_array("vae.picture", torch.zeros(1)), "expected <component>.<port> of text_encoder, student, decoder, pipeline"),
        (with_array("decoder.layers.first", torch.zeros(3, 4)), "'decoder.layers.first' of 2 rows"),
        (with_array("pipeline.noise", torch.zeros(2, 4, 16, 16)), "expected 'pipeline.noise' of shape [rows, 4, 8, 8]"),
        (saying(width="smal"), "width: got 'smal', expected one of tiny, small, full; did you mean small?"),
        (saying(computed_in="int8"), "computed_in: got 'int8', expected one of fp32, tf32, fp16, bf16"),
        (saying(prompts="[1]"), "expected a JSON list of texts"),
        (saying(prompts=json.dumps(["a red ring"])), "got 1 prompts, expected one for each of 2 pictures"),
        (saying(prompts=json.dumps(["a green ring", "a ring"])), "prompts: "),
    ],
)
def test_bad_input_is_one_line(
    tiny: Checkpoint, golden: Path, tmp_path: Path, change: Callable[[Arrays, dict[str, str]], None], message: str
) -> None:
    arrays, said = loaded(golden)
    change(arrays, said)
    path = tmp_path / "bad.safetensors"
    save_file(arrays, path, said)
    refused(lambda: open_golden(path, tiny.config, tokenizers=tiny.tokenizers), str(path), message)


def test_other_files_are_one_line(tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    refused(lambda: open_golden(path, tiny.config), "cannot be read")
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(lambda: open_golden(path, tiny.config), "a PyTorch or pickle file")
    save_file({}, path)
    refused(lambda: open_golden(path, tiny.config), "holds no arrays")


def test_recording_with_the_module(tiny: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from snapgen_deploy.checkpoint import open_checkpoint\n"
        "from snapgen_deploy.checkpoint.networks import load_component\n"
        "def record(golden):\n"
        f"    decoder = load_component(open_checkpoint({str(tiny.path)!r}), 'decoder')\n"
        "    layers = {'first': decoder.first}\n"
        "    with golden.watch('decoder', decoder, inputs={'latent': 'latent'}, output=('picture', None), layers=layers):\n"
        "        for seed in range(3):\n"
        "            decoder(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)))\n"
        "def broken(golden):\n"
        "    raise KeyError('prompt')\n"
        "def nothing(golden):\n"
        "    pass\n"
    )
    out, mine = tmp_path / "golden.safetensors", tmp_path / "mine.py"
    assert write_golden_vectors([f"{mine}:record", "-o", str(out), "--checkpoint", str(tiny.path), "--width", "small"]) == 0
    assert "decoder.picture [3, 3, 64, 64]" in capsys.readouterr().out
    asked = [f"{mine}:record", "-o", str(tmp_path / "other"), "--without-text-encoder", "llm"]
    assert write_golden_vectors(asked) == 2
    assert "needs --checkpoint" in capsys.readouterr().err
    assert write_golden_vectors([*asked, "--checkpoint", str(tiny.path)]) == 2
    assert "no such text stream; it has text" in capsys.readouterr().err
    found = open_golden(out, tiny.config)
    assert found.width == "small"
    assert found.cases["decoder"].layers["first"].shape == (3, 16, 8, 8)
    for name, said in (("broken", "KeyError: 'prompt'"), ("nothing", "nothing was recorded"), ("absent", "FILE.py:FUNCTION")):
        assert write_golden_vectors([f"{mine}:{name}", "-o", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


def test_what_a_recorder_refuses(tmp_path: Path) -> None:
    recorder, layer = Recorder(), torch.nn.Linear(2, 2)
    watching = recorder.watch("decoder", layer, inputs={"latent": "z"}, output=("picture", None))
    with watching, pytest.raises(BadInput, match="decoder.latent: the call has no 'z'; it has 0, input"):
        layer(torch.zeros(1, 2))
    recorder.add("decoder", latent=torch.zeros(1, 2))
    recorder.add("decoder", latent=torch.zeros(1, 3))
    with pytest.raises(BadInput, match=r"decoder.latent: rows have the shapes \(2,\), \(3,\)"):
        recorder.save(tmp_path / "golden.safetensors")
