"""A checkpoint whose text is encoded elsewhere: the bundle draws from embeddings alone."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from snapgen_deploy.checkpoint import checkpoint_state, save_checkpoint
from snapgen_deploy.models import ElasticDiT, TinyDecoder
from tests.cli.conftest import in_this_process, invoke, tiny_config


def test_a_bundle_without_a_text_encoder_draws_from_embeddings(tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    config = replace(tiny_config(), text_encoder=None)
    torch.manual_seed(1)
    state = checkpoint_state(ElasticDiT(config.student), TinyDecoder(config.decoder))
    save_checkpoint(state, config, tmp_path / "c.safetensors", license="Apache-2.0")
    place = ("--checkpoint", tmp_path / "c.safetensors", "-o", tmp_path, "--width", "tiny", "--threads", 1)
    done = invoke("export", "--device", "server", *place)
    assert done.exit_code == 0, done.output
    bundle, text = tmp_path / "tiny-test-server", tmp_path / "e.npz"
    stream = config.student.text_streams[0]
    np.savez(text, text=np.ones((1, stream.length, stream.dim)), text_mask=np.ones((1, stream.length)))
    drawn = invoke("generate", bundle, "--embeddings", text, "-o", tmp_path / "x.png")
    assert drawn.exit_code == 0, drawn.output
    assert Image.open(tmp_path / "x.png").size == (64, 64)
    refused = invoke("generate", bundle, "--prompt", "a red ring", "--embeddings", text, "-o", tmp_path / "y.png")
    assert refused.exit_code == 2
    assert "give its text by --embeddings alone" in " ".join(refused.stderr.split())
    assert invoke("verify", bundle).exit_code == 0
