import os

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.models import tokenizer
from snapgen_deploy.system.native import NativeError, no_panic, no_panic_escapes


class PanicException(BaseException):
    """As pyo3's, which no module exports."""


class Panicking:
    """A tokenizers library that panics; what makes the real one panic stays out of this repository."""

    @staticmethod
    def from_str(text):
        os.write(2, b"thread '<unnamed>' panicked at src/lib.rs:1:1\n" * 30)
        raise PanicException("no entry found for key" + "x" * 20_000)


def test_a_panic_is_an_error_without_its_stack(capfd):
    with pytest.raises(NativeError, match="no entry found for key"), no_panic():
        Panicking.from_str("")
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"
    with pytest.raises(KeyboardInterrupt), no_panic():
        raise KeyboardInterrupt
    with pytest.raises(NativeError), no_panic_escapes():
        raise PanicException("x")
    with pytest.raises(SystemExit), no_panic_escapes():
        raise SystemExit(2)


def test_a_tokenizer_file_that_makes_the_library_panic(monkeypatch, capfd):
    monkeypatch.setattr(tokenizer, "Tokenizer", Panicking)
    with pytest.raises(BadInput, match="not a tokenizer.json of the `tokenizers` library: no entry") as caught:
        tokenizer.WordTokenizer("{}")
    assert len(str(caught.value)) <= 300
    assert capfd.readouterr().err == ""
