"""The online rebalancer: when it looks, what it waits for, what it moves, and that it decides the same everywhere."""

import threading
from itertools import pairwise

import numpy as np
import pytest

import eplb.online.rebalancer
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.migration_simulation import simulate
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.evaluation.metrics import evaluate
from eplb.online import OnlineSettings, Outcome, Rebalancer
from eplb.planning.rebalance import Horizon
from eplb_traces import ExpertLoad

LAYERS, EXPERTS, TOKENS = 2, 32, 20_000
MACHINE = Topology(2, 4, 5)  # 8 ranks of 5 slots: 8 redundant experts
LIVE = Placement([np.arange(40) % EXPERTS] * LAYERS, EXPERTS, MACHINE)
QUICK = OnlineSettings(interval=5, window=20, half_life=10.0, expert_bytes=1.0)


def rates(seed):
    """[L, E] fixed popularity of experts."""
    drawn = np.random.default_rng(seed).lognormal(0, 1, (LAYERS, EXPERTS))
    return drawn / drawn.sum(axis=1, keepdims=True)


def draw(rate, rng):
    """One step's counts: a multinomial draw."""
    return np.stack([rng.multinomial(TOKENS, row) for row in rate])


def settings(**words):
    return OnlineSettings(**{"interval": 5, "window": 20, "half_life": 10.0, "expert_bytes": 1.0, **words})


def serve(rebalancer, steps, *, wait=True):
    """Record steps, commit whatever comes; [(step, migration)]."""
    came = []
    for number, counts in enumerate(steps):
        rebalancer.record(counts)
        migration = rebalancer.step(wait=wait)
        if migration is not None:
            rebalancer.commit(migration)
            came.append((number, migration))
    return came


def stationary(num_steps, seed=0):
    rate, rng = rates(seed), np.random.default_rng(seed + 1)
    return [draw(rate, rng) for _ in range(num_steps)]


def drifting(num_steps, seed=0):
    """Popularity goes from one vector to another."""
    first, last, rng = rates(seed), rates(seed + 50), np.random.default_rng(seed + 1)
    return [draw(first + (last - first) * i / (num_steps - 1), rng) for i in range(num_steps)]


def balance(placement, steps):
    return evaluate(placement, ExpertLoad(np.stack(steps))).max_over_mean.mean()


def test_a_migration_comes_at_the_interval_and_makes_the_next_steps_better():
    steps = stationary(20)
    with Rebalancer(LIVE, QUICK) as rebalancer:
        came = serve(rebalancer, steps)
        assert came[0][0] == 4  # the fifth step
        assert balance(rebalancer.placement, steps[5:]) < balance(LIVE, steps[5:]) - 0.1


@pytest.mark.parametrize("seed", range(6))
def test_stationary_noise_moves_next_to_nothing_after_the_first_migration(seed):
    with Rebalancer(LIVE, QUICK) as rebalancer:
        came = serve(rebalancer, stationary(200, seed))
    assert came[0][1].moved_copies > 0
    # 39 checks; chance differences between steps are no change.
    assert sum(migration.moved_copies for _, migration in came[1:]) <= 4


def test_without_the_change_test_noise_does_move_replicas():
    """The test above can fail: the change test keeps the placement as it is."""
    calm, restless = (
        sum(m.moved_copies for _, m in serve(Rebalancer(LIVE, settings(change=change, price=0.0)), stationary(100))[1:])
        for change in (1.5, 0.0)
    )
    assert calm < restless


def test_drift_is_followed():
    steps = drifting(60)
    with Rebalancer(LIVE, QUICK) as rebalancer:
        came = serve(rebalancer, steps)
        assert len(came) >= 3
        assert balance(rebalancer.placement, steps[-5:]) < balance(came[0][1].after, steps[-5:]) - 0.1


@pytest.mark.parametrize("seed", range(4))
def test_every_migration_can_be_carried_out_with_every_expert_alive(seed):
    with Rebalancer(LIVE, QUICK) as rebalancer:
        came = serve(rebalancer, drifting(40, seed))
    assert came
    for (_, migration), (_, following) in pairwise(came):
        assert migration.after == following.before
    for _, migration in came:
        assert simulate(migration) >= 1
        assert not migration.after.duplicate_slots.sum() > migration.before.duplicate_slots.sum()


@pytest.mark.parametrize("budget", [0, 1, 3, 7])
def test_a_budget_is_kept_and_spent_over_several_looks(budget):
    steps = stationary(80)
    with Rebalancer(LIVE, settings(max_moves=budget)) as rebalancer:
        came = serve(rebalancer, steps)
        assert all(migration.moved_copies <= budget for _, migration in came)
        # No drift, but the first plan was cut: it goes on until nothing more pays.
        assert len(came) >= 2 if budget else not came
        assert balance(rebalancer.placement, steps) <= balance(LIVE, steps)


def test_the_cooldown_is_obeyed():
    with Rebalancer(LIVE, settings(cooldown=12, change=0.0)) as rebalancer:
        came = serve(rebalancer, drifting(60))
    at = [number for number, _ in came]
    assert len(at) >= 3
    assert min(np.diff(at)) >= 12
    with Rebalancer(LIVE, settings(change=0.0)) as rebalancer:
        assert min(np.diff([number for number, _ in serve(rebalancer, drifting(60))])) == 5


def test_a_balanced_placement_is_left_alone():
    even = [np.full((LAYERS, EXPERTS), 100.0)] * 10
    layout = Placement([np.arange(32)] * LAYERS, EXPERTS, Topology(1, 8, 4))
    seen = []
    with Rebalancer(layout, QUICK, observer=seen.append) as rebalancer:
        assert serve(rebalancer, even) == []
    assert [decision.outcome for decision in seen] == [Outcome.BALANCED] * 2


def test_a_horizon_that_does_not_pay_moves_nothing():
    seen = []
    dear = Horizon(token_s=1e-12, num_loads=5)
    with Rebalancer(LIVE, settings(horizon=dear, expert_bytes=1e9), observer=seen.append) as rebalancer:
        assert serve(rebalancer, stationary(6)) == []
    assert [decision.outcome for decision in seen] == [Outcome.PLANNING, Outcome.NOT_WORTH_IT]
    cheap = Horizon(token_s=1e-3, num_loads=5)
    with Rebalancer(LIVE, settings(horizon=cheap, expert_bytes=1e9)) as rebalancer:
        assert len(serve(rebalancer, stationary(6))) == 1


def test_a_migration_under_way_holds_the_next_one_back():
    seen = []
    with Rebalancer(LIVE, QUICK, observer=seen.append) as rebalancer:
        migration = None
        for counts in stationary(10):
            rebalancer.record(counts)
            migration = rebalancer.step(wait=True) or migration
        assert seen[-1].outcome is Outcome.UNCOMMITTED
        assert rebalancer.placement == LIVE
        rebalancer.abandon(migration)
        for counts in stationary(5):
            rebalancer.record(counts)
            again = rebalancer.step(wait=True)
        assert again is not None
        rebalancer.commit(again)
        assert rebalancer.placement == again.after
        with pytest.raises(InputError, match="returned last"):
            rebalancer.commit(again)


def test_no_traffic_is_said_and_moves_nothing():
    seen = []
    with Rebalancer(LIVE, QUICK, observer=seen.append) as rebalancer:
        for _ in range(5):
            rebalancer.record(np.zeros((LAYERS, EXPERTS)))
            assert rebalancer.step() is None
    assert [decision.outcome for decision in seen] == [Outcome.NO_TRAFFIC]


def test_the_plan_is_due_after_plan_steps_however_fast_it_is_made():
    steps = stationary(12)
    for plan_steps in (0, 1, 3):
        with Rebalancer(LIVE, settings(plan_steps=plan_steps)) as rebalancer:
            assert serve(rebalancer, steps, wait=False)[0][0] == 4 + plan_steps


def test_ranks_that_record_the_same_decide_the_same():
    first, second = (Rebalancer(LIVE, settings(plan_steps=2)) for _ in range(2))
    with first, second:
        for counts in drifting(40):
            first.record(counts)
            second.record(np.stack([counts // 2, counts - counts // 2]))  # the same counts, by two source ranks
            one, other = first.step(), second.step()
            assert one == other
            assert first.digest() == second.digest()
            if one is not None and other is not None:
                first.commit(one)
                second.commit(other)
        same = first.digest()
        second.record(np.ones((LAYERS, EXPERTS)))
        assert second.digest() != same
        first.step()
        assert first.digest() != same


def test_what_the_planning_thread_raises_comes_out_of_step(monkeypatch):
    def fail(*_arguments):
        raise ZeroDivisionError("in the thread")

    with Rebalancer(LIVE, QUICK) as rebalancer:
        steps = stationary(12)
        with monkeypatch.context() as patched:
            patched.setattr(eplb.online.rebalancer, "replan", fail)
            with pytest.raises(ZeroDivisionError, match="in the thread"):
                serve(rebalancer, steps[:6], wait=False)
        assert len(serve(rebalancer, steps[6:], wait=False)) == 1  # the next look plans again


def test_planning_runs_beside_the_caller(monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    real = eplb.online.rebalancer.replan

    def slow(*arguments):
        begun.set()
        assert go_on.wait(30)
        return real(*arguments)

    monkeypatch.setattr(eplb.online.rebalancer, "replan", slow)
    with Rebalancer(LIVE, settings(plan_steps=2)) as rebalancer:
        assert serve(rebalancer, stationary(6), wait=False) == []  # two steps go by while it plans
        assert begun.wait(30)
        go_on.set()
        assert len(serve(rebalancer, stationary(1), wait=False)) == 1


def test_closing_ends_the_thread_even_with_a_plan_under_way():
    before = set(threading.enumerate())
    with Rebalancer(LIVE, settings(plan_steps=3)) as rebalancer:
        serve(rebalancer, stationary(5), wait=False)
    assert set(threading.enumerate()) <= before
    rebalancer.close()
    with pytest.raises(InputError, match="closed"):
        rebalancer.step()


def test_a_rule_may_be_given_by_name():
    assert OnlineSettings(dispatch="online").dispatch is DispatchRule.ONLINE
    with pytest.raises(InputError, match="unknown dispatch rule 'fair'"):
        OnlineSettings(dispatch="fair")


def test_a_placement_with_weights_is_refused():
    share = 1 / np.take_along_axis(LIVE.logical_replica_count, LIVE.physical_to_logical_map, axis=1)
    weighted = Placement(LIVE.physical_to_logical_map, EXPERTS, MACHINE, share)
    with pytest.raises(InputError, match="expected none, a migration carries no shares"):
        Rebalancer(weighted)


@pytest.mark.parametrize(
    "words",
    [
        {"interval": 0}, {"window": 0}, {"plan_steps": 5}, {"plan_steps": -1}, {"half_life": 0.0}, {"target": 0.9},
        {"change": -1.0}, {"price": float("nan")}, {"max_moves": -1}, {"cooldown": -1}, {"expert_bytes": 0.0},
        {"horizon": Horizon(token_s=1e-6, num_loads=1), "expert_bytes": None}, {"dispatch": DispatchRule.WEIGHTED},
        {"dispatch": "weighted"}, {"interval": 5.5}, {"max_moves": 1.5},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(words):
    with pytest.raises(InputError, match=next(iter(words))):
        settings(**words)


def test_after_a_switch_the_past_is_forgotten():
    steps = [*stationary(40, 0), *stationary(25, 7)]
    with Rebalancer(LIVE, settings(window=60, half_life=float("inf"))) as rebalancer:
        serve(rebalancer, steps)
        # Forty steps of old traffic against twenty-five of new: only forgetting lets the new one decide.
        assert balance(rebalancer.placement, steps[50:]) < balance(LIVE, steps[50:]) - 0.3
        assert balance(rebalancer.placement, steps[50:]) < balance(rebalancer.placement, steps[:40]) - 0.1


def test_the_front_door_has_it():
    import eplb

    assert (eplb.Rebalancer, eplb.OnlineSettings) == (Rebalancer, OnlineSettings)
