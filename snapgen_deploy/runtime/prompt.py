"""Prompt to tokens by a rule of conformance.json (docs/formats.md), with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from snapgen_deploy.errors import BadInput
from snapgen_deploy.runtime.record import PictureRefused
from snapgen_deploy.system.documents import LONGEST_NAME, cut
from snapgen_deploy.system.native import no_panic


class RuleReader:
    """A text encoder's tokenizer. Threads may share one."""

    def __init__(self, rule: Mapping[str, Any], file: Path) -> None:
        """`rule` is an element of `tokenizers`, `file` the tokenizer that it names.

        Raises:
            BadInput: if the library cannot read the file.
        """
        from tokenizers import Tokenizer

        try:
            with no_panic():
                self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise BadInput(f"{file} cannot be read: {cut(str(error), LONGEST_NAME)}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.rule = rule

    def read(self, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (1, L) int32 and mask (1, L) float32.

        Raises:
            BadInput: if the prompt has words that the tokenizer does not know where the rule refuses them, or too many tokens.
        """
        rule = self.rule
        length, text = rule["length"], rule["template"].replace("{}", prompt, 1)
        with no_panic():
            read = self._tokenizer.encode(text, add_special_tokens=rule["special_tokens"])
        ids = read.ids
        if rule["unknown"] == "refused":
            spans = [
                span for n, span in zip(ids, read.offsets, strict=True) if n == rule["unknown_token"] and span[0] < span[1]
            ]
            if unknown := list(dict.fromkeys(text[a:b] for a, b in spans)):
                said = f"the model does not know the words {', '.join(map(repr, unknown))[:200]}"
                raise PictureRefused("unknown", said)
        if len(ids) > length:
            raise PictureRefused("long", f"the prompt has {len(ids)} tokens, at most {length} fit; shorten it")
        begin = length - len(ids) if rule["side"] == "left" else 0
        tokens = np.full((1, length), rule["pad"], np.int32)
        mask = np.full((1, length), float(rule["padding_seen"]), np.float32)
        tokens[0, begin : begin + len(ids)] = ids
        mask[0, begin : begin + len(ids)] = 1.0
        return tokens, mask
