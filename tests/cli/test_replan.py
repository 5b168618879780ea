"""`eplb plan --previous` and `eplb diff`: what moves, shown and written."""

import json
import re

import numpy as np
import pytest

import eplb
import eplb_traces
from eplb.core.expert_bytes import DEEPSEEK_V3_EXPERT_BYTES
from eplb.core.migration import Migration
from eplb.core.topology_change import TopologyChange, kept_ranks
from eplb.formats import FORMATS, read_plan
from eplb.planning.rebalance import rebalance
from eplb.planning.replan_on import replan_on
from eplb.planning.replan_without_ranks import replan_without

SUMMARY = {"moved_copies", "moved_fraction", "moved_between_nodes", "num_batches"}


@pytest.fixture
def later_path(tmp_path, counts):
    """The same experts, but in another order of heat: the live plan is far from its target."""
    path = tmp_path / "later.npz"
    eplb_traces.write_load(eplb_traces.ExpertLoad(np.roll(counts, 5, axis=1)), path)
    return path


def _json(result):
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_a_replan_writes_what_the_library_finds_and_says_what_moves(run, plan_path, later_path, tmp_path):
    out = tmp_path / "new.json"
    words = ("--previous", plan_path, "--target", 1.1, "--expert-bytes", 1000, "-o", out, "--json")
    found = _json(run("plan", later_path, *words))
    before = read_plan(plan_path).placement
    expected = rebalance(before, eplb.read_load(later_path), target=1.1, expert_bytes=1000)
    assert read_plan(out).placement == expected.placement
    assert expected.migration.moved_copies > 0
    assert {name: found[name] for name in SUMMARY} == {name: expected.migration.summary()[name] for name in SUMMARY}
    assert found["moved_bytes"] == 1000 * found["moved_copies"]
    assert found["strategy"] == "incremental"
    text = run("plan", later_path, *words[:-1]).stdout
    assert re.search(rf"^replicas moved to another rank +{found['moved_copies']} \(", text, re.MULTILINE)
    assert "note: incremental: " in text


def test_an_unchanged_load_moves_nothing(run, plan_path, load_path):
    assert _json(run("plan", load_path, "--previous", plan_path, "--target", 1.5, "--json"))["moved_copies"] == 0


def test_moves_stay_within_the_budget(run, plan_path, later_path):
    free = _json(run("plan", later_path, "--previous", plan_path, "--target", 1.01, "--json"))["moved_copies"]
    words = ("--previous", plan_path, "--target", 1.01, "--max-moves", 2, "--json")
    assert 0 < _json(run("plan", later_path, *words))["moved_copies"] <= 2 < free


def test_the_live_placement_may_be_an_engines_file(run, plan_path, later_path, tmp_path):
    bare = tmp_path / "map.json"
    bare.write_text(json.dumps(read_plan(plan_path).placement.physical_to_logical_map.tolist()))
    native = _json(run("plan", later_path, "--previous", plan_path, "--json"))
    found = _json(run("plan", later_path, "--previous", bare, "--ranks", 4, "--nodes", 2, "--json"))
    assert {name: found[name] for name in SUMMARY} == {name: native[name] for name in SUMMARY}
    silent = run("plan", later_path, "--previous", bare)
    assert silent.exit_code == 3
    assert "--ranks" in silent.stderr


@pytest.mark.parametrize(
    "words",
    [
        *[("--strategy", "greedy"), ("--groups", 2), ("--group-mode", "free")],
        *[("--keep-rank-ids",), ("--keep-rank-ids", "--slots", 5, "--lost-ranks", 1), ("--redundant", 1)],
        *[("--rank-map", "0-1:0"), ("--rank-map", "0"), ("--previous-nodes", "x")],
    ],
    ids=str,
)
def test_what_a_replan_would_ignore_is_refused(run, plan_path, later_path, words):
    result = run("plan", later_path, "--previous", plan_path, *words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert words[0] in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        *[("--target", 1.05), ("--max-moves", 3), ("--expert-bytes", 5), ("--lost-ranks", 1), ("--slots", 5)],
        *[("--retire-ranks", 1), ("--rank-map", "0:0"), ("--previous-ranks", 4), ("--previous-nodes", 2)],
        ("--keep-rank-ids",),
    ],
    ids=str,
)
def test_words_of_a_replan_without_a_live_placement_are_refused(run, load_path, words):
    result = run("plan", load_path, "--ranks", 4, *words)
    assert result.exit_code == 2
    assert words[0] in result.stderr


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--target", 0.5), "target = 0.5"),
        (("--max-moves", -1), "max_moves = -1"),
        (("--expert-bytes", 0), "expert_bytes = 0"),
        (("--ranks", 5), "nodes: expected with 5 ranks, as nodes = 2 of 4 do not tell"),
        (("--nodes", 3), "ranks = 4: expected a multiple of nodes = 3"),
        (("--previous-ranks", 5), "ranks = 4, but 5"),
        (("--previous-nodes", 4), "nodes = 2, but 4"),
        (("--rank-map", "0:0,0:1"), "old rank 0: named 2 times"),
        (("--rank-map", "0:4"), "new rank 4: expected an id of 0-3"),
        (("--retire-ranks", "4"), "leaving rank 4"),
        (("--lost-ranks", "4"), "lost rank 4"),
        (("--lost-ranks", "1,1"), "lost rank 1: named 2 times"),
    ],
    ids=str,
)
def test_a_replan_that_cannot_be_is_bad_input(run, plan_path, later_path, words, fragment):
    result = run("plan", later_path, "--previous", plan_path, *words)
    assert (result.exit_code, result.stdout) == (3, "")
    assert fragment in result.stderr


def test_a_replan_for_another_model_is_bad_input(run, plan_path, tmp_path):
    eplb_traces.write_load(eplb_traces.ExpertLoad(np.ones((3, 8))), tmp_path / "other.npz")
    result = run("plan", tmp_path / "other.npz", "--previous", plan_path)
    assert result.exit_code == 3
    assert "3 layers x 16 experts" in result.stderr


def test_a_plan_goes_on_without_lost_ranks(run, plan_path, load_path, tmp_path):
    words = ("--ranks", 4, "--nodes", 2, "--redundant", 8, "-o", plan_path)  # 24 slots; 18 are left
    assert run("plan", load_path, *words).exit_code == 0
    out = tmp_path / "left.json"
    words = ("--previous", plan_path, "--lost-ranks", "2", "--target", 1.2, "-o", out)
    found = _json(run("plan", load_path, *words, "--json"))
    expected = replan_without(read_plan(plan_path).placement, eplb.read_load(load_path), [2], target=1.2)
    assert read_plan(out).placement == expected.placement
    assert read_plan(out).placement.topology.num_ranks == 3
    assert found["moved_copies"] == expected.migration.moved_copies
    assert any(note.startswith("without ranks [2]") for note in found["notes"])


def test_losing_too_many_ranks_has_its_own_exit_code(run, plan_path, load_path):
    result = run("plan", load_path, "--previous", plan_path, "--lost-ranks", "0-1")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "2 ranks are left with 10 slots" in result.stderr
    assert run("plan", load_path, "--previous", plan_path, "--lost-ranks", "x").exit_code == 2


def test_a_plan_is_changed_to_other_ranks_and_slots(run, plan_path, load_path, tmp_path):
    out = tmp_path / "new.json"
    words = ("plan", load_path, "--previous", plan_path, "-o", out, "--json")
    live, load = read_plan(plan_path).placement, eplb.read_load(load_path)
    for options, after in (
        (("--ranks", 6), eplb.Topology(3, 2, 5)),
        (("--ranks", 6, "--nodes", "4,2", "--slots", 4), eplb.Topology(2, (4, 2), 4)),
        (("--nodes", "3,2"), eplb.Topology(2, (3, 2), 5)),
        (("--redundant", 8), eplb.Topology(2, 2, 6)),
        (("--ranks", 3, "--nodes", "2,1", "--redundant", 2), eplb.Topology(2, (2, 1), 6)),
    ):
        _json(run(*words, *options))
        change = TopologyChange(live.topology, after, kept_ranks(live.topology, after))
        assert read_plan(out).placement == replan_on(live, load, change).placement, options
    found = _json(run(*words, "--retire-ranks", "1", "--slots", 6))
    assert read_plan(out).placement.topology == eplb.Topology(2, (1, 2), 6)
    assert {"ranks, old -> new: 0 -> 0, 2-3 -> 1-2", "retiring ranks: 1"} <= set(found["notes"])
    assert "3 ranks of 2 nodes (1, 2)" in run(*words[:-1], "--retire-ranks", "1", "--slots", 6).stdout
    found = _json(run(*words, "--ranks", 4, "--rank-map", "0:3,3:0"))
    assert {"ranks, old -> new: 0 -> 3, 3 -> 0", "retiring ranks: 1-2"} <= set(found["notes"])


def test_a_map_without_a_record_needs_its_own_ranks_beside_the_new_ones(run, plan_path, load_path, tmp_path):
    bare, out = tmp_path / "map.json", tmp_path / "new.json"
    bare.write_text(json.dumps(read_plan(plan_path).placement.physical_to_logical_map.tolist()))
    new = ("--ranks", 6, "--nodes", 3, "-o", out)
    assert run("plan", load_path, "--previous", plan_path, *new).exit_code == 0
    expected = read_plan(out).placement
    words = ("--previous", bare, "--previous-ranks", 4, "--previous-nodes", 2)
    assert run("plan", load_path, *words, *new).exit_code == 0
    assert read_plan(out).placement == expected
    assert "20 slots" in run("plan", load_path, "--previous", bare, *new).stderr  # taken as ranks of the map: no


def test_lost_ranks_keep_their_ids_and_columns_and_come_back(run, plan_path, counts, tmp_path):
    load_path = tmp_path / "numbered.npz"
    shape = eplb.ModelShape(3, 16, moe_layer_ids=(0, 1, 2), num_hidden_layers=3)
    eplb_traces.write_load(eplb_traces.ExpertLoad(counts, shape=shape), load_path)
    words = ("--ranks", 4, "--nodes", 2, "--redundant", 8, "-o", plan_path)
    assert run("plan", load_path, *words).exit_code == 0
    left, out = tmp_path / "left.json", tmp_path / "out.json"
    lose = ("plan", load_path, "--previous", plan_path, "--lost-ranks", "1", "--keep-rank-ids")
    text = run(*lose, "-f", "sglang", "-o", left).stdout
    assert "--ep-size 4 --ep-num-redundant-experts 8" in text
    renumbered = replan_without(read_plan(plan_path).placement, eplb.read_load(load_path), [1])
    rows = np.array(json.loads(left.read_text())["physical_to_logical_map"]).reshape(3, 4, 6)
    assert (rows[:, 1] == 0).all()
    assert (rows[:, [0, 2, 3]].reshape(3, -1) == renumbered.placement.physical_to_logical_map).all()
    kept = read_plan(left)
    assert kept.placement == renumbered.placement
    assert (kept.absent_ranks, kept.rank_ids) == ((1,), (0, 2, 3))
    assert any(note.startswith("lost ranks [1] keep their ids") for note in kept.notes)
    native = tmp_path / "native.json"
    assert run(*lose, "-o", native).exit_code == 0
    assert read_plan(native) == kept
    for name in ("vllm", "ascend", "trtllm", "omni", "deepseek"):
        result = run(*lose, "-f", name, "-o", tmp_path / f"x{FORMATS[name].suffixes[0]}")
        assert result.exit_code == 3
        assert f"ranks [1] are lost and keep their ids: the {name} format has no columns" in result.stderr
    again = run("plan", load_path, "--previous", left, "--lost-ranks", "1")
    assert (again.exit_code, "lost rank 1: expected an id of 0, 2-3" in again.stderr) == (3, True)
    assert run("plan", load_path, "--previous", left, "-o", out).exit_code == 0
    assert read_plan(out).absent_ranks == (1,)
    found = _json(run("plan", load_path, "--previous", left, "--ranks", 4, "--nodes", 2, "-o", out, "--json"))
    assert {"ranks, old -> new: 0 -> 0, 1-2 -> 2-3", "added ranks: 1"} <= set(found["notes"])
    assert found["moved_copies"] <= 3 * 6 + 3
    assert read_plan(out).absent_ranks == ()
    back = _json(run("diff", left, out, "--json"))
    assert back["moved_copies"] == found["moved_copies"]


@pytest.fixture
def new_path(run, plan_path, later_path, tmp_path):
    path = tmp_path / "new.json"
    assert run("plan", later_path, "--previous", plan_path, "-o", path).exit_code == 0
    return path


def test_diff_says_what_the_library_says(run, plan_path, new_path):
    before, after = (read_plan(path).placement for path in (plan_path, new_path))
    migration = Migration.between(before, after, DEEPSEEK_V3_EXPERT_BYTES)
    found = _json(run("diff", plan_path, new_path, "--expert-bytes", DEEPSEEK_V3_EXPERT_BYTES, "--json"))
    assert {name: found[name] for name in migration.summary()} == migration.summary()
    unknown = _json(run("diff", plan_path, new_path, "--json"))
    assert {name: unknown[name] for name in found if name not in ("moved_bytes", "transfer_s", "layers")} == {
        name: value for name, value in found.items() if name not in ("moved_bytes", "transfer_s", "layers")
    }
    assert not {*unknown, *unknown["layers"][0]} & {"moved_bytes", "transfer_s"}
    by_layer = {of["layer"]: of["moved_copies"] for of in found["layers"]}
    moved = migration.moved_copies_by_layer
    assert by_layer == {layer: moved[layer] for layer in np.nonzero(moved)[0]}
    shown = run("diff", plan_path, new_path).stdout
    assert f"{migration.moved_copies} ({100 * migration.moved_fraction:.2f} % of the slots)" in shown
    assert "Layers that move" in shown


def test_diff_of_equal_plans_moves_nothing_and_shows_no_layers(run, plan_path):
    assert _json(run("diff", plan_path, plan_path, "--json"))["moved_copies"] == 0
    assert "Layers that move" not in run("diff", plan_path, plan_path).stdout


def test_diff_reads_engines_files_beside_ours_whichever_is_the_older(run, plan_path, new_path, tmp_path):
    for name in ("old", "new"):
        source = plan_path if name == "old" else new_path
        bare = tmp_path / f"{name}-map.json"
        bare.write_text(json.dumps(read_plan(source).placement.physical_to_logical_map.tolist()))
    expected = _json(run("diff", plan_path, new_path, "--json"))
    assert _json(run("diff", plan_path, tmp_path / "new-map.json", "--json")) == expected
    assert _json(run("diff", tmp_path / "old-map.json", new_path, "--json")) == expected
    bare = (tmp_path / "old-map.json", tmp_path / "new-map.json")
    assert _json(run("diff", *bare, "--ranks", 4, "--nodes", 2, "--json")) == expected
    silent = run("diff", *bare)
    assert silent.exit_code == 3
    assert "--ranks" in silent.stderr


def test_diff_shows_both_topologies_and_what_moves_between_them(run, plan_path, load_path, tmp_path):
    out = tmp_path / "grown.json"
    made = _json(run("plan", load_path, "--previous", plan_path, "--ranks", 6, "--nodes", 2, "-o", out, "--json"))
    shown = run("diff", plan_path, out).stdout
    assert re.search("^from +4 ranks of 2 nodes, 5 slots a rank$", shown, re.MULTILINE)
    assert re.search("^to +6 ranks of 2 nodes, 5 slots a rank$", shown, re.MULTILINE)
    assert "note: ranks, old -> new: 0-1 -> 0-1, 2-3 -> 3-4" in shown
    assert "note: added ranks: 2, 5" in shown
    found = _json(run("diff", plan_path, out, "--json"))
    assert found["moved_copies"] == made["moved_copies"] > 0
    assert found["old"]["ranks_by_node"] == [2, 2]
    assert found["new"] == {"num_ranks": 6, "ranks_by_node": [3, 3], "slots_by_rank": [5] * 6}
    by_ids = _json(run("diff", plan_path, out, "--rank-map", "0-3:0-3", "--json"))
    assert by_ids["moved_copies"] > found["moved_copies"]
    back = _json(run("diff", out, plan_path, "--json"))
    assert back["loaded_experts"] == 0
    lost = _json(run("diff", out, plan_path, "--lost-ranks", "2,5", "--json"))
    assert lost["moved_copies"] + lost["loaded_experts"] == back["moved_copies"]


def test_diff_refuses_other_models(run, plan_path, tmp_path):
    other = tmp_path / "other.json"
    eplb_traces.write_load(eplb_traces.ExpertLoad(np.ones((2, 16))), tmp_path / "model.npz")
    assert run("plan", tmp_path / "model.npz", "--ranks", 4, "--nodes", 2, "--redundant", 4, "-o", other).exit_code == 0
    assert "layers = 2 after 3" in run("diff", plan_path, other).stderr
    assert run("diff", plan_path, tmp_path / "missing.json").exit_code == 3


def test_a_replan_is_for_the_rule_of_the_engine(run, tmp_path):
    tokens = np.random.default_rng(0).lognormal(7, 0.8, (3, 64)).round()
    first, later = tmp_path / "first.npz", tmp_path / "later.npz"
    shape = eplb_traces.ModelShape(3, 64, moe_layer_ids=(0, 1, 2), num_hidden_layers=3)
    for path, counts in ((first, tokens), (later, np.roll(tokens, 7, axis=1))):
        eplb_traces.write_load(eplb_traces.ExpertLoad(counts, shape=shape), path)
    live, under, even = (tmp_path / f"{name}.json" for name in ("live", "under", "even"))
    ranks = ("--ranks", 16, "--nodes", 2, "--redundant", 16)
    assert run("plan", first, *ranks, "--engine", "sglang", "-o", live).exit_code == 0
    again = ("plan", later, "--previous", live, "--target", 1.02)
    assert "as sglang dispatches" in run(*again, "--engine", "sglang", "-o", under).stdout
    assert run(*again, "-o", even).exit_code == 0
    rule = ("--dispatch", "sglang_static", "--json")
    busiest = [json.loads(run("evaluate", plan, later, *rule).stdout)["max_over_mean_mean"] for plan in (under, even)]
    assert busiest[0] < min(1.03, busiest[1])
    refused = run(*again, "--lost-ranks", 3, "--dispatch", "sglang_static")
    assert refused.exit_code == 2
    assert "sglang_static: ranks that change" in refused.stderr
