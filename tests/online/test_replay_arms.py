"""Which placement serves each step, when migrations are charged, and that no arm sees the steps to come."""

import numpy as np
import pytest

import eplb
from eplb.core.migration import Migration
from eplb.cost.placement_schedule import PlacementSchedule, rollout
from eplb.errors import InputError
from eplb.online import OnlineSettings
from eplb.online.replay_arms import FixedPlacement, Online, PeriodicReplan, schedule

TOPOLOGY = eplb.Topology(2, 2, 5, intra_node_gbps=2.0, inter_node_gbps=1.0)


def history(num_steps=40):
    """[steps, 3, 16] whose hot experts move every twelve steps."""
    rng = np.random.default_rng(3)
    rate = rng.lognormal(0, 1, (3, 16))
    return eplb.ExpertLoad(
        np.stack([rng.poisson(500 * np.roll(rate, step // 12, axis=1)) for step in range(num_steps)])
    )


def greedy(load):
    return eplb.plan(load, TOPOLOGY, "greedy").placement


def test_a_fixed_placement_serves_every_step_for_free():
    placement = greedy(history())
    served = schedule(FixedPlacement("mine", placement), first_step=10, num_steps=40)
    assert (served.first_step, len(served.placements), served.moved_copies) == (10, 30, 0)
    assert set(served.placements) == {placement}
    assert not served.migration_s.any()


def test_a_periodic_replan_plans_for_the_last_interval_and_moves_layer_by_layer():
    load = history()
    arm = PeriodicReplan(name="greedy", load=load, every=10, plan=greedy, expert_bytes=1e6)
    served = schedule(arm, first_step=10, num_steps=40, layers_per_step=2)
    targets = [greedy(eplb.ExpertLoad(load.tokens[first : first + 10].sum(axis=0))) for first in (0, 10, 20)]
    assert served.placements[:10] == (targets[0],) * 10
    second = Migration.between(targets[0], targets[1], 1e6)
    half = served.placements[10].physical_to_logical_map
    assert (half[:2] == targets[1].physical_to_logical_map[:2]).all()
    assert (half[2] == targets[0].physical_to_logical_map[2]).all()
    assert served.placements[11:20] == (targets[1],) * 9
    assert served.placements[29] == targets[2]
    seconds = second.transfer_s_by_layer
    assert (seconds > 0).all()
    assert served.migration_s[10:20].tolist() == pytest.approx([seconds[0] + seconds[1], seconds[2], *[0.0] * 8])
    assert served.moved_copies == second.moved_copies + Migration.between(targets[1], targets[2], 1e6).moved_copies


def test_a_replan_waits_for_the_migration_before_it():
    load = history()
    arm = PeriodicReplan(name="greedy", load=load, every=2, plan=greedy, expert_bytes=1e6)
    served = schedule(arm, first_step=2, num_steps=40)  # three layers, one a step: the next replan falls into it
    changes = [int(np.flatnonzero(a != b).size) for a, b in zip(_maps(served)[:-1], _maps(served)[1:], strict=True)]
    assert max(changes) > 0
    for before, after in zip(served.placements[:-1], served.placements[1:], strict=True):
        changed = (before.physical_to_logical_map != after.physical_to_logical_map).any(axis=1)
        assert changed.sum() <= 1


def test_the_online_arm_decides_by_what_it_has_seen():
    load = history()
    settings = OnlineSettings(interval=5, expert_bytes=1e6)
    served = schedule(Online(load, TOPOLOGY, settings), first_step=5, num_steps=40)
    assert served.moved_copies > 0
    assert served.migration_s.sum() > 0
    other = load.tokens.copy()
    other[30:] = np.random.default_rng(0).integers(1, 900, other[30:].shape)
    again = schedule(Online(eplb.ExpertLoad(other), TOPOLOGY, settings), first_step=5, num_steps=40)
    assert again.placements[:25] == served.placements[:25]
    assert again.placements != served.placements
    worst = [_worst(placement, load, step) for step, placement in enumerate(served.placements, 5)]
    fixed = [_worst(served.placements[0], load, step) for step in range(5, 40)]
    assert np.mean(worst) < np.mean(fixed)


def test_what_makes_no_sense_is_refused():
    placement = greedy(history())
    with pytest.raises(InputError, match="a history of 10 steps: expected more than 10"):
        schedule(FixedPlacement("mine", placement), first_step=10, num_steps=10)
    with pytest.raises(InputError, match="first_step = 0: expected >= 1"):
        schedule(FixedPlacement("mine", placement), first_step=0, num_steps=10)
    with pytest.raises(InputError, match="layers_per_step = 0"):
        next(rollout(Migration.between(placement, placement), 0))
    with pytest.raises(InputError, match="layers_per_step = 0"):
        schedule(FixedPlacement("mine", placement), first_step=1, num_steps=10, layers_per_step=0)
    with pytest.raises(InputError, match=r"migration_s has shape \(2,\): expected one number for each of 1 steps"):
        PlacementSchedule("mine", 0, (placement,), np.zeros(2), 0)
    with pytest.raises(InputError, match="finite numbers >= 0"):
        PlacementSchedule("mine", 0, (placement,), np.array([-1.0]), 0)


def _maps(served):
    return [placement.physical_to_logical_map for placement in served.placements]


def _worst(placement, load, step):
    return eplb.evaluate(placement, load.select(slice(step, step + 1))).max_over_mean.mean()
