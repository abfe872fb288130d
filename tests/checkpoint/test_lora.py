"""LoRA is added as `peft` adds it: its own merge is the oracle."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from snapgen_deploy.checkpoint import CheckpointPlace, save_checkpoint, validate
from snapgen_deploy.checkpoint.lora import parsed
from snapgen_deploy.checkpoint.networks import load_student
from snapgen_deploy.models import DiT, ElasticDiT
from tests.checkpoint.cases import refused, tiny_config
from tests.checkpoint.foreign import PIXART_MAP, our_state, pixart_config, pixart_state

Q, UP = "middle.0.attention.q", "down.0.ffn.up"
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6},
    "patterns": {"r": 4, "lora_alpha": 6, "rank_pattern": {Q: 2}, "alpha_pattern": {"attention.q": 3, f"^{UP}": 1}},
    "rank stable": {"r": 4, "lora_alpha": 6, "use_rslora": True},
}


class Net(nn.Module):
    """The student's shared tensors as a module of their names, and what else peft adapts."""

    def __init__(self, state: dict[str, Tensor], modules: tuple[str, ...]) -> None:
        super().__init__()
        for name in modules:
            weight = state[f"student.{name}.weight"]
            layer = _layer(weight)
            layer.weight = nn.Parameter(weight.clone())
            place: nn.Module = self
            *parents, leaf = name.split(".")
            for parent in parents:
                if parent not in dict(place.named_children()):
                    place.add_module(parent, nn.Module())
                place = place.get_submodule(parent)
            place.add_module(leaf, layer)


def _layer(weight: Tensor) -> nn.Module:
    if weight.dim() == 4:
        return nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride=2)
    return nn.Linear(weight.shape[1], weight.shape[0])


def adapted(state: dict[str, Tensor], modules: tuple[str, ...], **settings: Any) -> Any:
    peft = pytest.importorskip("peft")  # here, and not once in every process that collects this file: an import of seconds
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = peft.get_peft_model(Net(state, modules), peft.LoraConfig(target_modules=list(modules), **settings))
    for name, tensor in net.named_parameters():
        if "lora_" in name:
            tensor.data.normal_(std=0.1)
    return net


def merged_by_peft(net: Any) -> dict[str, Tensor]:
    return {f"student.{n}": t for n, t in net.merge_and_unload().state_dict().items() if n.endswith("weight")}


@pytest.fixture
def stored(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    save_checkpoint(state, tiny_config(), tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("kind", SETTINGS)
def test_pefts_folder(kind: str, tmp_path: Path, state: dict[str, Tensor], stored: Path) -> None:
    net = adapted(state, (Q, UP, "patch"), **SETTINGS[kind])
    net.save_pretrained(tmp_path / "lora")
    checkpoint = CheckpointPlace(stored, loras=((tmp_path / "lora", 1.0),)).open()
    validate(checkpoint)
    for name, wanted in merged_by_peft(net).items():
        got = checkpoint.read(name)
        assert torch.allclose(got, wanted, atol=1e-6)
        assert not torch.equal(got, state[name])
        part = tuple((n + 1) // 2 for n in wanted.shape)
        assert torch.allclose(checkpoint.read(name, part), wanted[tuple(slice(0, n) for n in part)], atol=1e-6)
    assert torch.equal(checkpoint.read("student.unpatch.weight"), state["student.unpatch.weight"])
    plain = CheckpointPlace(stored).open()
    assert (
        len({plain.sha256(), checkpoint.sha256(), CheckpointPlace(stored, loras=((tmp_path / "lora", 0.5),)).open().sha256()})
        == 3
    )
    assert [(lora.name, lora.scale, len(lora.sha256)) for lora in checkpoint.loras] == [("lora", 1.0, 64)]
    assert checkpoint.notes == ("LoRA lora times 1: 3 modules",)


@pytest.mark.parametrize("width", ["tiny", "full"])
def test_widths_are_slices_of_the_merged_network(
    width: str, tmp_path: Path, model: tuple[ElasticDiT, dict[str, Tensor]], stored: Path
) -> None:
    elastic, state = model
    net = adapted(state, (Q, UP), r=4, lora_alpha=6)
    net.save_pretrained(tmp_path / "lora")
    student = load_student(CheckpointPlace(stored, loras=((tmp_path / "lora", 1.0),)).open(), width)
    assert isinstance(student, DiT)
    wanted = dict(elastic.sliced(width))
    for name, tensor in merged_by_peft(net).items():
        short = name.removeprefix("student.")
        wanted[short] = tensor[tuple(slice(0, n) for n in wanted[short].shape)]
    assert all(torch.allclose(t, wanted[n], atol=1e-6) for n, t in student.state_dict().items())


def single(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "lora.safetensors", metadata)
    return folder / "lora.safetensors"


NAMES = {
    "diffusers": ("transformer.middle.0.attention.q.lora_A.weight", "transformer.middle.0.attention.q.lora_B.weight", ""),
    "old diffusers": ("unet.middle.0.attention.q.lora.down.weight", "unet.middle.0.attention.q.lora.up.weight", ""),
    "kohya": (
        "lora_unet_middle_0_attention_q.lora_down.weight",
        "lora_unet_middle_0_attention_q.lora_up.weight",
        "lora_unet_middle_0_attention_q.alpha",
    ),
    "adapter's name": (
        "student.middle.0.attention.q.lora_A.default.weight",
        "student.middle.0.attention.q.lora_B.default.weight",
        "",
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_single_files(kind: str, tmp_path: Path, state: dict[str, Tensor], stored: Path) -> None:
    a, b = torch.randn(3, 64), torch.randn(64, 3)
    down, up, alpha = NAMES[kind]
    path = single(tmp_path, {down: a, up: b} | ({alpha: torch.tensor(1.5)} if alpha else {}))
    checkpoint = CheckpointPlace(stored, loras=((path, 0.8), (path, -0.3))).open()
    scale = 0.5 * (1.5 / 3 if alpha else 1.0)
    wanted = state[f"student.{Q}.weight"] + scale * (b @ a)
    assert torch.allclose(checkpoint.read(f"student.{Q}.weight"), wanted, atol=1e-4)


def test_what_diffusers_says_of_alphas_in_the_header(tmp_path: Path, state: dict[str, Tensor], stored: Path) -> None:
    a, b = torch.randn(4, 64), torch.randn(64, 4)
    said = {"transformer.lora_alpha": 2, "transformer.r": 4, "transformer.use_rslora": True}
    path = single(
        tmp_path,
        {f"transformer.{Q}.lora_A.weight": a, f"transformer.{Q}.lora_B.weight": b},
        {"lora_adapter_metadata": json.dumps(said)},
    )
    got = CheckpointPlace(stored, loras=((path, 1.0),)).open().read(f"student.{Q}.weight")
    assert torch.allclose(got, state[f"student.{Q}.weight"] + (b @ a), atol=1e-5)


def test_text_encoders_and_embeddings(tmp_path: Path, state: dict[str, Tensor], stored: Path) -> None:
    table, q = "text_encoder.tokens.weight", next(n for n in state if n.startswith("text_encoder.") and n.endswith(".q.weight"))
    (rows, width), module = state[table].shape, q.removesuffix(".weight")
    a, b, c, d = torch.randn(2, rows), torch.randn(width, 2), torch.randn(2, width), torch.randn(width, 2)
    path = single(
        tmp_path,
        {"text_encoder.tokens.lora_embedding_A": a, "text_encoder.tokens.lora_embedding_B": b}
        | {f"{module}.lora_A.weight": c, f"{module}.lora_B.weight": d},
    )
    checkpoint = CheckpointPlace(stored, loras=((path, 1.0),)).open()
    assert torch.allclose(checkpoint.read(table), state[table] + (b @ a).T, atol=1e-5)
    assert torch.allclose(checkpoint.read(q), state[q] + d @ c, atol=1e-5)


def test_names_go_through_the_key_map(tmp_path: Path) -> None:
    """An adapter of the foreign network, on a tensor that is taken apart."""
    config, keys, path = pixart_config(), tmp_path / "map.toml", tmp_path / "x.safetensors"
    state = our_state(config)
    save_checkpoint(pixart_state(state), config, path)
    keys.write_text(PIXART_MAP)
    a, b = torch.randn(2, 16), torch.randn(32, 2)
    front = "base_model.model.transformer_blocks.9.attn2.to_kv"
    lora = single(tmp_path, {f"{front}.lora_A.weight": a, f"{front}.lora_B.weight": b})
    checkpoint = CheckpointPlace(path, keys, loras=((lora, 1.0),)).open()
    k, v = (b @ a).split(16)
    for x, delta in (("k", k), ("v", v)):
        name = f"student.middle.1.cross.{x}.weight"
        assert torch.allclose(checkpoint.read(name), state[name] + delta, atol=1e-5)


def pair(module: str, rows: int = 64, columns: int = 64) -> dict[str, Tensor]:
    return {f"{module}.lora_A.weight": torch.ones(2, columns), f"{module}.lora_B.weight": torch.ones(rows, 2)}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            pair("down_blocks.0.attentions.0.proj_in"),
            ("is of another network", "'down_blocks.0.attentions.0.proj_in' of shape"),
        ),
        (pair(Q, 32), ("is of another network", "is [64, 64], the LoRA's [32, 64]")),
        ({f"{Q}.lora_A.weight": torch.ones(2, 64)}, ("has only one of its two matrices",)),
        (pair(Q) | {f"{Q}.lora_magnitude_vector": torch.ones(64)}, ("is no LoRA", "no DoRA")),
        ({f"{Q}.hada_w1_a": torch.ones(2, 2)}, ("is no LoRA", "LoHa")),
        (pair(Q) | {f"{Q}.alpha": torch.tensor(float("inf"))}, ("its alpha gives the scale inf",)),
        ({f"{Q}.lora_A.weight": torch.ones(2, 64), f"{Q}.lora_B.weight": torch.ones(64, 3)}, ("do not multiply",)),
    ],
    ids=range(7),
)
def test_adapters_that_do_not_fit(tensors: dict[str, Tensor], said: tuple[str, ...], tmp_path: Path, stored: Path) -> None:
    path = single(tmp_path, tensors)
    assert (
        len(refused(CheckpointPlace(stored, loras=((path, 1.0),)).open, f"LoRA {path}", *said).replace(str(tmp_path), "")) < 400
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"use_dora": True}, "use_dora: got true"),
        ({"peft_type": "LOHA"}, "is a 'LOHA' adapter, expected LORA"),
        ({"modules_to_save": ["x"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the weights below it"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "alpha_pattern: expected ends of modules' names"),
        ({"lora_alpha": "x"}, "lora_alpha: got 'x'"),
    ],
)
def test_settings_that_merging_does_not_know(changed: dict[str, object], said: str, tmp_path: Path, stored: Path) -> None:
    save_file(pair(Q), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2} | changed))
    refused(CheckpointPlace(stored, loras=((tmp_path, 1.0),)).open, said)


def test_transposed_weights(tmp_path: Path, state: dict[str, Tensor], stored: Path) -> None:
    save_file(pair(UP, 64, 256), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"fan_in_fan_out": True, "lora_alpha": 2}))
    name = f"student.{UP}.weight"
    got = CheckpointPlace(stored, loras=((tmp_path, 1.0),)).open().read(name, (100, 10))
    assert torch.allclose(got, state[name][:100, :10] + 2)


def test_places(tmp_path: Path, stored: Path) -> None:
    assert parsed("a/b.safetensors:0.8") == (Path("a/b.safetensors"), 0.8)
    assert parsed("a:b") == (Path("a:b"), 1.0)
    refused(lambda: parsed("a:inf"), "expected PATH or PATH:SCALE")
    refused(CheckpointPlace(stored, loras=((tmp_path / "no", 1.0),)).open, "no such file or folder")
    refused(CheckpointPlace(stored, loras=((tmp_path, 1.0),)).open, "has no adapter_model.safetensors")
    (tmp_path / "a.bin").write_bytes(b"x")
    refused(CheckpointPlace(stored, loras=((tmp_path / "a.bin", 1.0),)).open, "got the suffix '.bin'")
