"""The word tokenizer."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from examples.shapes.stages import tokenizer
from snapgen_deploy.errors import BadInput
from snapgen_deploy.models.tokenizer import WordTokenizer


def test_numbers_mask_and_padding():
    words = WordTokenizer.from_words(["a", "red", "ring"])
    assert words.encode("A red  ring", 7) == ([1, 4, 5, 6, 2, 0, 0], [1, 1, 1, 1, 1, 0, 0])
    assert words.encode("", 3) == ([1, 2, 0], [1, 1, 0])


def test_it_survives_its_file():
    words = tokenizer()
    again = WordTokenizer(words.to_json())
    assert again.to_json() == words.to_json()
    assert json.loads(words.to_json())["model"]["type"] == "WordLevel"
    prompt = "an orange ring left of a blue square on a gray background"
    assert again.encode(prompt, 40) == words.encode(prompt, 40)


def test_unknown_words_are_all_named():
    with pytest.raises(BadInput, match=r"'Zebra', 'hat'") as error:
        tokenizer().encode("a red Zebra with a hat".replace("with", "and"), 40)
    assert "circle" in str(error.value)


def test_a_long_prompt_is_refused():
    with pytest.raises(BadInput, match="42 tokens, at most 40"):
        tokenizer().encode("a " * 40, 40)


def test_a_file_that_is_no_tokenizer():
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        WordTokenizer("{}")


def test_what_a_file_says_of_padding_and_truncation_does_not_count():
    plain = WordTokenizer.from_words(["a", "red", "ring"])
    tokenizer = Tokenizer.from_str(plain.to_json())
    tokenizer.enable_padding(length=10)
    tokenizer.enable_truncation(4)
    stored = WordTokenizer(tokenizer.to_str())
    assert stored.encode("a red ring", 10) == plain.encode("a red ring", 10)
    assert sum(stored.encode("a red ring", 10)[1]) == 5
    with pytest.raises(BadInput, match="at most 4 fit"):
        stored.encode("a red ring", 4)


def test_the_unknown_and_padding_words_are_the_file_s():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "ring": 2, "<pad>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(pad_id=3, pad_token="<pad>")
    stored = WordTokenizer(tokenizer.to_str())
    assert stored.encode("a ring", 4) == ([1, 2, 3, 3], [1, 1, 0, 0])
    with pytest.raises(BadInput, match="does not know: 'blue'"):
        stored.encode("a blue ring", 4)


def test_an_end_word_that_is_also_the_unknown_one_is_no_unknown_word():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    stored = WordTokenizer(tokenizer.to_str())
    assert stored.encode("a", 3) == ([0, 1, 0], [1, 1, 0])
    with pytest.raises(BadInput, match="does not know: 'ring'"):
        stored.encode("a ring", 3)


def test_a_large_vocabulary_is_not_listed():
    with pytest.raises(BadInput) as caught:
        WordTokenizer.from_words([f"word{i}" for i in range(30_000)]).encode("blue", 10)
    assert "30000 words, such as word0 word1" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_padding_on_the_left():
    tokenizer = Tokenizer.from_str(WordTokenizer.from_words(["a", "red", "ring"]).to_json())
    tokenizer.enable_padding(direction="left", length=8)
    numbers, mask = WordTokenizer(tokenizer.to_str()).encode("a red ring", 8)
    theirs = tokenizer.encode("a red ring")
    assert (numbers, mask) == (theirs.ids, theirs.attention_mask)
    assert mask == [0, 0, 0, 1, 1, 1, 1, 1]


def test_a_unigram_tokenizer_knows_its_unknown_word_by_number():
    tokenizer = Tokenizer(models.Unigram([("<pad>", 0.0), ("<unk>", 0.0), ("a", -1.0), ("ring", -1.0)], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    stored = WordTokenizer(tokenizer.to_str())
    assert stored.encode("a ring", 3) == ([2, 3, 0], [1, 1, 0])
    with pytest.raises(BadInput, match="does not know"):
        stored.encode("a zebu", 8)


def test_an_unknown_word_that_is_not_in_the_vocabulary():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "ring": 1}, unk_token="<nope>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    stored = WordTokenizer(tokenizer.to_str())
    assert stored.encode("a ring", 2) == ([0, 1], [1, 1])
    with pytest.raises(BadInput, match="cannot read the prompt"):
        stored.encode("a zebra", 2)


def test_padding_counts_as_a_row_of_the_embedding():
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert WordTokenizer(tokenizer.to_str()).embedding_rows == 1
    tokenizer.enable_padding(pad_id=5000)
    assert WordTokenizer(tokenizer.to_str()).embedding_rows == 5001
