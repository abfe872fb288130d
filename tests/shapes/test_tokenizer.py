"""The word tokenizer."""

import json

import pytest

from examples.shapes.stages import tokenizer
from snapgen_deploy.errors import BadInput
from snapgen_deploy.tokenizer import WordTokenizer


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
