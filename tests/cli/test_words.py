"""Lines and tables break between words: what is left whole at 80 columns can be read, copied and searched for."""

import io

import pytest

from snapgen_deploy.cli import app
from snapgen_deploy.cli.console import WholeWords, new_table
from tests.cli.conftest import invoke

CHEAP = (
    *((command.name, "--help") for command in app.registered_commands),
    *(("devices", device) for device in ("iphone16pm", "android-mid", "galaxy-a15", "server-l4")),
    ("devices",),
    ("devices", "--precisions"),
    ("inspect",),
)
PATH = "/a/folder/of/somebody/with/a/name/that/is/longer/than/a/line/of/a/plain/terminal/is/model.onnx"


def words_of(monkeypatch, columns, arguments):
    monkeypatch.setenv("COLUMNS", str(columns))
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    return {word for word in done.stdout.split() if any(map(str.isalnum, word))}


@pytest.mark.parametrize("arguments", CHEAP, ids=" ".join)
def test_no_word_is_broken_at_80_columns(monkeypatch, arguments):
    assert words_of(monkeypatch, 80, arguments) <= words_of(monkeypatch, 400, arguments)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_path_is_left_whole(terminal):
    console = WholeWords(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)
    console.print(f"{'words ' * 20}{PATH} and more", soft_wrap=True)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == (4 if terminal else 1)  # a pipe gets one line, a terminal lines that it need not break
    assert [line for line in lines if PATH in line]
    assert all(len(line) <= 80 for line in lines if PATH not in line)


def test_columns_give_way_down_to_their_longest_word():
    console = WholeWords(file=io.StringIO(), width=80)
    table = new_table()
    for column in ("target", "why"):
        table.add_column(column)
    table.add_row("executorch:xnnpack on some computer", "a reason of many words " * 5)
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "executorch:xnnpack" in console.file.getvalue()
    table.add_row(PATH, "of")
    console.print(table)
    assert PATH in console.file.getvalue()
