"""What a plan is worth: one baseline for every command, a replan without gain, and redundancy that is missing."""

import json
import re

import numpy as np
import pytest

import eplb
from eplb.core.baseline import EXPERTS_IN_ORDER
from eplb.core.dispatch_rule import DispatchRule
from eplb.formats import read_plan
from eplb.planning.gain import baseline, gain_over_order, live_if_nothing_gained, redundancy_notes
from eplb.report import gather
from eplb_traces import ExpertLoad, write_load

RANKS = ("--ranks", 4, "--redundant", 4)
PAIRS = eplb.Topology(1, 2, 2)


def _json(result):
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_plan_compare_report_and_trace_info_have_one_baseline(run, load_path, counts):
    rank_load = counts.reshape(3, 4, 4).sum(axis=2)
    expected = (rank_load.max(axis=1) / rank_load.mean(axis=1)).mean()
    (info,) = [one for one in _json(run("trace", "info", load_path, "--ranks", 4, "--json"))["linear_max_over_mean"]
               if one["num_ranks"] == 4]  # fmt: skip
    planned = _json(run("plan", load_path, *RANKS, "--strategy", "greedy", "--json"))
    compared = _json(run("compare", load_path, *RANKS, "--strategies", "linear", "--json"))
    reported = gather(eplb.read_load(load_path), topology=eplb.Topology(1, 4, 5)).plans[0]
    found = [info["mean"], planned["before"]["max_over_mean_mean"], compared["before"]["max_over_mean_mean"]]
    assert [*found, reported.evaluation.balance["max_over_mean_mean"]] == pytest.approx([expected] * 4)
    assert {planned["before"]["placement"], compared["before"]["placement"], reported.name} == {EXPERTS_IN_ORDER}
    # The strategy `linear` fills the redundant slots, which moves experts: another placement, another balance.
    assert compared["strategies"][0]["max_over_mean_mean"] != pytest.approx(expected)
    text = run("compare", load_path, *RANKS, "--strategies", "linear").stdout
    assert f"today (experts in order, no redundant ones): max/mean {expected:.4f}\n" in text


@pytest.mark.parametrize(
    ("words", "how"),
    [((), "under even dispatch"), (("--engine", "vllm"), "as vllm dispatches")],
    ids=["even", "engine"],
)
def test_a_plan_begins_with_the_balance_before_and_after(run, load_path, words, how):
    words = ("plan", load_path, *RANKS, "--strategy", "greedy", *words)
    found = _json(run(*words, "--json"))
    was, now, bound = found["before"]["max_over_mean_mean"], found["max_over_mean_mean"], found["max_over_mean_bound"]
    assert 1 <= bound <= now < was
    first = run(*words).stdout.splitlines()[0]
    assert first == f"today (experts in order) {was:.4f} -> {now:.4f} {how} (bound {bound:.4f})"
    assert "changed" not in found


def test_the_bound_of_several_windows_is_the_mean_of_their_bounds():
    # One expert carries 6 of 8 tokens in the first window: 6 on the busiest of two ranks of 4 on average.
    load = ExpertLoad(np.array([[[6.0, 1, 1, 0]], [[2.0, 2, 2, 2]]]))
    placement = eplb.Placement([[0, 1, 2, 3]], 4, PAIRS)
    gain = gain_over_order(eplb.evaluate(placement, load))
    assert gain.bound == pytest.approx((6 / 4 + 1) / 2)
    assert not gain.changed


def test_replica_weights_of_the_baseline_are_set_under_weighted_dispatch():
    load = ExpertLoad(np.array([[3.0, 1, 1, 1]]))
    found = baseline(load, eplb.Topology(1, 2, 3), DispatchRule.WEIGHTED)
    assert found.max_over_mean.tolist() == pytest.approx([4 / 3])


def test_a_replan_without_gain_keeps_the_live_placement(run, tmp_path):
    # 5 beside any 3 is 8 of 14: no placement is better than this one, though the mean is 7.
    write_load(ExpertLoad(np.array([[5.0, 3, 3, 3]])), tmp_path / "load.npz")
    (tmp_path / "live.json").write_text("[[2, 0, 3, 1]]")
    words = ("plan", tmp_path / "load.npz", "--previous", tmp_path / "live.json", "--ranks", 2, "--target", 1)
    found = _json(run(*words, "-o", tmp_path / "next.json", "--json"))
    assert (found["changed"], found["moved_copies"], found["before"]["placement"]) == (False, 0, "live placement")
    assert "nothing moves" in found["notes"][0]
    assert read_plan(tmp_path / "next.json").placement.physical_to_logical_map.tolist() == [[2, 0, 3, 1]]
    first = run(*words).stdout.splitlines()[0]
    bound = found["max_over_mean_bound"]
    assert (
        first == f"today (live placement): nothing gained, unchanged at 1.1429 under even dispatch (bound {bound:.4f})"
    )


def test_a_replan_with_gain_is_named_changed(run, tmp_path):
    write_load(ExpertLoad(np.array([[4.0, 4, 1, 1]])), tmp_path / "load.npz")
    (tmp_path / "live.json").write_text("[[0, 1, 2, 3]]")
    words = ("plan", tmp_path / "load.npz", "--previous", tmp_path / "live.json", "--ranks", 2)
    assert _json(run(*words, "--json"))["changed"] is True
    assert run(*words).stdout.startswith("today (live placement) 1.6000 -> 1.0000 under even dispatch (bound 1.0000)\n")


def test_a_live_placement_on_other_ranks_is_named_with_them(run, plan_path, load_path):
    text = run("plan", load_path, "--previous", plan_path, "--retire-ranks", 3, "--slots", 6).stdout
    assert re.match(r"today \(live placement on 4 ranks\) \d\.\d{4} -> ", text)


def test_moves_that_help_the_sum_and_not_the_windows_are_not_made():
    # Live: 120 and 80 of the first window, 1 and 1 of the others. Every other pairing balances the first window and
    # puts both tokens of one of the others on one rank: (1 + 2 + 1) / 3 against (1.2 + 1 + 1) / 3.
    load = ExpertLoad(np.array([[[60.0, 60, 40, 40]], [[1, 0, 1, 0]], [[1, 0, 0, 1]]]))
    live = eplb.Placement([[0, 1, 2, 3]], 4, PAIRS)
    made = eplb.rebalance(live, load)
    assert made.migration.moved_copies > 0
    kept = live_if_nothing_gained(made, live, load)
    assert (kept.placement, kept.migration.moved_copies) == (live, 0)
    assert "from 1.0667 to 1.3333" in kept.notes[0]
    first = ExpertLoad(load.tokens[:1])
    assert live_if_nothing_gained(made, live, first) is made


def test_missing_redundancy_is_named_with_what_it_would_give(run, tmp_path):
    # 9 of 12 tokens go to one expert and a rank's share is 6. With three slots a rank: 4.5 + 1 + 0.5 on both.
    tokens = np.array([[9.0, 1, 1, 1], [3.0, 3, 3, 3]])
    write_load(ExpertLoad(tokens), tmp_path / "load.npz")
    words = ("plan", tmp_path / "load.npz", "--ranks", 2, "--strategy", "greedy", "-o", tmp_path / "plan.json")
    (note,) = [text for text in _json(run(*words, "--json"))["notes"] if "redundant" in text]
    assert "in 1 of 2 layers one expert has more tokens than a rank's share" in note
    assert "(--redundant 2) gives busiest / mean rank 1.0000 with greedy" in note
    assert f"note: {note}\n" in run(*words).stdout
    assert note not in read_plan(tmp_path / "plan.json").notes


@pytest.mark.parametrize(
    ("tokens", "slots"), [([3.0, 3, 3, 3], 2), ([9.0, 1, 1, 1], 3)], ids=["no hot expert", "redundant slots"]
)
def test_nothing_is_said_where_redundancy_is_not_missing(tokens, slots):
    load = ExpertLoad(np.array([tokens]))
    made = eplb.plan(load, eplb.Topology(1, 2, slots), "greedy")
    assert redundancy_notes(eplb.evaluate(made.placement, load)) == ()
