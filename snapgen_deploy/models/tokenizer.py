"""The embedded checkpoint's tokenizer: whole words, stored as a Hugging Face `tokenizers` file (tokenizer.json)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.config import PromptReading
from snapgen_deploy.system.documents import LONGEST_LINE, LONGEST_NAME, LONGEST_VALUE, cut, several
from snapgen_deploy.system.native import no_panic

LISTED = 200  # a vocabulary of more words is not listed in a message
WHOLE_WORDS = PromptReading()  # a prompt as it is, of words that the tokenizer knows
PAD, BOS, EOS, _UNKNOWN = "[PAD]", "[BOS]", "[EOS]", "[UNK]"


class WordTokenizer:
    """Prompt -> padded token ids and mask.

    >>> WordTokenizer.from_words(["red", "ring"]).encode("Red ring", 6)
    ([1, 4, 5, 2, 0, 0], [1, 1, 1, 1, 0, 0])
    """

    def __init__(self, text: str, reading: PromptReading = WHOLE_WORDS) -> None:
        """`text` is the content of a tokenizer.json file, `reading` what such a file cannot say.

        Raises:
            BadInput: if the `tokenizers` library cannot read it.
        """
        try:
            with no_panic():
                self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            said = cut(str(error), LONGEST_NAME)
            raise BadInput(f"the tokenizer is not a tokenizer.json of the `tokenizers` library: {said}") from error
        model, padding = self._tokenizer.model, self._tokenizer.padding or {}
        unknown = getattr(model, "unk_token", None)
        # Unigram has only an id for it, which the library does not expose
        numbered = json.loads(text)["model"].get("unk_id") if isinstance(model, models.Unigram) else None
        self._tokenizer.no_padding()  # a file may ask for both; `encode` pads itself, and never truncates
        self._tokenizer.no_truncation()
        named = _UNKNOWN if unknown is None else unknown
        self._unknown: int | None = self._tokenizer.token_to_id(named) if numbered is None else numbered
        self._pad: int = padding.get("pad_id", self._tokenizer.token_to_id(PAD) or 0)
        self._left = padding.get("direction") == "left"
        self._reading = reading

    @classmethod
    def from_words(cls, words: Sequence[str]) -> WordTokenizer:
        """A tokenizer whose vocabulary is the special tokens and these words, in this order."""
        vocabulary = {word: i for i, word in enumerate([PAD, BOS, EOS, _UNKNOWN, *words])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        specials = [(BOS, vocabulary[BOS]), (EOS, vocabulary[EOS])]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=specials)
        return cls(tokenizer.to_str())

    @property
    def pad(self) -> int:
        """Id of the token that fills a prompt up."""
        return self._pad

    @property
    def pads_left(self) -> bool:
        """Whether padding comes before the prompt."""
        return self._left

    @property
    def unknown(self) -> int | None:
        """Id of the token for words that the tokenizer does not know; None if it has none."""
        return self._unknown

    @property
    def embedding_rows(self) -> int:
        """Rows that an embedding needs: one more than the largest token id, special tokens and padding included."""
        return 1 + int(max([*self._tokenizer.get_vocab().values(), self._pad]))

    def words(self) -> list[str]:
        """The vocabulary without its special tokens, in order of their ids."""
        vocabulary = self._tokenizer.get_vocab()
        return [w for w in sorted(vocabulary, key=vocabulary.__getitem__) if w not in (PAD, BOS, EOS, _UNKNOWN)]

    def to_json(self) -> str:
        """The tokenizer.json text, with sorted keys."""
        return _sorted(self._tokenizer)

    def padded_json(self, length: int) -> str:
        """As `to_json`, for apps: the tokenizer in it pads as `encode` does, and never truncates."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.enable_padding(
            direction="left" if self._left else "right",
            pad_id=self._pad,
            pad_token=tokenizer.id_to_token(self._pad) or PAD,
            length=length,
        )
        return _sorted(tokenizer)

    def encode(self, prompt: str, length: int) -> tuple[list[int], list[int]]:
        """Token ids padded to `length` and a mask with 1 = token.

        Raises:
            BadInput: if the prompt has unknown words or more than `length` tokens, or the tokenizer cannot read it.
        """
        text = self._reading.filled(prompt)
        try:
            with no_panic():
                encoding = self._tokenizer.encode(text, add_special_tokens=self._reading.special_tokens)
        except Exception as error:  # a bare Exception if the unknown token is not in the vocabulary
            raise BadInput(f"the tokenizer cannot read the prompt: {cut(str(error), LONGEST_NAME)}") from None
        numbers = list(encoding.ids)
        # a tokenizer's unknown token may also be its end token, as CLIP's: the end covers no text
        spans = [span for n, span in zip(numbers, encoding.offsets, strict=True) if n == self._unknown and span[0] < span[1]]
        unknown = [text[a:b] for a, b in spans]
        if unknown and self._reading.unknown == "refused":
            listed, known = several(list(dict.fromkeys(repr(w) for w in unknown)), room=LONGEST_VALUE), self.words()
            said = f"the prompt has words that the checkpoint does not know: {listed}; it knows: "
            room = LONGEST_LINE - len(said)
            if len(known) > LISTED:
                knows = cut(f"{len(known)} words, such as {' '.join(known[:10])}", room)
            else:
                knows = several(known, " ", room)
            raise BadInput(said + knows)
        if len(numbers) > length:
            raise BadInput(f"the prompt has {len(numbers)} tokens, at most {length} fit; shorten it")
        padding, ones = [self._pad] * (length - len(numbers)), [1] * len(numbers)
        zeros = [int(self._reading.padding_seen)] * len(padding)
        return (padding + numbers, zeros + ones) if self._left else (numbers + padding, ones + zeros)


def _sorted(tokenizer: Tokenizer) -> str:
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)
