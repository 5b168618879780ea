"""A history served again: every policy is charged for what it does, and scored on steps that it did not see."""

import numpy as np
import pytest

from eplb.core.migration import Migration, rename_ranks
from eplb.core.problem import Problem
from eplb.core.topology import Topology
from eplb.errors import InputError, UnknownNameError
from eplb.evaluation.metrics import evaluate
from eplb.online import OnlineSettings
from eplb.online.replay import POLICIES, Replay, simulate
from eplb.strategies.baselines.deepseek import DeepSeek
from eplb_traces import ExpertLoad, read_load

MACHINE = Topology.for_experts(32, num_ranks=8, num_nodes=2, num_redundant=8)


def history(num_steps=60):
    """Traffic whose topics change slowly, with noise."""
    rng = np.random.default_rng(0)
    topics = rng.lognormal(0, 1, (3, 2, 32))
    topics /= topics.sum(axis=2, keepdims=True)
    phase = np.linspace(0, 2, num_steps)[:, None] + np.arange(3)
    mix = np.cos(phase) ** 2
    share = np.einsum("wk,kle->wle", mix / mix.sum(axis=1, keepdims=True), topics)
    return ExpertLoad([[rng.multinomial(20_000, row) for row in step] for step in share])


REPLAY = Replay(load=history(), topology=MACHINE, interval=10, online=OnlineSettings(window=30), expert_bytes=1e6)


@pytest.fixture(scope="module")
def served():
    return {one.policy: one for one in simulate(REPLAY)}


def test_all_policies_are_there_in_order(served):
    assert tuple(served) == tuple(POLICIES)
    for one in served.values():
        assert one.max_over_mean.shape == (50, 2)


def test_never_keeps_the_first_plan_and_moves_nothing(served):
    never = served["never"]
    first = REPLAY.first_placement()
    expected = evaluate(first, history().select(slice(10, None))).max_over_mean_by_window
    assert np.array_equal(never.max_over_mean, expected)
    assert (never.moved_copies, never.stall_s, never.migrations) == (0, 0.0, ())


def test_the_first_interval_is_the_same_for_all(served):
    for one in served.values():
        assert np.array_equal(one.max_over_mean[:10], served["never"].max_over_mean[:10])


def test_full_is_deepseek_on_the_last_interval(served):
    full = served["full"]
    plan = DeepSeek()(Problem(history().select(slice(20, 30)), MACHINE)).placement
    expected = evaluate(plan, history().select(slice(30, 40))).max_over_mean_by_window
    assert np.array_equal(full.max_over_mean[20:30], expected)
    assert full.migrations[1].after == plan
    assert len(full.migrations) == 4


def test_full_relabelled_balances_as_full_does_and_moves_less(served):
    full, renamed = served["full"], served["full_relabelled"]
    assert renamed.max_over_mean == pytest.approx(full.max_over_mean)
    assert 0 < renamed.moved_copies < full.moved_copies
    first = rename_ranks(REPLAY.first_placement(), full.migrations[0].after, ranks_per_block=8)
    assert renamed.migrations[0].after == first


def test_moves_bytes_and_stall_are_those_of_the_migrations(served):
    for one in served.values():
        for migration, following in zip(one.migrations, one.migrations[1:], strict=False):
            assert migration.after == following.before
        again = [Migration.between(m.before, m.after, 1e6) for m in one.migrations]
        assert one.moved_copies == sum(m.moved_copies for m in again)
        assert one.moved_bytes == 1e6 * one.moved_copies
        assert one.stall_s == pytest.approx(sum(m.transfer_s for m in again))


def test_incremental_beats_never_with_a_fraction_of_the_moves(served):
    assert served["incremental"].mean < served["never"].mean
    assert 0 < served["incremental"].moved_copies < 0.3 * served["full"].moved_copies
    assert served["oracle"].mean < min(one.mean for name, one in served.items() if name != "oracle")


def test_the_future_decides_nothing_but_the_oracle():
    tokens = history().tokens.copy()
    tokens[40:] = np.roll(tokens[40:], 7, axis=2)
    other = Replay(load=ExpertLoad(tokens), topology=MACHINE, interval=10, online=REPLAY.online)
    changed = []
    for before, after in zip(simulate(REPLAY), simulate(other), strict=True):
        same = np.array_equal(before.max_over_mean[:30], after.max_over_mean[:30])
        assert same, before.policy  # the oracle sees ten steps ahead: steps 30 .. 39, which are equal
        maps = [[m.after for m in one.migrations][:3] for one in (before, after)]
        changed += [before.policy] if maps[0] != maps[1] else []
    assert changed == ["oracle"]  # its third replan, at step 40, knows steps 40 .. 49


def test_a_slower_link_only_stalls_longer():
    slow = Topology.for_experts(32, num_ranks=8, num_nodes=2, num_redundant=8)
    slow = Topology(2, 4, slow.slots_per_rank, intra_node_gbps=1.0, inter_node_gbps=1.0)
    fast = Topology(2, 4, slow.slots_per_rank, intra_node_gbps=10.0, inter_node_gbps=10.0)
    one, other = (
        simulate(Replay(load=history(), topology=machine, interval=10, expert_bytes=1e6), ["full"])[0]
        for machine in (slow, fast)
    )
    assert one.stall_s == pytest.approx(10 * other.stall_s)
    assert np.array_equal(one.max_over_mean, other.max_over_mean)


def test_phases_are_means_of_parts(served):
    one = served["full"]
    assert one.phases(5) == pytest.approx(one.max_over_mean.reshape(5, 10, 2).mean(axis=(1, 2)))
    assert one.phases(1000).size == 50


def test_what_cannot_be_served_again_is_refused():
    with pytest.raises(InputError, match="at least 2 intervals of 31"):
        Replay(load=history(), topology=MACHINE, interval=31)
    with pytest.raises(InputError, match="interval = 0"):
        Replay(load=history(), topology=MACHINE, interval=0)
    with pytest.raises(UnknownNameError, match="sometimes"):
        simulate(REPLAY, ["never", "sometimes"])


@pytest.mark.slow
def test_on_real_drift_incremental_beats_full_replans_with_a_tenth_of_their_moves(samples):
    load = read_load(samples / "moe-435m-windows.npz")
    machine = Topology.for_experts(256, num_ranks=32, num_nodes=4, num_redundant=32)
    full, incremental = simulate(Replay(load=load, topology=machine, interval=10), ["full", "incremental"])
    assert incremental.mean < full.mean - 0.05
    assert incremental.moved_copies < 0.1 * full.moved_copies


def test_steps_without_tokens_are_left_out():
    tokens = np.random.default_rng(0).lognormal(0, 1, (12, 2, 8))
    tokens[4, 1] = 0  # a layer without load in one step
    idle = np.insert(tokens, [2, 7, 7, 12], 0, axis=0)
    topology = Topology(1, 4, 2)
    dense = simulate(Replay(load=ExpertLoad(tokens), topology=topology, interval=4), ["never", "full"])
    with_idle = Replay(load=ExpertLoad(idle), topology=topology, interval=4)
    assert with_idle.num_empty_steps == 4
    for one, other in zip(dense, simulate(with_idle, ["never", "full"]), strict=True):
        np.testing.assert_array_equal(one.max_over_mean, other.max_over_mean)
        assert np.isnan(one.max_over_mean).sum() == 1
        assert (one.mean, one.p95) == (other.mean, other.p95)
        assert one.mean == pytest.approx(np.nanmean(one.max_over_mean))
    with pytest.raises(InputError, match=r"a history of 6 steps .30 without a token left out"):
        Replay(load=ExpertLoad(np.concatenate([tokens[:6], np.zeros((30, 2, 8))])), topology=topology, interval=4)


def test_without_the_bytes_of_an_expert_moves_are_counted():
    (full,) = simulate(Replay(load=history(), topology=REPLAY.topology, interval=10), ["full"])
    assert full.moved_copies > 0
    assert full.moved_bytes is full.stall_s is None
    assert not {"moved_bytes", "stall_s"} & set(full.summary())
