"""Small text encoders as transformers saves them: its classes with seeded weights, tokenizers trained on a few sentences."""

from __future__ import annotations

import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch

SENTENCES = [
    "a red ring on a blue square",
    "two green circles, one yellow star",
    "the quick brown fox jumps over the lazy dog",
    "An oil painting of a small cat; it sleeps.",
    *(resources.files("snapgen_deploy.assets") / "shapes_fidelity.txt").read_text(encoding="utf-8").splitlines(),
]
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_DECODER = {**_SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
_GEMMA = {**_DECODER, "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
# By model_type: the class that saves it, its configuration, and its tokenizer.
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "clip_text_model": (
        "CLIPTextModel",
        {**_SMALL, "intermediate_size": 64, "max_position_embeddings": 16, "hidden_act": "quick_gelu"},
        "clip",
    ),
    "t5": ("T5EncoderModel", {**_T5, "relative_attention_max_distance": 8, "relative_attention_num_buckets": 8}, "t5"),
    "gemma2": ("Gemma2ForCausalLM", _GEMMA, "gemma"),
    "gemma3_text": ("Gemma3ForCausalLM", {**_GEMMA, "sliding_window_pattern": 2}, "gemma"),
    "llama": ("LlamaForCausalLM", {**_DECODER, "num_key_value_heads": 1}, "qwen"),
    "qwen2": ("Qwen2ForCausalLM", _DECODER, "qwen"),
    "qwen3": ("Qwen3ForCausalLM", {**_DECODER, "head_dim": 16}, "qwen"),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {**_DECODER, "head_dim": 16, "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2]}},
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0],
            },
        },
        "qwen",
    ),
}


def clip_tokenizer(folder: Path) -> int:
    """vocab.json and merges.txt, as OpenAI's CLIP has them. Returns the number of ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=760, end_of_word_suffix="</w>", initial_alphabet=letters, special_tokens=[], show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    model = json.loads(made.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for word in (*(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"):
        vocabulary.setdefault(word, len(vocabulary))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in model["merges"]) + "\n")
    _about(folder, tokenizer_class="CLIPTokenizer", model_max_length=16, pad_token="<|endoftext|>")
    return len(vocabulary)


def t5_tokenizer(folder: Path) -> int:
    """spiece.model: sentencepiece's unigrams. Returns the number of ids."""
    _sentencepiece(folder / "spiece.model", "unigram", vocab_size=90, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    _about(folder, tokenizer_class="T5Tokenizer", extra_ids=4)
    return _count(folder)


def gemma_tokenizer(folder: Path) -> int:
    """tokenizer.model: sentencepiece's byte pairs with bytes for the rest. Returns the number of ids."""
    turns = ["<start_of_turn>", "<end_of_turn>"]
    _sentencepiece(
        folder / "tokenizer.model", "bpe", vocab_size=400, pad_id=0, eos_id=1, bos_id=2, unk_id=3, byte_fallback=True,
        user_defined_symbols=turns,
    )  # fmt: skip
    _about(folder, tokenizer_class="GemmaTokenizer", padding_side="left", chat_template=GEMMA_CHAT)
    return _count(folder)


def qwen_tokenizer(folder: Path) -> int:
    """tokenizer.json: byte pairs. Returns the number of ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, special_tokens=special, show_progress=False)
    )
    made.save(str(folder / "tokenizer.json"))
    _about(
        folder, tokenizer_class="PreTrainedTokenizerFast", pad_token="<|endoftext|>", eos_token="<|im_end|>",
        chat_template=QWEN_CHAT,
    )  # fmt: skip
    return _count(folder)


TOKENIZERS = {"clip": clip_tokenizer, "t5": t5_tokenizer, "gemma": gemma_tokenizer, "qwen": qwen_tokenizer}


def _sentencepiece(path: Path, kind: str, **settings: Any) -> None:
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=made, model_type=kind, minloglevel=2, hard_vocab_limit=False, **settings
    )
    path.write_bytes(made.getvalue())


def _about(folder: Path, **settings: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _count(folder: Path) -> int:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    return 1 + int(max(AutoTokenizer.from_pretrained(str(folder)).get_vocab().values()))


def write_folder(folder: Path, kind: str, architecture: str = "", **settings: Any) -> Path:
    """A text encoder of this model_type, saved by its usual class or another; `settings` change its configuration."""
    import transformers

    folder.mkdir(parents=True)
    name, own, tokenizer = MODELS[kind]
    own, vocabulary = {**own, **settings}, {"vocab_size": TOKENIZERS[tokenizer](folder)}
    own |= {"text_config": own["text_config"] | vocabulary} if "text_config" in own else vocabulary
    found = transformers.AutoTokenizer.from_pretrained(str(folder))
    own = {"eos_token_id": found.eos_token_id, "pad_token_id": found.pad_token_id, **own}
    network = getattr(transformers, architecture or name)
    torch.manual_seed(0)
    model = network(network.config_class(**own))
    with torch.no_grad():
        for parameter in model.parameters():  # away from what a class begins with, so that every tensor counts
            parameter.add_(torch.randn(parameter.shape) * (0.2 if parameter.ndim > 1 else 0.1))
    model.save_pretrained(str(folder))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder
