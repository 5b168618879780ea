"""Contents of a report: plans, evaluations, summary text, and refused input."""

from dataclasses import replace

import numpy as np
import pytest

import eplb
from eplb.core.baseline import EXPERTS_IN_ORDER, experts_in_order
from eplb.core.placement import EMPTY_SLOT
from eplb.errors import InputError
from eplb.evaluation.traffic import token_spread
from eplb.report import gather
from eplb.report.tables import windows
from eplb_traces import RoutingTrace, TokenBatch, synthesize_trace
from eplb_traces.windows import MOST_WINDOWS, load_by_window
from tests.report.examples import SHAPE, TOPOLOGY, contents_of_trace, placement, skewed, some_trace


def test_without_plans_greedy_is_compared_with_experts_in_order():
    contents = contents_of_trace()
    before, after = contents.plans
    assert (before.name, after.name) == (EXPERTS_IN_ORDER, "greedy")
    assert after.placement == placement("greedy")
    assert before.placement == experts_in_order(contents.load.num_layers, contents.load.num_experts, TOPOLOGY)
    # 4 experts and one empty slot per rank.
    assert before.placement.physical_to_logical_map[0, :6].tolist() == [0, 1, 2, 3, EMPTY_SLOT, 4]


def test_every_number_equals_that_of_evaluate():
    contents = contents_of_trace()
    load = load_by_window(some_trace(), None)
    assert contents.load == load
    for view in contents.plans:
        judged = eplb.evaluate(view.placement, load)
        assert view.evaluation.summary() == judged.summary()
        busiest = view.total_rank_load.max(axis=1)
        np.testing.assert_array_equal(view.total_rank_load, judged.total_rank_load)
        np.testing.assert_array_equal(view.busiest_rank, judged.total_rank_load.argmax(axis=1))
        # The bound is the one that the gap is relative to.
        np.testing.assert_allclose(busiest / view.bound.value - 1, judged.gap, atol=1e-15)
        np.testing.assert_array_equal(
            view.spread.ranks_per_token, token_spread(view.placement, some_trace()).ranks_per_token
        )
    assert contents.plans[0].migration is None
    before, after = (view.placement for view in contents.plans)
    assert contents.plans[1].migration == eplb.Migration.between(before, after, contents.expert_bytes)


def test_a_trace_is_evaluated_in_the_windows_that_are_drawn():
    contents = contents_of_trace()
    assert contents.load == contents.windows == load_by_window(some_trace(), None)
    assert contents.windows.num_windows > 1
    for view in contents.plans:
        expected = eplb.evaluate(view.placement, contents.windows).max_over_mean_by_window
        np.testing.assert_array_equal(view.balance_by_window, expected)


@pytest.mark.parametrize("offset", [0, 1000, 100_000])
def test_a_trace_that_starts_late_shows_as_many_windows(offset):
    batches = [
        TokenBatch(batch.shape, batch.expert_ids, batch.step + offset, batch.request)
        for batch in synthesize_trace("v3-switching", shape=SHAPE, num_steps=80, tokens_per_step=64)
    ]
    contents = gather(RoutingTrace(SHAPE, batches), topology=TOPOLOGY)
    assert contents.windows.num_windows == MOST_WINDOWS
    assert contents.windows.labels[0] == f"steps {offset}-{offset + 1}"


def test_windows_of_the_load_are_kept_and_summed_on_demand():
    load = skewed(num_windows=6)
    topology = eplb.Topology.for_experts(8, num_ranks=4)
    assert gather(load, topology=topology).windows is not None
    merged = gather(load, topology=topology, window=3)
    assert merged.load == load.merged(3)
    np.testing.assert_array_equal(merged.plans[0].balance_by_window, merged.plans[0].evaluation.max_over_mean_by_window)
    one = gather(load.merged(6), topology=topology)
    assert one.windows is None
    assert one.trace is None
    assert {view.balance_by_window for view in one.plans} == {None}
    assert {view.spread for view in one.plans} == {None}


def test_one_plan_is_compared_with_experts_in_order_and_several_with_the_first():
    zigzag, greedy = placement("zigzag"), placement("greedy")
    assert [view.name for view in gather(some_trace(), {"a": zigzag}).plans] == [EXPERTS_IN_ORDER, "a"]
    both = gather(some_trace(), {"a": zigzag, "b": greedy})
    assert [view.name for view in both.plans] == ["a", "b"]
    assert both.plans[1].migration == eplb.Migration.between(zigzag, greedy)


def test_plans_with_other_slots_have_no_migration_from_the_first():
    fewer = placement("greedy", eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2))
    contents = gather(some_trace(), {"a": placement(), "b": fewer})
    assert contents.plans[1].migration is None
    assert contents.plans[1].placement.num_slots == 16


def test_a_report_under_weighted_dispatch_has_experts_in_order_beside_the_plan():
    load = some_trace().load()
    contents = gather(load, topology=placement().topology, dispatch="weighted")
    before, after = contents.plans
    assert before.placement.replica_weights is not None
    assert after.evaluation.rank_load.max() <= before.evaluation.rank_load.max()
    assert after.placement == eplb.plan(load, placement().topology, "greedy", dispatch="weighted").placement


def test_plans_are_evaluated_under_the_given_dispatch_rule():
    contents = gather(some_trace(), {"a": placement()}, dispatch="online")
    view = contents.plans[1]
    assert view.evaluation.summary() == eplb.evaluate(view.placement, some_trace(), "online").summary()


def test_plans_that_do_not_fit_are_refused_by_name():
    load = skewed()
    with pytest.raises(
        InputError,
        match=r"load of 2 layers x 8 experts: the plan x\.json is for 3 layers x 16 experts, another model",
    ):
        gather(load, {"x.json": placement()})
    other = eplb.Topology.for_experts(16, num_ranks=8, num_nodes=2)
    with pytest.raises(InputError, match="plan b is for 8 ranks on 2 nodes: expected 4 ranks on 2 nodes"):
        gather(some_trace(), {"a": placement(), "b": placement("greedy", other)})
    with pytest.raises(InputError, match="every count is zero"):
        gather(eplb.ExpertLoad(np.zeros((2, 8))), topology=eplb.Topology(1, 2, 4))


def test_migrations_use_the_given_bytes_of_an_expert():
    contents = gather(skewed(), topology=eplb.Topology(1, 4, 2), expert_bytes=1000.0)
    migration = contents.plans[1].migration
    assert migration.moved_copies > 0
    assert contents.plans[1].metrics()["moved_bytes"] == 1000 * migration.moved_copies
    assert contents.plans[1].moved_in.sum() == migration.moved_copies
    assert not contents.plans[0].moved_in.any()


def test_summary_of_a_plan_without_gain_and_of_a_single_layer():
    load = eplb.ExpertLoad([[3, 3, 1, 1]])
    mirrored = eplb.Placement([[2, 3, 0, 1]], 4, eplb.Topology(1, 2, 2))
    sentences = gather(load, {"mirrored": mirrored}).summary_text[0].splitlines()
    assert sentences[1] == (
        "With experts in order the busiest rank of a layer carries 1.50x the mean, 50.00 % above the proven bound."
    )
    assert sentences[3] == "Summed over layers the busiest ranks get as many tokens with mirrored."


def test_summary_text_states_the_evaluation():
    # Rank 0 has experts 0 1 with 6 tokens, rank 1 experts 2 3 with 2: 1.5 times the mean of 4. Layer 1 is empty.
    load = eplb.ExpertLoad([[3, 3, 1, 1], [0, 0, 0, 0]])
    better = eplb.Placement([[0, 2, 1, 3]] * 2, 4, eplb.Topology(1, 2, 2))
    contents = gather(load, {"better": better}, title="load.csv")
    overall, first, second = contents.summary_text
    assert first == (
        "layer 0: rank 0 carries 1.50x the mean (experts in order); better brings it to 1.000x; gap to the bound 0.00 %"
    )
    assert second == "layer 1: no tokens"
    assert overall.splitlines() == [
        "load.csv: 2 layers of 4 experts on 2 ranks of 1 node.",
        "1 layer without tokens left out.",
        "With experts in order the busiest rank of a layer carries 1.50x the mean on average and 1.50x in layer 0, "
        "50.00 % above the proven bound on average.",
        "With better the busiest rank of a layer carries 1.000x the mean on average and 1.000x in layer 0, "
        "0.00 % above the proven bound on average.",
        # 4 instead of 6.
        "Summed over layers the busiest ranks get 33.3 % fewer tokens with better.",
        # Experts 1 and 2 change places, in both layers: 4 of 8 slots.
        "Getting to better moves 4 replicas to another rank, 50.0 % of the slots.",
    ]


def test_summary_text_names_model_layers_windows_and_losses():
    contents = gather(some_trace(), {"good": placement(), "bad": placement("linear")}, window=2)
    overall, *layers = contents.summary_text
    assert layers[2].startswith("layer 2 (5 in the model): the busiest rank of a window ")
    assert "bad raises it to " in layers[0]
    mean = contents.plans[0].evaluation.summary()["max_over_mean_mean"]
    assert f"With good the busiest rank of a layer carries {mean:.2f}x the mean on average of 2 windows and " in overall
    assert "; for the sum of the windows " in overall
    assert "more tokens with bad." in overall
    assert f"({contents.plans[0].name}: " in overall  # ranks and nodes per token


def test_an_empty_load_is_refused():
    placed = {"p": eplb.Placement([[0, 1, 2, 3]], 4, eplb.Topology(1, 2, 2))}
    with pytest.raises(InputError, match="every count is zero, nothing to show"):
        gather(eplb.ExpertLoad(np.zeros((1, 4))), placed)


def test_windows_without_tokens_are_left_out_and_counted():
    # Two windows of 6 and 2 tokens on the two ranks, nine without any: 1.5, not (2 * 1.5 + 9) / 11.
    tokens = np.zeros((11, 1, 4))
    tokens[[0, 5]] = [3, 3, 1, 1]
    contents = gather(eplb.ExpertLoad(tokens), {"p": eplb.Placement([[0, 2, 1, 3]], 4, eplb.Topology(1, 2, 2))})
    sentences = contents.summary_text[0].splitlines()
    assert sentences[1] == "9 windows without tokens left out."
    assert (
        "the busiest rank of a layer carries 1.50x the mean on average of 2 windows and 1.50x in window 0"
        in sentences[2]
    )
    assert contents.plans[0].metrics()["num_empty_windows"] == 9
    shown = windows(contents)
    assert shown["max_over_mean_mean"].isna().sum() == 18  # both plans


def test_a_faster_rank_may_carry_more_tokens():
    # Speeds 2 and 1, loads 6 and 2: times 3 and 2 over a mean of 2.5 (relative speeds 4/3 and 2/3: 4.5, 3, mean 3.75).
    topology = eplb.Topology(1, 2, 2, rank_speed=(2.0, 1.0))
    contents = gather(eplb.ExpertLoad([[3, 3, 1, 1]]), {"p": eplb.Placement([[0, 1, 2, 3]], 4, topology)})
    assert contents.summary_text[1].startswith(
        "layer 0: rank 0 works 1.20x the mean (experts in order); p leaves it at 1.20x"
    )


def test_without_the_bytes_of_an_expert_replicas_are_counted():
    trace = some_trace()
    contents = gather(trace, topology=TOPOLOGY)
    assert contents.expert_bytes is None
    assert "moved_copies" in contents.plans[1].metrics()
    assert not {"moved_bytes", "transfer_s"} & set(contents.plans[1].metrics())
    recorded = RoutingTrace(replace(trace.shape, expert_bytes=5e6), trace)
    known = gather(recorded, topology=TOPOLOGY)
    assert known.plans[1].metrics()["moved_bytes"] == 5e6 * known.plans[1].migration.moved_copies
    assert gather(recorded, topology=TOPOLOGY, expert_bytes=1e6).expert_bytes == 1e6
