"""What is raised says it on one line that a terminal only shows."""

import pickle

import pytest

from snapgen_deploy.errors import GateFailed, Refused, SnapgenError, WrongFile, one_line
from snapgen_deploy.system.quiet import reason_of


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a  b", "a  b"),  # as a path may be
        ("got\n  3\r\n\n expected 4", "got 3 expected 4"),
        ("\x1b[31mred\x07 \x9b \u202e", r"\x1b[31mred\x07 \x9b \u202e"),
        ("a\u2028b\x85c", "a b c"),
        ("na\u00efve \u6587 \U0001f600", "na\u00efve \u6587 \U0001f600"),
        ("odd\udcff.pt", r"odd\udcff.pt"),  # a file's name that is no UTF-8
    ],
    ids=range(6),
)
def test_one_line(text, line):
    assert one_line(text) == one_line(one_line(text)) == line
    line.encode()


def test_every_error_holds_one_line():
    for kind in (SnapgenError, Refused, GateFailed):
        assert str(kind("two\nlines\x1b")) == r"two lines\x1b"
    error = WrongFile("a\nb", ["c\nd"])
    assert (str(error), error.problems) == ("a b", ("c d",))
    assert str(pickle.loads(pickle.dumps(Refused("x\ny")))) == "x y"


def test_a_reason_is_short_and_never_nothing():
    assert [reason_of(error) for error in (ValueError(), KeyError(), ValueError(" \n bad\nshape"))] == [
        "ValueError",
        "KeyError",
        "bad",
    ]
    assert len(reason_of(ValueError("x" * 1000))) == 160
