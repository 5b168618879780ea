"""What may be added to a LOAD, on every command, and several files as one load."""

import json

import numpy as np
import pytest

import eplb
from eplb.core.problem import Plan
from eplb.errors import FormatError
from eplb.formats import read_plan, write_plan
from eplb_cli.arguments.reading import Reading
from eplb_traces import READERS, ExpertLoad, ModelShape, read_load, read_trace, write_load, write_trace
from tests.traces.examples import small_trace

MACHINE = ("--ranks", 4, "--nodes", 2)
COMMANDS = {
    "plan": ("plan", "{load}", *MACHINE),
    "evaluate": ("evaluate", "{plan}", "{load}"),
    "compare": ("compare", "{load}", *MACHINE, "--strategies", "linear"),
    "backtest": ("backtest", "{load}", *MACHINE),
    "sweep": ("sweep", "{load}", *MACHINE, "--redundant", "0:4:4"),
    "simulate": ("simulate", "{load}", *MACHINE, "--interval", 4),
    "report": ("report", "{load}", *MACHINE, "-o", "{out}"),
    "trace info": ("trace", "info", "{load}"),
    "trace convert": ("trace", "convert", "{load}", "{out}.npz"),
    "trace merge": ("trace", "merge", "{load}", "{load}", "-o", "{out}.npz"),
}


@pytest.fixture
def on(run, load_path, plan_path, tmp_path):
    """Run a command of COMMANDS on the load with more words."""
    places = {"load": load_path, "plan": plan_path, "out": tmp_path / "out"}
    return lambda name, *more: run(*(str(word).format(**places) for word in COMMANDS[name]), *more)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_dialect_is_a_usage_error_on_every_command(on, name):
    result = on(name, "--from", "magic")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'magic': Expected one of parquet, npz" in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num-experts", 17), "num_experts = 17: the file has 16"),
        (("--moe-layers", "3-4"), "moe_layer_ids = 3-4, 2 layers: the file has 3"),
        (("--hidden-layers", 2), "num_hidden_layers = 2"),
        (("--ignore-ids", "15"), "ignore_ids (--ignore-ids) has no effect on this file"),
        (("--ignore-columns", "1"), "ignore_columns (--ignore-columns) has no effect on this file"),
        (("--recorded-under", "{plan}"), "recorded_under (--recorded-under) has no effect on this file"),
        (("--window", 2), "has no effect: the load has one window"),
    ],
    ids=str,
)
def test_what_the_user_says_is_checked_on_every_command(on, plan_path, name, words, message):
    result = on(name, *(str(word).format(plan=plan_path) for word in words))
    assert (result.exit_code, result.stdout) == (3, ""), result.stderr
    assert message in result.stderr


def test_what_is_said_is_used_and_shown(run, tmp_path, counts):
    path = tmp_path / "counts.npy"
    np.save(path, counts)
    words = ("--moe-layers", "3-4,6", "--hidden-layers", 7)
    out = tmp_path / "plan.json"
    result = run("plan", path, *MACHINE, *words, "--strategy", "greedy", "--format", "sglang", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("read as ")
    assert "3 layers (ids 3-4, 6 of 7 hidden layers), 16 experts" in result.stderr
    assert len(json.loads(out.read_text())["physical_to_logical_map"]) == 7
    found = json.loads(run("trace", "info", path, *words, "--json").stdout)
    assert found["moe_layer_ids"] == [3, 4, 6]
    assert "3 layers (ids 3-4, 6 of 7 hidden layers)" in found["read_as"][0]
    shown = run("trace", "info", path, *words).stdout
    assert "read as" in shown
    assert "3-4, 6\n" in shown


def test_sglang_files_ask_for_the_layers(run, load_path, tmp_path):
    for words in (
        ("plan", load_path, *MACHINE, "--format", "sglang", "-o", tmp_path / "a.json"),
        ("trace", "convert", load_path, tmp_path / "a.json"),
    ):
        result = run(*words)
        assert result.exit_code == 3
        assert "give moe_layer_ids (--moe-layers) and num_hidden_layers (--hidden-layers)" in result.stderr
        assert not (tmp_path / "a.json").exists()
        result = run(*words, "--moe-layers", "1-3")
        assert "give num_hidden_layers (--hidden-layers)" in result.stderr
        assert run(*words, "--moe-layers", "1-3", "--hidden-layers", 4).exit_code == 0
        (tmp_path / "a.json").unlink()


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_layer_ids_survive_convert(run, tmp_path, suffix):
    pytest.importorskip("pyarrow")
    shape = ModelShape(2, 4, moe_layer_ids=(3, 7), num_hidden_layers=9)
    write_load(ExpertLoad(np.ones((2, 4)), shape=shape), tmp_path / "a.json")
    first, second = tmp_path / f"b{suffix}", tmp_path / f"c{suffix}"
    words = ("--moe-layers", "3,7", "--hidden-layers", 9)
    assert run("trace", "convert", tmp_path / "a.json", first, *words).exit_code == 0
    assert run("trace", "convert", first, second).exit_code == 0
    assert read_load(second).shape == shape


@pytest.fixture
def ranks(tmp_path, counts):
    """Four files, each with the tokens of one rank's experts."""
    paths = []
    for rank in range(4):
        own = np.arange(16) // 4 == rank
        paths.append(tmp_path / f"rank{rank}.npz")
        write_load(ExpertLoad(np.where(own, counts, 0)), paths[-1])
    return paths


def test_files_of_ranks_are_summed(run, ranks, load_path, tmp_path):
    out = tmp_path / "all.npz"
    assert run("trace", "merge", *ranks, "-o", out, "--combine", "sum").exit_code == 0
    np.testing.assert_array_equal(read_load(out).tokens, read_load(load_path).tokens)
    words = (*MACHINE, "--redundant", 4, "--strategy", "greedy", "--json")
    whole = json.loads(run("plan", load_path, *words).stdout)
    summed = json.loads(run("plan", *ranks, *words, "--combine", "sum").stdout)
    assert summed["max_over_mean_mean"] == whole["max_over_mean_mean"]
    assert summed["num_windows"] == 1
    side_by_side = json.loads(run("plan", *ranks, *words).stdout)
    assert (side_by_side["num_windows"], side_by_side["notes"][0][:13]) == (4, "several loads")


def test_evaluate_sweep_and_report_take_several_files(run, ranks, plan_path, tmp_path):
    found = json.loads(run("evaluate", plan_path, *ranks, "--json").stdout)
    assert [of["window"] for of in found["windows"]] == ["rank0", "rank1", "rank2", "rank3"]
    assert run("sweep", *ranks, *MACHINE, "--redundant", "0:4:4", "--combine", "sum").exit_code == 0
    shown = run("trace", "info", *ranks, "--combine", "sum").stdout
    assert str(ranks[3]) in shown.splitlines()[0]


def test_time_makes_a_history(run, load_path):
    result = run("backtest", *[load_path] * 8, *MACHINE, "--combine", "time", "--json")
    assert result.exit_code == 0, result.stderr
    assert "a history of 2 windows" in run("backtest", load_path, load_path, *MACHINE, "--combine", "time").stderr


def test_layers_are_put_together_by_their_ids(run, tmp_path):
    for name, ids in (("base", (3, 4)), ("mtp", (61,))):
        shape = ModelShape(len(ids), 4, moe_layer_ids=ids)
        write_load(ExpertLoad(np.ones((len(ids), 4)), shape=shape), tmp_path / f"{name}.npz")
    paths, out = (tmp_path / "mtp.npz", tmp_path / "base.npz"), tmp_path / "all.npz"
    assert run("trace", "merge", *paths, "-o", out, "--combine", "layers").exit_code == 0
    assert read_load(out).shape.moe_layer_ids == (3, 4, 61)
    result = run("trace", "merge", *paths, "-o", out)
    assert "base.npz: layers = 2, and 1 in mtp.npz" in result.stderr


def test_traces_are_merged_as_traces_or_counted_on_demand(run, tmp_path):
    pytest.importorskip("pyarrow")
    path, out = tmp_path / "a.parquet", tmp_path / "all.parquet"
    write_trace(small_trace(), path)
    assert run("trace", "merge", path, path, "-o", out, "--combine", "time").exit_code == 0
    assert read_trace(out).num_tokens == 2 * small_trace().num_tokens
    result = run("trace", "merge", path, path, "-o", out)
    assert result.exit_code == 3
    assert "give --combine time or sum to keep every token, or --as-load" in result.stderr
    assert run("trace", "merge", path, path, "-o", out, "--load").exit_code == 0
    assert read_load(out).num_windows == 2


def test_a_file_that_is_named_twice_is_not_added_to_itself(run, load_path):
    again = load_path.parent / "." / f"../{load_path.parent.name}/{load_path.name}"
    result = run("plan", load_path, again, *MACHINE, "--combine", "sum")
    assert result.exit_code == 3
    assert "is named twice, also as" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "{load}", *MACHINE, "--combine", "sum"), "has no effect on a single file"),
        (("plan", "{load}", "{load}", *MACHINE, "--combine", "magic"), "workloads, sum, time, layers"),
        (("trace", "merge", "{load}", "-o", "x.npz"), "expected at least two files"),
        (("trace", "convert", "{load}", "x.npz", "--combine", "sum"), "see eplb trace merge"),
    ],
    ids=str,
)
def test_combine_that_has_no_meaning_is_a_usage_error(run, load_path, words, message):
    result = run(*(str(word).format(load=load_path) for word in words))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("name", "file", "has_ranks"), [("native", "a.json", True), ("vllm", "b.json", True), ("sglang", "c.json", False)]
)
def test_the_placement_in_force_is_read_from_a_file_of_any_format(tmp_path, name, file, has_ranks):
    rows = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]]
    shape = ModelShape(2, 4, moe_layer_ids=(1, 2), num_hidden_layers=3)
    plan = Plan(eplb.Placement(rows, 4, eplb.Topology(1, 2, 3)), shape, "greedy")
    write_plan(plan, tmp_path / file, name)
    (tmp_path / f"{file}.eplb.json").unlink(missing_ok=True)
    said = Reading(num_experts=4, moe_layers="1-2", hidden_layers=3, recorded_under=tmp_path / file)
    assert said.options().recorded_under.tolist() == rows
    if not has_ranks:
        with pytest.raises(FormatError, match="give --ranks"):
            eplb.read_placement(tmp_path / file)
    (tmp_path / file).write_text("{}")
    with pytest.raises(FormatError, match=file):
        said.options()


def test_the_dialects_are_listed(run):
    found = json.loads(run("trace", "dialects", "--json").stdout)
    assert list(found) == list(READERS)
    assert found["sglang"]["recognised_by"] == READERS["sglang"].RECOGNISED_BY
    shown = run("trace", "dialects").stdout
    for name, dialect in READERS.items():
        assert f"\n{name} (" in f"\n{shown}"
        assert " ".join(dialect.REFUSES.split()) in " ".join(shown.split())


def test_empty_windows_are_named_with_what_each_engine_makes_of_them(run, plan_path, counts, tmp_path):
    tokens = np.zeros((10, *counts.shape))
    tokens[4] = counts
    path = tmp_path / "idle.npz"
    write_load(ExpertLoad(tokens), path)
    found = json.loads(run("evaluate", plan_path, path, "--json").stdout)
    assert (found["num_empty_windows"], found["num_empty_layers"]) == (9, 0)
    assert found["windows"][0]["max_over_mean_mean"] is None
    assert found["windows"][4]["max_over_mean_mean"] == found["max_over_mean_mean"] > 1
    shown = run("evaluate", plan_path, path).stdout
    assert "9 / 0" in shown
    assert "in the metric of vLLM they count" in shown
    assert run("plan", path, *MACHINE).exit_code == 0
    assert run("trace", "info", path, "--json").exit_code == 0


@pytest.fixture
def token_records(tmp_path):
    """A trace of 4 experts whose last column is a shared expert of id 4, and the same trace without it."""
    rng = np.random.default_rng(0)
    plain = np.stack([[rng.permutation(4)[:2] for _ in range(2)] for _ in range(9)])
    shared = np.concatenate([plain, np.full((9, 2, 1), 4)], axis=2)
    paths = tmp_path / "plain.npz", tmp_path / "shared.npz"
    for path, ids in zip(paths, (plain, shared), strict=True):
        np.savez(path, routed_experts=ids.astype(np.int32))
    return paths


@pytest.mark.parametrize("words", [("--ignore-ids", "4"), ("--ignore-columns", "2")], ids=str)
def test_evaluate_leaves_the_same_experts_out_of_load_and_trace(run, tmp_path, token_records, words):
    plain, shared = token_records
    plan, model = tmp_path / "plan.json", ("--num-experts", 4, "--moe-layers", "0,1")
    assert run("plan", plain, "--ranks", 2, *model, "-o", plan).exit_code == 0
    expected = run("evaluate", plan, plain, "--trace", plain, *model, "--json")
    found = run("evaluate", plan, shared, "--trace", shared, *model, *words, "--json")
    assert (found.exit_code, expected.exit_code) == (0, 0), found.stderr + expected.stderr
    assert json.loads(found.stdout) == json.loads(expected.stdout)
    refused = run("evaluate", plan, shared, "--trace", plain, *model, *words)
    assert refused.exit_code != 0
    assert words[0] in refused.stderr


def test_evaluate_refuses_columns_that_are_experts_of_load_and_choices_of_trace(run, tmp_path, token_records):
    plain, shared = token_records
    counts, plan = tmp_path / "counts.npy", tmp_path / "plan.json"
    np.save(counts, np.arange(1, 11).reshape(2, 5))
    model = ("--num-experts", 4, "--moe-layers", "0,1")
    assert run("plan", plain, "--ranks", 2, *model, "-o", plan).exit_code == 0
    refused = run("evaluate", plan, counts, "--trace", shared, *model, "--ignore-columns", "4")
    assert refused.exit_code == 2
    assert "choices out of TRACE" in " ".join(refused.stderr.replace("│", "").split())


RECORDED_PLAN = np.array([[0, 1, 2, 3, 0, 3], [3, 2, 1, 0, 1, 2]])
SLOT_COUNTS = np.array([[50, 10, 20, 30, 45, 25], [5, 40, 60, 10, 50, 45]])
LOGICAL = np.array([[95, 10, 20, 55], [10, 110, 85, 5]])  # by hand: the counts of each expert's slots, added


def test_a_dump_of_slots_ends_in_the_plan_for_its_experts(run, tmp_path):
    dump, pattern, logical = tmp_path / "dump.npy", tmp_path / "pattern.json", tmp_path / "logical.npy"
    np.save(dump, SLOT_COUNTS)
    np.save(logical, LOGICAL)
    write_plan(Plan(eplb.Placement(RECORDED_PLAN, 4, eplb.Topology(2, 1, 3)), ModelShape(2, 4), "greedy"), pattern)
    words = ("--recorded-under", pattern, "--num-experts", 4)
    refused = run("plan", dump, "--ranks", 2, "--num-experts", 4)
    assert (refused.exit_code, "--recorded-under" in refused.stderr) == (3, True)

    plans = tmp_path / "a.json", tmp_path / "b.json"
    for path, source, more in ((plans[0], dump, words), (plans[1], logical, ())):
        result = run("plan", source, "--ranks", 2, "--redundant", 2, *more, "-o", path)
        assert result.exit_code == 0, result.stderr
    placed = [read_plan(path).placement for path in plans]
    assert placed[0] == placed[1]
    rows = np.array(placed[0].physical_to_logical_map)
    share = np.take_along_axis(LOGICAL / np.stack([np.bincount(row, minlength=4) for row in rows]), rows, axis=1)
    ranks = share.reshape(2, 2, 3).sum(axis=2)
    assert (ranks.max(axis=1) < [100, 112]).all()  # close to 90 and 105, the means

    judged = [run("evaluate", plans[0], source, *more, "--json") for source, more in ((dump, words), (logical, ()))]
    assert json.loads(judged[0].stdout) == json.loads(judged[1].stdout)
    converted = tmp_path / "load.npz"
    assert run("trace", "convert", dump, converted, *words).exit_code == 0
    np.testing.assert_array_equal(read_load(converted).total, LOGICAL)

    pytest.importorskip("matplotlib")
    folders = tmp_path / "of_dump", tmp_path / "of_logical"
    for folder, source, more in ((folders[0], dump, words), (folders[1], logical, ())):
        assert run("report", source, "--ranks", 2, "--redundant", 2, *more, "-o", folder).exit_code == 0
    tables = [sorted(folder.rglob("*.csv")) for folder in folders]
    assert tables[0]
    assert [path.read_text() for path in tables[0]] == [path.read_text() for path in tables[1]]


def test_a_shipped_trace_is_read_by_its_name(run):
    found = run("trace", "info", "sample:moe-435m-windows")
    assert found.exit_code == 0, found.stderr
    assert found.stdout.startswith("sample:moe-435m-windows\n")
    refused = run("trace", "info", "sample:nix")
    assert (refused.exit_code, refused.stderr.count("sample:moe-435m")) == (3, 2)


def test_a_trace_is_cut_into_windows_unless_the_user_says_otherwise(run):
    pytest.importorskip("pyarrow")
    words = ("compare", "sample:moe-435m", "--ranks", 32, "--redundant", 32, "--strategies", "greedy", "--json")
    cut, whole, long = (run(*words, *more) for more in ((), ("--window", "sum"), ("--window", 8)))
    windows = [json.loads(one.stdout)["strategies"][0]["num_windows"] for one in (cut, whole, long)]
    assert windows == [40, 1, 5]
    assert "cut into 40 windows; --window sum: one window" in cut.stderr
    assert "windows" not in whole.stderr + long.stderr
    wrong = run(*words, "--window", "day")
    assert (wrong.exit_code, "'day': expected a number of steps, or sum" in " ".join(wrong.stderr.split())) == (2, True)


def test_a_load_of_one_window_cannot_be_summed(run, tmp_path):
    path = tmp_path / "load.npz"
    write_load(ExpertLoad([[1.0, 2.0, 3.0, 4.0]]), path)
    result = run("compare", path, "--ranks", 2, "--window", "sum")
    assert (result.exit_code, "window = sum (--window) has no effect" in result.stderr) == (3, True)


def test_a_history_is_summed_into_one_window(run):
    found = json.loads(
        run(
            "sweep", "sample:moe-435m-windows", "--ranks", 32, "--redundant", "32:32:32", "--window", "sum", "--json"
        ).stdout
    )
    load = eplb.read_load("sample:moe-435m-windows")
    (point,) = eplb.sweep(load.merged(load.num_windows), 32, 1, [32])
    assert found["points"][0]["max_over_mean_mean"] == point.max_over_mean_mean
    assert "bytes_per_rank" not in found["points"][0]
