"""Results for programs: `--json` on every command, `--csv` for every table, alone on stdout."""

import csv
import io
import json

import numpy as np
import pytest
import typer.main

from eplb_cli.main import app
from eplb_cli.views.csv_rows import csv_text
from eplb_traces import ExpertLoad, ModelShape, synthesize_trace, write_load, write_trace
from tests.cli.test_predicted import CONFIG

pytest.importorskip("pyarrow")  # a trace is written and read

ON = ("--ranks", 4, "--redundant", 4)
TABLES = {
    "compare": (("compare", "LOAD", *ON, "--strategies", "linear,greedy"), "strategies"),
    "compare engines": (("compare", "LOAD", *ON, "--engine", "all"), "engines"),
    "sweep": (("sweep", "LOAD", "--ranks", 4, "--redundant", "0:8:4"), "points"),
    "backtest": (("backtest", "LOAD", *ON, "--strategies", "linear,greedy"), "candidates"),
    "simulate": (("simulate", "LOAD", *ON, "--interval", 2, "--policy", "never,full"), "policies"),
    "advise": (("advise", "LOAD", "--model", "CONFIG", "--gpu", "h200", "--nodes", "1", "--gpus-per-node", 2),
               "deployments"),
    "evaluate": (("evaluate", "PLAN", "LOAD"), "layers"),
    "diff": (("diff", "LINEAR", "PLAN"), "layers"),
    "trace info": (("trace", "info", "TRACE"), "by_layer"),
}  # fmt: skip
TIMES = {"seconds", "plan_s"}


@pytest.fixture
def files(run, tmp_path, counts):
    names = {"LOAD": "load.npz", "TRACE": "trace.parquet", "PLAN": "plan.json", "LINEAR": "linear.json"}
    paths = {name: tmp_path / file for name, file in names.items()}
    write_load(ExpertLoad(np.stack([np.roll(counts, shift, axis=1) for shift in range(9)])), paths["LOAD"])
    write_trace(synthesize_trace(shape=ModelShape(3, 16, 2), num_steps=4, tokens_per_step=64), paths["TRACE"])
    assert run("plan", paths["LOAD"], *ON, "-s", "greedy", "-o", paths["PLAN"]).exit_code == 0
    assert run("plan", paths["LOAD"], *ON, "-s", "linear", "-o", paths["LINEAR"]).exit_code == 0
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return {**paths, "CONFIG": tmp_path / "config.json", "OUT": tmp_path / "out.npz"}


def _nested(value):
    return value.items() if isinstance(value, dict) else ()


def _run(run, files, words, *more):
    result = run(*(files.get(word, word) for word in words), *more)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", TABLES)
def test_csv_has_the_rows_and_all_digits_of_json(run, files, name):
    words, key = TABLES[name]
    rows = list(csv.DictReader(io.StringIO(_run(run, files, words, "--csv"))))
    expected = json.loads(_run(run, files, words, "--json"))[key]
    assert len(rows) == len(expected) > 0
    for row, fields in zip(rows, expected, strict=True):
        flat = {f"{name}.{of}": value for name in fields for of, value in _nested(fields[name])} | fields
        numbers = {field: value for field, value in flat.items() if isinstance(value, int | float)}
        assert numbers
        for field in set(numbers) - TIMES:
            assert float({"true": 1, "false": 0}.get(row[field], row[field])) == numbers[field]


@pytest.mark.parametrize("words", [("formats",), ("strategies",), ("trace", "dialects")])
def test_a_list_of_names_as_csv(run, words):
    names = [row["name"] for row in csv.DictReader(io.StringIO(run(*words, "--csv").stdout))]
    assert names == list(json.loads(run(*words, "--json").stdout))


def test_one_form_at_a_time(run):
    for words in (("--csv", "--json"), ("--json", "--csv")):
        result = run("formats", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "cannot be given with" in result.stderr


def test_every_command_has_json():
    assert [name for name, command in _commands(typer.main.get_command(app)) if "--json" not in _words(command)] == []


def _commands(group, path=""):
    for name, command in group.commands.items():
        yield from _commands(command, f"{name} ") if hasattr(command, "commands") else [(path + name, command)]


def _words(command):
    return {word for param in command.params for word in param.opts}


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("trace", "convert", "TRACE", "OUT"), "load"),
        (("trace", "merge", "TRACE", "TRACE", "-o", "OUT"), "load"),
        (("trace", "synth", "OUT", "--tokens", 4, "--windows", 1), "load"),
    ],
)
def test_what_was_written_as_json(run, files, words, kind):
    written = json.loads(_run(run, files, words, "--json"))["written"]
    assert written == {"path": str(files["OUT"]), "kind": kind}
    assert files["OUT"].exists()


def test_a_converted_plan_as_json(run, files, tmp_path):
    out = tmp_path / "plan.npz"
    found = json.loads(_run(run, files, ("convert", "PLAN", out, "--to", "deepseek", "--json")))
    assert "rebalance_experts" in found["written"].pop("server_flags")
    assert found == {"written": {"path": str(out), "format": "deepseek"}, "notes": []}


def test_several_files_are_checked_and_named(run, files, tmp_path):
    paths = [tmp_path / f"{name}.ascend.json" for name in ("a", "b")]
    for path in paths:
        _run(run, files, ("convert", "PLAN", path, "--to", "ascend"))
    lines = _run(run, files, ("check", *paths, "--engine", "ascend", "--ranks", 4)).splitlines()
    assert [line.split(": ascend would load it")[0] for line in lines if "would load it" in line] == list(
        map(str, paths)
    )
    found = json.loads(_run(run, files, ("check", *paths, "--engine", "ascend", "--ranks", 4, "--json")))["files"]
    assert [(of["path"], of["num_slots"]) for of in found] == [(str(path), 20) for path in paths]


def test_cells_that_a_spreadsheet_would_execute_are_quoted():
    rows = [{"name": "=1+1", "value": -1.5, "flag": True, "none": None, "of": {"x": "@a", "y": 1}, "list": [1, 2]}]
    assert csv_text(rows) == "name,value,flag,none,of.x,of.y\n'=1+1,-1.5,true,,'@a,1\n"


def test_rows_with_different_fields_share_the_heading():
    assert csv_text([{"a": 1}, {"b": ["x", "y, z"]}]) == 'a,b\n1,\n,"x; y, z"\n'
