"""The one module that prints: what goes where, and how it looks."""

import io
import sys

import pytest

from eplb_cli import output


class _Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_numbers_are_aligned_right_and_words_left(capsys):
    output.table("Title", ("name", "ratio", "count"), [("a", 1.0, 5), ("longer", 10.25, 12345)])
    assert capsys.readouterr().out.splitlines() == [
        "Title",
        "name      ratio  count",
        "──────────────────────",
        "a        1.0000      5",
        "longer  10.2500  12345",
        "",
    ]


def test_facts_are_aligned(capsys):
    output.facts("Title", [("a", 1.0), ("longer", "word")])
    assert capsys.readouterr().out.splitlines() == ["Title", "a       1.0000", "longer  word", ""]


def test_brackets_in_words_are_no_markup(capsys):
    output.table("[bold]T", ("what",), [("[layers, experts] :smile:",)])
    out = capsys.readouterr().out
    assert "[bold]T" in out
    assert "[layers, experts] :smile:" in out


def test_lines_are_never_wrapped(capsys):
    output.line("x" * 500)
    output.error("y" * 500)
    assert capsys.readouterr() == ("x" * 500 + "\n", "error: " + "y" * 500 + "\n")


def test_json_has_no_numbers_that_json_cannot_say():
    with pytest.raises(ValueError, match="JSON"):
        output.json_object({"x": float("nan")})


def test_numbers_as_words():
    assert output.percentage(0.00034) == "0.03"
    assert output.milliseconds(0.00512) == "5.1"
    assert (output.counted(1, "node"), output.counted(4, "node")) == ("1 node", "4 nodes")


def test_progress_is_silent_where_stderr_is_no_terminal(capsys):
    with output.progress("planning", 2) as step:
        step()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [None, 2])
def test_progress_is_shown_on_a_terminal_and_only_on_stderr(capsys, monkeypatch, total):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress("planning", total) as step:
        step()
    assert "planning" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the bar's line is erased
    assert capsys.readouterr().out == ""
