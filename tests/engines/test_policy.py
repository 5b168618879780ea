"""Shared by all engines: settings, live maps, and properties of new maps."""

import numpy as np
import pytest

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.problem import GroupMode
from eplb.core.topology import Topology
from eplb.engines.live_map import adopt_live_map, duplicate_replicas
from eplb.engines.policy import (
    PolicyInputError,
    PolicySettings,
    call_topology,
    check_counts,
    new_map,
    settings_from_environment,
)
from eplb.errors import InputError, UnknownNameError
from eplb.evaluation.metrics import evaluate
from eplb_traces import ExpertLoad
from tests.engines.instances import assert_stay_in_slots, assert_whole, busiest, doubles, random_call
from tests.oracles import published_rebalance

SEEDS = range(60)


def planned(call, settings=None, live=None, weight=None):
    first, num_slots, num_groups, num_nodes, num_ranks = call
    topology = call_topology(num_slots, num_nodes=num_nodes, num_ranks=num_ranks)
    load = first if weight is None else weight
    return new_map(load[None], topology, settings or PolicySettings(), num_groups=num_groups, live=live)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fresh_map_is_complete_without_duplicates_and_not_worse_than_the_engines_own(seed):
    call = random_call(np.random.default_rng(seed))
    weight, num_slots, num_groups, num_nodes, num_ranks = call
    made = planned(call)
    assert made.shape == (3, num_slots)
    assert_whole(made, weight.shape[1])
    assert doubles(made, num_ranks) == 0
    theirs, _, _ = published_rebalance(weight, num_slots, num_groups, num_nodes, num_ranks)
    # The descent stops within 2e-4 of the mean. Where the published map doubles experts it may split a load unevenly on
    # purpose, which ours cannot: those layers are left out (and counted below).
    comparable = duplicate_replicas(theirs, num_slots // num_ranks).sum(axis=1) == 0
    limit = busiest(weight, theirs, num_ranks) * (1 + 2.1e-4)
    assert (busiest(weight, made, num_ranks) <= limit)[comparable].all()


def test_published_maps_have_few_duplicates_and_ours_are_better_overall():
    ours, theirs, num_duplicates, num_layers = [], [], 0, 0
    for seed in SEEDS:
        weight, num_slots, num_groups, num_nodes, num_ranks = call = random_call(np.random.default_rng(seed))
        published, _, _ = published_rebalance(weight, num_slots, num_groups, num_nodes, num_ranks)
        busy = weight.sum(axis=1) > 0
        num_duplicates += (duplicate_replicas(published, num_slots // num_ranks).any(axis=1) & busy).sum()
        num_layers += busy.sum()
        mean = weight.sum(axis=1)[busy] / num_ranks
        ours += (busiest(weight, planned(call), num_ranks)[busy] / mean).tolist()
        theirs += (busiest(weight, published, num_ranks)[busy] / mean).tolist()
    assert 0 < num_duplicates < num_layers / 2
    assert np.mean(ours) < np.mean(theirs)


@pytest.mark.parametrize("group_mode", [GroupMode.FREE, GroupMode.PINNED])
@pytest.mark.parametrize("seed", SEEDS[:25])
def test_unchanged_load_changes_nothing(seed, group_mode):
    call = random_call(np.random.default_rng(seed))
    settings = PolicySettings(group_mode=group_mode)
    first = planned(call, settings)
    assert np.array_equal(planned(call, settings, live=first.astype(np.int64)), first)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replan_reaches_its_target_or_what_a_fresh_plan_reaches_and_moves_less(seed):
    rng = np.random.default_rng(seed)
    weight, _, _, _, num_ranks = call = random_call(rng)
    first = planned(call)
    drifted = np.floor(weight * rng.lognormal(0, 0.3, weight.shape))
    new = planned(call, live=first.astype(np.int64), weight=drifted)
    assert_whole(new, weight.shape[1])
    assert doubles(new, num_ranks) == 0
    assert_stay_in_slots(first, new, num_ranks)
    before, after = busiest(drifted, first, num_ranks), busiest(drifted, new, num_ranks)
    fresh = busiest(drifted, planned(call, weight=drifted), num_ranks)
    mean = drifted.sum(axis=1) / num_ranks
    assert (after <= fresh * 1.05 * (1 + 1e-9)).all()
    untouched = before <= mean * 1.05
    assert np.array_equal(new[untouched], first[untouched])


def test_layers_between_target_and_trigger_are_unchanged():
    # Two ranks of 2; rank loads 6 and 4: max/mean 1.2. The layer below has 8 and 2: 1.6.
    weight, live = np.array([[4.0, 2, 2, 2], [5, 3, 1, 1]]), np.array([[0, 1, 2, 3]] * 2)
    topology = Topology(1, 2, 2)
    patient = PolicySettings(target=1.0, trigger=1.3)
    made = new_map(weight[None], topology, patient, live=live)
    assert np.array_equal(made[0], live[0])
    # 5 + 1 beside 3 + 1: one exchange.
    assert busiest(weight, made, 2).tolist() == [6.0, 6.0]
    eager = new_map(weight[None], topology, PolicySettings(target=1.0, trigger=1.0), live=live)
    assert busiest(weight, eager, 2).tolist() == [6.0, 6.0]  # 4 + 2 is the best there is: nothing to gain


def test_max_moves_is_respected():
    rng = np.random.default_rng(3)
    weight = rng.lognormal(0, 1, (4, 32)) * 1000
    live = np.tile(np.arange(32), (4, 1))
    topology = Topology(1, 8, 4)
    free = new_map(weight[None], topology, PolicySettings(), live=live)
    tied = new_map(weight[None], topology, PolicySettings(max_moves=5), live=live)
    assert (free != live).sum() > 5
    assert 0 < (tied != live).sum() <= 5


def test_pinned_groups_stay_on_their_nodes_and_live_groups_are_kept_below_the_trigger():
    rng = np.random.default_rng(0)
    weight = rng.lognormal(0, 1, (3, 32)) * 1000
    topology, settings = Topology(2, 4, 5), PolicySettings(group_mode=GroupMode.PINNED)
    first = new_map(weight[None], topology, settings, num_groups=4)
    drifted = weight * rng.lognormal(0, 0.5, weight.shape)
    second = new_map(drifted[None], topology, settings, num_groups=4, live=first.astype(np.int64))
    linear = np.concatenate([np.arange(32), np.arange(8)])[None].repeat(3, axis=0)
    from_linear = new_map(weight[None], topology, settings, num_groups=4, live=linear)
    assert (second != first).any()
    for made in (first, second, from_linear):
        assert_whole(made, 32)
        groups_by_node = [[set((row[start : start + 20] // 8).tolist()) for start in (0, 20)] for row in made]
        assert all(not left & right for left, right in groups_by_node)
    free = new_map(weight[None], topology, PolicySettings(), num_groups=4)
    assert busiest(weight, free, 8).sum() < busiest(weight, first, 8).sum()  # what pinning costs


def test_the_strategy_deepseek_equals_the_published_one_slot_by_slot_even_without_load():
    rng = np.random.default_rng(1)
    weight = rng.permutation(5000)[:48].reshape(2, 24).astype(np.float64)
    call = (weight, 32, 4, 2, 8)
    made = planned(call, PolicySettings(strategy="deepseek"))
    assert np.array_equal(made, published_rebalance(*call)[0])
    idle = planned(call, PolicySettings(strategy="deepseek"), weight=weight * 0)
    assert np.bincount(idle[0]).max() == 5  # a node has 4 spare slots, all for its first expert


def test_a_named_strategy_plans_from_scratch_and_keeps_slots():
    rng = np.random.default_rng(2)
    weight = rng.lognormal(0, 1, (2, 32)) * 1000
    topology, settings = Topology(1, 8, 5), PolicySettings(strategy="greedy")
    first = new_map(weight[None], topology, settings)
    drifted = weight * rng.lognormal(0, 0.5, weight.shape)
    second = new_map(drifted[None], topology, settings, live=first.astype(np.int64))
    afresh = new_map(drifted[None], topology, settings)
    assert busiest(drifted, second, 8) == pytest.approx(busiest(drifted, afresh, 8))
    assert (second != first).sum() < (afresh != first).sum()
    assert_stay_in_slots(first, second, 8)


def test_a_rank_with_more_slots_than_experts_gets_the_engines_own_map():
    weight = np.array([[4.0, 3, 2, 1]])
    made = new_map(weight[None], Topology(1, 2, 6), PolicySettings())
    assert np.array_equal(made, published_rebalance(weight, 12, 1, 1, 2)[0])
    # Four experts would do, but two nodes of pinned groups have two each.
    pinned = new_map(weight[None], Topology(2, 1, 3), PolicySettings(group_mode=GroupMode.PINNED), num_groups=2)
    assert np.array_equal(pinned, published_rebalance(weight, 6, 2, 2, 2)[0])


def test_without_load_the_live_map_is_kept_or_replicas_are_even():
    idle = np.zeros((1, 2, 8))
    topology, live = Topology(1, 4, 3), np.array([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]] * 2)
    assert np.array_equal(new_map(idle, topology, PolicySettings(), live=live), live)
    made = new_map(idle, topology, PolicySettings())
    assert_whole(made, 8)
    assert all(np.bincount(row).max() == 2 for row in made)


def test_several_windows_are_planned_as_scenarios():
    # Experts 0 and 1 peak together, 2 and 3 in the other window. For the sum all four are alike; for the windows the
    # ranks must hold one of each pair.
    windows = np.array([[[9.0, 9, 1, 1]], [[1, 1, 9, 9]]])
    made = new_map(windows, Topology(1, 2, 2), PolicySettings())
    assert {len(set(rank.tolist()) & {0, 1}) for rank in made[0].reshape(2, 2)} == {1}


# Live maps as engines hand them over


def test_slots_of_ranks_that_have_joined_are_filled():
    load = np.array([[8.0, 4, 2, 1]])
    live = np.array([[0, 1, 2, 3, -1, -1]])
    # Rank 2's holes: expert 0 has most tokens a copy; then expert 1 with 4, as 0 has 8 / 2 = 4 on it already.
    assert adopt_live_map(live, load, Topology(1, 3, 2)).tolist() == [[0, 1, 2, 3, 0, 1]]


def test_a_narrower_live_map_means_that_ranks_joined():
    load = np.array([[8.0, 4, 2, 1]])
    adopted = adopt_live_map(np.array([[0, 1, 2, 3]]), load, Topology(1, 3, 2))
    assert adopted.tolist() == [[0, 1, 2, 3, 0, 1]]


def test_experts_of_ranks_that_left_replace_the_replicas_with_least_loss():
    load = np.array([[8.0, 4, 2, 1]])
    live = np.array([[0, 1, 0, 2, 3, 2]])  # rank 2 with expert 3 leaves
    # Copies to give up: of 0, leaving 8 on the other. 1 and 2 have one each among the ranks left.
    assert adopt_live_map(live, load, Topology(1, 2, 2)).tolist() == [[3, 1, 0, 2]]


def test_duplicate_replicas_on_a_rank_are_removed():
    load = np.array([[8.0, 4, 2, 1]])
    live = np.array([[0, 0, 2, 1, 3, 0]])
    # Rank 0 has 0 twice; of what it lacks 1 has 4 tokens a copy, 0 is there.
    assert adopt_live_map(live, load, Topology(1, 3, 2)).tolist() == [[0, 1, 2, 1, 3, 0]]
    assert duplicate_replicas(live, 2).tolist() == [[False, True, False, False, False, False]]
    assert duplicate_replicas(np.array([[-1, -1]]), 2).tolist() == [[False, False]]


def test_another_number_of_slots_per_rank_discards_the_live_map():
    assert adopt_live_map(np.array([[0, 1, 2, 3, 0, 1, 2]]), np.ones((1, 4)), Topology(1, 2, 3)) is None


@pytest.mark.parametrize("seed", range(30))
def test_any_live_map_is_completed_and_keeps_its_slots(seed):
    rng = np.random.default_rng(seed)
    num_experts, slots = 12, int(rng.integers(4, 8))
    old_ranks, new_ranks = int(rng.integers(3, 7)), int(rng.integers(3, 7))
    live = rng.integers(-1, num_experts, (2, old_ranks * slots))
    load = rng.integers(0, 50, (2, num_experts)).astype(np.float64)
    adopted = adopt_live_map(live, load, Topology(1, new_ranks, slots))
    assert_whole(adopted, num_experts)
    assert doubles(adopted, new_ranks) == 0
    width = min(old_ranks, new_ranks) * slots
    fit = live[:, :width]
    for layer in range(2):
        kept = set(fit[layer].tolist()) - {-1}
        keeps = (adopted[layer, :width] == fit[layer]) | duplicate_replicas(fit, slots)[layer] | (fit[layer] < 0)
        # Slots that were given up are those of dead experts beyond the holes.
        num_empty = (duplicate_replicas(fit, slots)[layer] | (fit[layer] < 0)).sum() + (new_ranks * slots - width)
        assert (~keeps).sum() == max(0, num_experts - len(kept) - num_empty)


@pytest.mark.parametrize(
    ("live", "message"),
    [
        (np.zeros((2, 4), np.int64), r"the live map has 2 layers: the load has 1"),
        (np.array([[0, 1, 2, 4]]), r"live map\[layer 0, slot 3\] = 4: expected -1 or 0 <= id < 4"),
        (np.array([[0, -2, 2, 3]]), r"live map\[layer 0, slot 1\] = -2: expected -1 or 0 <= id < 4"),
    ],
)
def test_an_invalid_live_map_is_refused(live, message):
    with pytest.raises(InputError, match=message):
        adopt_live_map(live, np.ones((1, 4)), Topology(1, 2, 2))


# Settings


def test_settings_are_read_from_the_environment():
    assert settings_from_environment({}) == PolicySettings()
    found = settings_from_environment(
        {
            "EPLB_POLICY_STRATEGY": "greedy",
            "EPLB_POLICY_TARGET": "1.02",
            "EPLB_POLICY_TRIGGER": "1.1",
            "EPLB_POLICY_GROUP_MODE": "pinned",
        }
    )
    assert found == PolicySettings(strategy="greedy", target=1.02, trigger=1.1, group_mode=GroupMode.PINNED)
    assert settings_from_environment({"EPLB_POLICY_MAX_MOVES": "64"}) == PolicySettings(max_moves=64)
    assert settings_from_environment({"EPLB_POLICY_TARGET": "1.2"}).trigger == 1.2


@pytest.mark.parametrize(
    ("variable", "value", "error", "message"),
    [
        ("TARGET", "low", InputError, "EPLB_POLICY_TARGET = 'low': expected a number"),
        ("TARGET", "0.9", InputError, "target = 0.9, trigger = 0.9: expected 1 <= target <= trigger"),
        ("TRIGGER", "1.01", InputError, "target = 1.05, trigger = 1.01: expected 1 <= target <= trigger"),
        ("TRIGGER", "nan", InputError, "target = 1.05, trigger = nan"),
        ("MAX_MOVES", "-1", InputError, "max_moves = -1: expected >= 0"),
        ("MAX_MOVES", "1.5", InputError, "EPLB_POLICY_MAX_MOVES = '1.5': expected a number"),
        ("STRATEGY", "best", UnknownNameError, "unknown strategy 'best'"),
        ("GROUP_MODE", "loose", UnknownNameError, "unknown group mode 'loose'"),
        ("GROUP_MODE", "priced", InputError, "group_mode = priced: .* expected free or pinned"),
    ],
)
def test_invalid_settings_are_refused(variable, value, error, message):
    with pytest.raises(error, match=message):
        settings_from_environment({f"EPLB_POLICY_{variable}": value})


@pytest.mark.parametrize("planned_afresh", [{"strategy": "greedy"}, {"strategy": "deepseek"}, {"group_mode": "pinned"}])
def test_a_limit_of_moves_is_refused_where_layers_are_planned_from_nothing(planned_afresh):
    with pytest.raises(InputError, match=r"max_moves = 3: .* from nothing, expected strategy incremental"):
        PolicySettings(max_moves=3, **planned_afresh)


def test_settings_take_names_as_plan_does():
    assert PolicySettings(group_mode="pinned", dispatch="vllm") == PolicySettings(
        group_mode=GroupMode.PINNED, dispatch=DispatchRule.VLLM
    )
    assert PolicySettings(group_mode="pinned").group_mode is GroupMode.PINNED


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((4, 7, 4), "num_replicas = 7: expected a multiple of num_ranks = 4"),
        ((8, 4, 4), "num_replicas = 4: expected at least 8 experts"),
        ((8, 4, 0), "num_ranks = 0: expected >= 1"),
    ],
)
def test_what_engines_assert_is_an_assertion_error_and_an_input_error(counts, message):
    with pytest.raises(PolicyInputError, match=message) as caught:
        check_counts(*counts)
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, InputError)


def test_nodes_that_do_not_divide_the_ranks_become_one_node():
    assert call_topology(12, num_nodes=4, num_ranks=6) == Topology(1, 6, 2)
    assert call_topology(12, num_nodes=3, num_ranks=6) == Topology(3, 2, 2)


# Dispatch rules


def skewed(num_layers=3, num_experts=16, seed=0):
    return np.floor(np.random.default_rng(seed).lognormal(0, 1.2, (num_layers, num_experts)) * 1000) + 1


@pytest.mark.parametrize("rule", [DispatchRule.ASCEND, DispatchRule.LOCAL_FIRST, DispatchRule.SGLANG_STATIC])
def test_a_map_is_planned_for_the_dispatch_rule(rule):
    weight, topology = skewed(), Topology(2, 4, 3)
    settings = PolicySettings(target=1.02, trigger=1.02, dispatch=rule)
    even = new_map(weight[None], topology, PolicySettings(target=1.02, trigger=1.02))
    for made in (
        new_map(weight[None], topology, settings),
        new_map(weight[None], topology, settings, live=even.astype(np.int64)),
    ):
        placements = (Placement(phy2log, 16, topology) for phy2log in (even, made))
        before, after = (evaluate(one, ExpertLoad(weight), rule).max_over_mean.mean() for one in placements)
        assert_whole(made, 16)
        assert after < before


def test_a_strategy_that_plans_from_scratch_changes_layers_above_the_trigger_under_a_rule():
    weight, topology, rule = skewed(), Topology(2, 4, 3), DispatchRule.LOCAL_FIRST
    weight[1] = 1
    live = np.stack([np.arange(24) % 16] * 3)
    settings = PolicySettings(strategy="greedy", target=1.5, trigger=1.5, dispatch=rule)
    made = new_map(weight[None], topology, settings, live=live)
    before, after = (
        evaluate(Placement(phy2log, 16, topology), ExpertLoad(weight), rule).max_over_mean for phy2log in (live, made)
    )
    assert (before > 1.5).tolist() == [True, False, True]
    assert (after < before).tolist() == [True, False, True]
    assert np.array_equal(made[1], live[1])
    assert_whole(made, 16)


def test_layers_within_the_trigger_stay_under_a_rule_and_an_idle_layer_stays():
    weight, topology = skewed(), Topology(2, 4, 3)
    settings = PolicySettings(target=1.0, trigger=50.0, dispatch=DispatchRule.LOCAL_FIRST)
    live = np.stack([np.arange(24) % 16] * 3)
    assert np.array_equal(new_map(weight[None], topology, settings, live=live), live)
    weight[1] = 0
    made = new_map(weight[None], topology, PolicySettings(dispatch=DispatchRule.SGLANG_STATIC), live=live)
    assert np.array_equal(made[1], live[1])
    assert (made[0] != live[0]).any()


def test_a_rule_that_a_policy_cannot_plan_for_is_refused():
    with pytest.raises(InputError, match="dispatch = weighted: expected a rule under which the map alone decides"):
        settings_from_environment({"EPLB_POLICY_DISPATCH": "weighted"})
    with pytest.raises(UnknownNameError, match="unknown dispatch rule 'mine'"):
        settings_from_environment({"EPLB_POLICY_DISPATCH": "mine"})
    pinned = PolicySettings(group_mode=GroupMode.PINNED, dispatch=DispatchRule.LOCAL_FIRST)
    with pytest.raises(PolicyInputError, match="group_mode = pinned: expected an even dispatch rule, got local_first"):
        new_map(skewed()[None], Topology(2, 2, 6), pinned, num_groups=2)
    assert settings_from_environment({"EPLB_POLICY_DISPATCH": "local_first"}).rule is DispatchRule.LOCAL_FIRST
