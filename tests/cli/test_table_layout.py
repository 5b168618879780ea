"""Tables at any width of the terminal: no word and no number is cut, and none is missing."""

import json
import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from eplb_cli import output, table_layout
from eplb_cli.table_layout import Block, blocks
from eplb_traces import ExpertLoad, ModelShape, synthesize_trace, write_load, write_trace
from tests.cli.test_predicted import CONFIG

pytest.importorskip("pyarrow")  # a trace is written and read

ON = ("--ranks", 4, "--redundant", 4)
COMMANDS = {
    "plan": ("plan", "LOAD", *ON, "--strategy", "greedy"),
    "compare": ("compare", "LOAD", *ON, "--strategies", "linear,greedy,round_robin,scenario"),
    "compare steps": ("compare", "LOAD", *ON, "--strategies", "greedy", "--calibration", "h200", "--model", "CONFIG"),
    "compare engines": ("compare", "LOAD", *ON, "--engine", "all"),
    "evaluate": ("evaluate", "PLAN", "TRACE", "--trace", "TRACE", "--traffic", "--hidden-size", 64),
    "sweep": ("sweep", "LOAD", "--ranks", 4, "--redundant", "0:8:4"),
    "backtest": ("backtest", "LOAD", *ON),
    "simulate": ("simulate", "LOAD", *ON, "--interval", 2, "--policy", "never,incremental"),
    "advise": ("advise", "LOAD", "--model", "CONFIG", "--gpu", "h200", "--nodes", "1:2", "--gpus-per-node", 2, "--all"),
    "diff": ("diff", "PLAN", "PLAN"),
    "trace info": ("trace", "info", "TRACE", "--ranks", "4,8"),
    "formats": ("formats",),
    "strategies": ("strategies",),
    "dialects": ("trace", "dialects"),
    "env": ("env",),
}


@pytest.fixture
def files(run, tmp_path, counts):
    load, trace, plan = (tmp_path / name for name in ("load.npz", "trace.parquet", "plan.json"))
    write_load(ExpertLoad(np.stack([np.roll(counts, shift, axis=1) for shift in range(9)])), load)
    write_trace(synthesize_trace(shape=ModelShape(3, 16, 2), num_steps=4, tokens_per_step=64), trace)
    assert run("plan", load, *ON, "-o", plan).exit_code == 0
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return {"CONFIG": tmp_path / "config.json", "LOAD": load, "TRACE": trace, "PLAN": plan}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_word_of_every_table_is_whole_at_every_width(run, files, name, monkeypatch, capsys):
    shown = []
    for kind in ("table", "facts"):
        monkeypatch.setattr(output, kind, _recording(getattr(output, kind), shown))
    monkeypatch.setenv("COLUMNS", "200")
    result = run(*(files.get(word, word) for word in COMMANDS[name]))
    assert result.exit_code == 0, result.stderr
    assert shown
    wide = [_printed(call, 200, monkeypatch, capsys) for call in shown]
    for width in (120, 80, 60, 40):
        for call, expected in zip(shown, wide, strict=True):
            found = _printed(call, width, monkeypatch, capsys)
            assert set(found.split()) - _rules(found) == set(expected.split()) - _rules(expected)
    assert re.search(r"\d", "".join(wide)) or name in ("formats", "strategies", "dialects")


def test_a_number_that_is_cut_would_be_noticed(monkeypatch, capsys):
    call = (output.table, ("T", ("name", "ratio"), [("a", 3.321)]), {})
    whole = _printed(call, 60, monkeypatch, capsys)
    monkeypatch.setattr(table_layout, "blocks", lambda *_: [Block((0, 1), (4, 4))])
    assert set(whole.split()) - set(_printed(call, 60, monkeypatch, capsys).split()) >= {"3.3210"}


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_table_of_numbers_is_as_wide_as_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    output.table("T", ("name", *(f"column {i}" for i in range(12))), [("greedy", *(1.25 * i for i in range(12)))])
    lines = capsys.readouterr().out.splitlines()
    assert width - 12 < max(map(len, lines)) <= width
    assert sum(line.startswith("greedy") for line in lines) == sum(line.startswith("name") for line in lines) > 1


def test_the_legend_stands_below_its_table(capsys):
    output.table("T", ("name", "ratio"), [("a", 1.0)], legend="ratio: of two")
    assert capsys.readouterr().out.splitlines()[-4:] == ["a     1.0000", "", "ratio: of two", ""]


def test_a_row_is_named_again_in_every_block():
    rows = [["a", "1", "1000000", "1000000"]]
    found = blocks(("n", "k", "first", "second"), rows, (False, True, True, True), 2, 14)
    assert found == [Block((0, 1, 2), (1, 1, 7)), Block((0, 1, 3), (1, 1, 7))]


_WORDS = st.text("abc019.", min_size=1, max_size=12)
_CELLS = st.lists(_WORDS, min_size=1, max_size=5).map(" ".join)


@given(
    rows=st.integers(2, 6).flatmap(lambda n: st.lists(st.lists(_CELLS, min_size=n, max_size=n), min_size=1)),
    width=st.integers(1, 120),
)
def test_no_width_is_less_than_a_word(rows, width):
    numeric = [column % 2 == 1 for column in range(len(rows[0]))]
    headings = ["h"] * len(numeric)
    found = blocks(headings, rows, numeric, 1, width)
    assert [column for block in found for column in block.columns[1:]] == list(range(1, len(headings)))
    for block in found:
        for column, space in zip(block.columns, block.widths, strict=True):
            for row in rows:
                longest = len(row[column]) if numeric[column] else max(map(len, row[column].split()))
                assert space >= longest
        if sum(block.widths) + 2 * (len(block.widths) - 1) > width:
            assert len(block.columns) == 2


def _recording(shown, calls):
    def call(*arguments, **options):
        calls.append((shown, arguments, options))

    return call


def _printed(call, width, monkeypatch, capsys):
    function, arguments, options = call
    monkeypatch.setenv("COLUMNS", str(width))
    capsys.readouterr()
    function(*arguments, **options)
    return capsys.readouterr().out


def _rules(text):
    """The lines below headings."""
    return {word for word in text.split() if set(word) <= set("─-")}
