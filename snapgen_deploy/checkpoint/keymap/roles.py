"""What names of tensors usually mean: `to_q`, `q_proj`, `query` and `wq` are all a query projection."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache

# Role -> what says so, in a name in lower case between whose parts stand dots. Usual names of diffusers, transformers, PixArt,
# SANA, Llama and ours.
_ROLES: Mapping[str, str] = {
    "self": r"attn1|self_attn\w*|self_attention|attention|attn|sa|mha",
    "cross": r"attn2|cross\w*|xattn|encoder_attn|ca|multihead_attn",
    "q": r"(to_|w)?q(_proj|_lin|_linear)?|query\w*",
    "k": r"(to_|w)?k(_proj|_lin|_linear|_compress\w*)?|keys?|key_\w+",
    "v": r"(to_|w)?v(_proj|_lin|_linear|_compress\w*)?|values?|value_\w+",
    "fused": r"(to_|w|in_)?(qkv|kv|q_k_v)(_proj|_linear)?|kv_linear|in_proj\w*|c_attn",
    "out": r"to_out|out_proj|o_proj|wo|out|o|proj|out_lin|c_proj|dense",
    "q_norm": r"(norm|ln)_q|q_(norm|ln|layernorm)|query_norm",
    "k_norm": r"(norm|ln)_k|k_(norm|ln|layernorm)|key_norm",
    "ffn": r"ffn?|mlp|feed_?forward|net",
    "up": r"up(_proj)?|fc1|w1|lin1|c_fc|linear_?1|dense_h_to_4h|net\.0\.proj|(ff|mlp|ffn)\.0",
    "down": r"down(_proj)?|fc2|w2|lin2|linear_?2|dense_4h_to_h|net\.2|(ff|mlp|ffn)\.2",
    "table": r"\w*table|modulation|mod",
    "final": r"final\w*",
    "time": r"time|t_embedder|t_block|timestep\w*|time_\w+|adaln_single|temb\w*",
    "first": r"fc1|linear_?1|lin1|mlp\.0|in_layer",
    "second": r"fc2|linear_?2|lin2|mlp\.2|out_layer",
    "six": r"six|t_block\.1|adaln_single\.linear|adaln_modulation\w*",
    "text": r"text|caption\w*|y_embedder|y_proj|context_\w+|txt_in|cap\w*|prompt\w*",
    "patch": r"patch|pos_embed\.proj|x_embedder|patch_embed\w*|conv_in|img_in|x_proj",
    "unpatch": r"unpatch|proj_out|final_layer\.linear|conv_out|head",
    "skip": r"skips?|skip_\w+|long_skip\w*",
    "compress": r"\w*compress\w*|\w*sr\w*|\w*downsample_k\w*",
    "gate": r"gate\w*|g_proj",
    "downsample": r"downsample\w*|down_sample\w*|downsampler\w*",
    "upsample": r"upsample\w*|up_sample\w*|upsampler\w*",
    "embedding": r"tokens?|token_embedding|wte|embed_tokens|word_embeddings|shared",
    "position": r"positions?|position_embedding|wpe|position_embeddings",
}
_COMPILED = {role: re.compile(rf"(?:^|\.)(?:{text})(?=\.|@|$)") for role, text in _ROLES.items()}
_BY_ROLE = 0.8  # of a likeness; the rest is how much the letters agree


@cache
def roles(name: str) -> frozenset[str]:
    """What a name says of its tensor.

    >>> sorted(roles("blocks.3.attn2.to_q.weight"))
    ['cross', 'q']
    """
    lower = name.lower()
    found = {role for role, pattern in _COMPILED.items() if pattern.search(lower)}
    for letter in "qk":
        if f"{letter}_norm" in found or "compress" in found:
            found.discard("out")
    if "cross" in found:
        found.discard("self")
    return frozenset(found)


@cache
def likeness(one: str, two: str) -> float:
    """How much two names seem to mean the same, from 0 to 1."""
    a, b = roles(one), roles(two)
    shared = len(a & b) / len(a | b) if a | b else 0.0
    return _BY_ROLE * shared + (1 - _BY_ROLE) * difflib.SequenceMatcher(None, one, two, autojunk=False).ratio()
