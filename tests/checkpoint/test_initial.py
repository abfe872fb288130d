import gc
import hashlib
import os
import time
import weakref
from dataclasses import replace

import pytest
import torch

from snapgen_deploy.checkpoint import initial, open_checkpoint, validate
from snapgen_deploy.checkpoint.directory import new_directory
from snapgen_deploy.checkpoint.initial import initial_bytes, initial_tensor, write_initial
from snapgen_deploy.checkpoint.networks import load_decoder, load_student, load_text_encoder
from snapgen_deploy.errors import BadInput
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.models import PRESETS, TextEncoderConfig, TextStream
from snapgen_deploy.system.child import run_in_child
from tests.checkpoint.cases import tiny_config


def config():
    tiny = tiny_config()  # its 10 words are too few for the embedded tokenizer's 64
    streams = (TextStream("text", 16, 40),)
    encoder = TextEncoderConfig(vocab=64, length=40, width=16, layers=1, heads=2)
    return replace(tiny, student=replace(tiny.student, text_streams=streams), text_encoder=encoder)


def digests(directory):
    opened = open_checkpoint(directory)
    return {n: hashlib.sha256(opened.read(n).view(torch.uint8).numpy().tobytes()).hexdigest() for n in opened.tensors}


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_it_is_valid_and_says_that_it_is_untrained(tmp_path, dtype):
    shards = write_initial(config(), tmp_path, max_shard_bytes=40_000, dtype=dtype)
    opened = open_checkpoint(tmp_path)
    validate(opened)
    assert len(shards) > 2
    assert opened.config.trained is False
    assert {i.dtype for i in opened.tensors.values()} == {{"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[dtype]}
    assert sum(i.nbytes for i in opened.tensors.values()) == initial_bytes(config(), dtype)


def test_one_seed_gives_one_set_of_bytes_whatever_the_shards(tmp_path):
    places = [("a", 0, 40_000), ("b", 0, 10**9), ("c", 1, 40_000), ("d", 0, 40_000)]
    for name, seed, size in places:
        write_initial(config(), tmp_path / name, seed=seed, max_shard_bytes=size)
    found = {name: digests(tmp_path / name) for name, _, _ in places}
    assert found["a"] == found["b"]
    drawn = [n for n in found["a"] if not n.partition("@")[0].endswith(("bias", "norm.weight", "norm1.weight", "norm2.weight"))]
    drawn = [n for n in drawn if "compress" not in n]
    assert all(found["a"][n] != found["c"][n] for n in drawn)
    assert len({found["a"][n] for n in drawn}) == len(drawn)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "d")]
    assert files[0] == files[1]


def test_the_values_do_not_change_from_one_version_to_the_next():
    values = initial_tensor(components_of(config()).denoiser, "patch.weight", (2, 3), 0)
    torch.testing.assert_close(values, torch.tensor([[0.3046, -0.3001, -0.4834], [0.0476, 0.8021, 0.2607]]), atol=1e-4, rtol=0)


def test_one_tensor_is_held_at_a_time(tmp_path, monkeypatch):
    alive, peak = 0, 0

    def released(size):
        nonlocal alive
        alive -= size

    def counted(*arguments):
        nonlocal alive, peak
        tensor = initial_tensor(*arguments)
        alive += tensor.nbytes
        peak = max(peak, alive)
        weakref.finalize(tensor, released, tensor.nbytes)
        return tensor

    monkeypatch.setattr(initial, "initial_tensor", counted)
    gc.disable()
    try:
        write_initial(config(), tmp_path, max_shard_bytes=10**9)
    finally:
        gc.enable()
    largest = max(i.nbytes for i in open_checkpoint(tmp_path).tensors.values())
    assert peak == largest
    assert largest < initial_bytes(config(), "fp32") / 4


def larger():
    return replace(config(), student=replace(config().student, hidden=768, depths=(2, 4, 2)))


def test_peak_memory_is_far_below_the_checkpoints_size(tmp_path):
    _, small = run_in_child("small", write_initial, config(), tmp_path / "small")
    _, large = run_in_child("large", write_initial, larger(), tmp_path / "large")
    assert initial_bytes(larger(), "fp32") > 200e6
    assert large - small < 60e6


@torch.inference_mode()
def test_activations_stay_of_order_one(tmp_path):
    shapes = replace(PRESETS["shapes"](), trained=False)
    write_initial(shapes, tmp_path)
    opened = open_checkpoint(tmp_path)
    generator = torch.Generator().manual_seed(0)
    largest = []
    for width in ("tiny", "full"):
        networks = [load_student(opened, width), load_decoder(opened), load_text_encoder(opened)]
        for network in networks:
            for module in network.modules():
                module.register_forward_hook(
                    lambda _m, _i, out: largest.append(float(out.abs().max())) if isinstance(out, torch.Tensor) else None
                )
        text = {"text": networks[2](torch.arange(40)[None], torch.ones(1, 40))}
        latent = torch.randn(1, 4, 16, 16, generator=generator)
        features = torch.randn(1, shapes.student.time_features, generator=generator)
        velocity = networks[0](latent, features, text, {"text": torch.ones(1, 40)})
        assert 0.05 < float(velocity.std()) < 20
        networks[1](latent)
    assert max(largest) < 300  # fp16 ends at 65504


def test_an_error_leaves_nothing_and_an_old_checkpoint_stays(tmp_path):
    place = tmp_path / "c"
    with pytest.raises(RuntimeError), new_directory(place, 0, overwrite=False) as root:
        (root / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_directory(place, 0, overwrite=False) as root:
        write_initial(config(), root)
    before = digests(place)
    with pytest.raises(RuntimeError), new_directory(place, 0, overwrite=True):
        raise RuntimeError
    assert digests(place) == before
    with new_directory(place, 0, overwrite=True) as root:
        write_initial(config(), root, seed=1)
    assert digests(place) != before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_only_a_checkpoint_is_ever_overwritten(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear diary")
    with pytest.raises(BadInput, match="holds diary.txt"), new_directory(tmp_path / "home", 0, overwrite=True):
        pass
    assert (tmp_path / "home" / "diary.txt").read_text() == "dear diary"


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BadInput, match="GB free"), new_directory(tmp_path / "c", 10**18, overwrite=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_after_a_day(tmp_path):
    for name, hours in ((".c.partial-old", 30), (".c.partial-new", 1), (".d.partial-old", 30)):
        left = tmp_path / name
        left.mkdir()
        (left / "shard").write_text("x")
        for path in (left / "shard", left):
            os.utime(path, (time.time() - hours * 3600,) * 2)
    with new_directory(tmp_path / "c", 0, overwrite=False):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".c.partial-new", ".d.partial-old", "c"]
