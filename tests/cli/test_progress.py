"""Bars on stderr: what is done of how much, at which rate, and how long it takes on."""

import io
import re
import sys

import numpy as np

import eplb_traces
from eplb_cli import output
from eplb_cli.arguments.watched_trace import watched_trace
from eplb_traces.windows import load_by_window


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(monkeypatch, file=None):
    """Called in the test itself: pytest puts its own stderr back between a fixture and the test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", file or Terminal())
    return sys.stderr


def shown(terminal):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def test_a_bar_with_an_end_shows_what_is_done_and_the_time_left(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with output.progress("planning", 4) as step:
        step()
        step()
    assert re.search(r"planning .*2 of 4 .*\d:\d\d:\d\d", shown(terminal))
    assert "a second" not in shown(terminal)


def test_a_bar_over_tokens_shows_their_rate(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with output.progress("counting", 6000, "tokens") as step:
        for _ in range(3):
            step(2000)
    assert re.search(r"6,000 of 6,000, [\d,]+ tokens a second", shown(terminal))


def test_a_bar_without_an_end_shows_the_time_that_has_passed(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with output.progress("reading"):
        pass
    assert re.search(r"reading .*0:00:00", shown(terminal))


def test_nothing_is_shown_where_stderr_is_no_terminal_or_with_quiet(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with output.quiet(), output.progress("planning", 2) as step:
        step()
    file = on_terminal(monkeypatch, io.StringIO())
    with output.progress("planning", 2) as step:
        step(2)
    assert file.getvalue() == terminal.getvalue() == ""


def test_a_watched_trace_is_the_same_and_announces_all_its_tokens():
    trace = eplb_traces.read_trace("sample:moe-435m")
    seen = []
    watched = watched_trace(trace, seen.append)
    load = load_by_window(watched, 8)
    assert sum(seen) == trace.num_tokens
    np.testing.assert_array_equal(load.tokens, trace.load(8).tokens)


def test_the_choice_of_windows_reads_no_batch_of_a_watched_trace():
    trace = eplb_traces.read_trace("sample:moe-435m")
    seen = []
    assert load_by_window(watched_trace(trace, seen.append), None) == load_by_window(trace, None)
    assert sum(seen) == trace.num_tokens
