"""The descent behind the online rebalancer: each step is the best one there is, worth its price, inside its budget."""

import numpy as np
import pytest

from eplb.core.migration import Migration
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import Problem
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.evaluation.metrics import evaluate
from eplb.strategies.incremental.incremental_scenario import IncrementalScenario
from eplb.strategies.incremental.incremental_scenario_kernel import improve_layers
from eplb_traces import ExpertLoad


def instance(seed):
    """A small live map, with holes and doubles by the seed, and loads of four or eight windows scaled as the kernel
    wants them."""
    rng = np.random.default_rng(seed)
    slots_of_rank = [[3, 3, 3], [2, 4, 3], [3, 3, 3, 3]][seed % 3]
    topology = Topology(
        1, len(slots_of_rank), tuple(slots_of_rank), rank_speed=[1.0, 1.5, *[1.0] * 2][: len(slots_of_rank)]
    )
    num_experts = topology.num_slots - 3
    extra = rng.integers(-1 if seed % 2 else 0, num_experts, 3)
    row = rng.permutation([*range(num_experts), *extra])
    windows = (4, 8)[seed % 2]
    load = rng.lognormal(0, 1, (num_experts, windows))
    scaled = np.concatenate([load / load.sum(axis=0) * topology.num_ranks, np.zeros((1, windows))])
    return topology, num_experts, row, scaled


def cost_of(row, scaled, topology):
    """Sum of 8th powers, straight from the definition."""
    rows = np.zeros((topology.num_ranks, scaled.shape[1]))
    for slot, expert in enumerate(row):
        if expert != EMPTY_SLOT:
            rank = topology.rank_of_slot[slot]
            rows[rank] += scaled[expert] / np.count_nonzero(row == expert) / topology.relative_speed[rank]
    return (rows**8).sum()


def fetches_of(row, old, topology):
    """Experts that ranks hold now and did not hold before."""
    return sum(
        len(set(row[topology.rank_of_slot == rank]) - set(old[topology.rank_of_slot == rank]) - {EMPTY_SLOT})
        for rank in range(topology.num_ranks)
    )


def neighbours(row, topology, num_experts):
    """Every map one step away: exchanges between ranks, and slots retargeted; no doubles, no expert lost."""
    rank_of_slot = topology.rank_of_slot
    held = [set(row[rank_of_slot == rank]) - {EMPTY_SLOT} for rank in range(topology.num_ranks)]
    for slot in range(row.size):
        rank = rank_of_slot[slot]
        for other in range(slot + 1, row.size):
            partner = rank_of_slot[other]
            if (
                rank != partner
                and row[slot] != row[other]
                and row[slot] not in held[partner]
                and row[other] not in held[rank]
            ):
                new = row.copy()
                new[slot], new[other] = row[other], row[slot]
                yield new
        if row[slot] == EMPTY_SLOT or np.count_nonzero(row == row[slot]) > 1:
            for expert in set(range(num_experts)) - held[rank]:
                new = row.copy()
                new[slot] = expert
                yield new


def best_merit(row, old, scaled, topology, num_experts, fee, room):
    """The largest (gain - fee * fetches) per fetch of all neighbours, by trying them all."""
    now, fetched, best = cost_of(row, scaled, topology), fetches_of(row, old, topology), 0.0
    for new in neighbours(row, topology, num_experts):
        more = fetches_of(new, old, topology) - fetched
        if more <= room:
            worth = now - cost_of(new, scaled, topology) - fee * more
            best = max(best, worth / (more if more > 0 else 0.5))
    return best


def descend(topology, num_experts, row, scaled, price, most):
    """The kernel on one layer: new map with -1 holes, its steps, their gains."""
    old = np.where(row == EMPTY_SLOT, num_experts, row).astype(np.int32)[None]
    new, steps, gains = np.empty_like(old), np.zeros((1, 200, 3), np.int64), np.zeros((1, 200))
    num_steps = np.zeros(1, np.int64)
    improve_layers(
        scaled[None], old, topology.rank_first_slot.copy(), topology.rank_of_slot.astype(np.int64),
        1 / topology.relative_speed, np.array([price]), np.array([most]), new, steps, gains, num_steps,
    )  # fmt: skip
    assert num_steps[0] < 200
    return np.where(new[0] == num_experts, EMPTY_SLOT, new[0]), steps[0, : num_steps[0]], gains[0, : num_steps[0]]


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize(("price", "most"), [(0.0, 99), (0.02, 99), (0.0, 2)])
def test_every_step_is_the_best_of_all_and_none_that_pays_is_left(seed, price, most):
    topology, num_experts, old, scaled = instance(seed)
    new, steps, gains = descend(topology, num_experts, old, scaled, price, most)
    room, row = most, old.copy()
    for (slot, target, fetches), gain in zip(steps.tolist(), gains, strict=True):
        fee = price * cost_of(row, scaled, topology)
        expected = best_merit(row, old, scaled, topology, num_experts, fee, room)
        before, fetched = cost_of(row, scaled, topology), fetches_of(row, old, topology)
        if target >= 0:
            row[slot] = target
        else:
            row[slot], row[-1 - target] = row[-1 - target], row[slot]
        assert fetches_of(row, old, topology) - fetched == fetches
        worth = before - cost_of(row, scaled, topology) - fee * fetches
        assert worth / (fetches if fetches > 0 else 0.5) == pytest.approx(expected, rel=1e-6)
        assert gain == pytest.approx(np.log(before / cost_of(row, scaled, topology)), abs=1e-9)
        room -= fetches
    assert row.tolist() == new.tolist()
    assert fetches_of(new, old, topology) <= most
    at_end = cost_of(new, scaled, topology)
    assert best_merit(new, old, scaled, topology, num_experts, price * at_end, room) <= 1e-6 * at_end


def drifted(seed=0, layers=3, experts=48, windows=16):
    rng = np.random.default_rng(seed)
    topics = rng.lognormal(0, 1, (3, layers, experts))
    mix = rng.dirichlet(np.ones(3), windows)
    return ExpertLoad(np.einsum("wk,kle->wle", mix, topics).round(3) * 100)


MACHINE = Topology(2, 4, 7)
LIVE = Placement([np.arange(56) % 48] * 3, 48, MACHINE)


def plan(load, **words):
    return IncrementalScenario(previous=LIVE, **words)(Problem(load, MACHINE))


def test_windows_get_better_balanced_and_few_copies_move():
    load = drifted()
    made = plan(load, price=0.02)
    migration = Migration.between(LIVE, made.placement)
    better, worse = (evaluate(p, load).max_over_mean.mean() for p in (made.placement, LIVE))
    assert better < 1 + (worse - 1) / 3
    assert migration.moved_copies < 56 * 3 / 3
    assert f"{migration.moved_copies} replicas moved" in made.notes[0]


def test_a_higher_price_moves_less():
    moved = [Migration.between(LIVE, plan(drifted(), price=p).placement).moved_copies for p in (0.0, 0.003, 0.03, 10)]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > moved[2] > moved[3] == 0


@pytest.mark.parametrize("budget", [0, 1, 2, 5, 11])
def test_a_budget_is_kept_and_its_gain_grows_with_it(budget):
    load = drifted()
    made = plan(load, max_moves=budget)
    assert Migration.between(LIVE, made.placement).moved_copies <= budget
    less = plan(load, max_moves=max(0, budget - 3))
    now, before = (evaluate(p.placement, load).max_over_mean.mean() for p in (made, less))
    assert now <= before + 1e-9


def test_an_idle_layer_stays_as_it_is():
    tokens = drifted().tokens.copy()
    tokens[:, 1] = 0
    made = plan(ExpertLoad(tokens))
    assert (made.placement.physical_to_logical_map[1] == LIVE.physical_to_logical_map[1]).all()
    assert (made.placement.physical_to_logical_map[0] != LIVE.physical_to_logical_map[0]).any()


def test_weights_of_windows_count():
    load = drifted(windows=2)
    sure = [
        evaluate(plan(ExpertLoad(load.tokens, [1 - w, w]), price=0.01, amplification=1.0).placement, load)
        .max_over_mean_by_window.mean(axis=1)
        for w in (0.001, 0.999)
    ]  # fmt: skip
    assert sure[0][0] < sure[1][0]
    assert sure[1][1] < sure[0][1]


def test_the_same_load_gives_the_same_bytes_and_its_scale_says_nothing():
    load = drifted()
    first = plan(load).placement
    assert plan(load).placement == first
    assert plan(ExpertLoad(load.tokens * 8)).placement == first


def test_a_load_that_was_planned_for_moves_nothing_more():
    load = drifted()
    made = plan(load).placement
    again = IncrementalScenario(previous=made)(Problem(load, MACHINE)).placement
    assert Migration.between(made, again).moved_copies <= Migration.between(LIVE, made).moved_copies // 4


def test_other_models_and_machines_are_refused():
    with pytest.raises(InputError, match="another model"):
        plan(drifted(experts=32))
    with pytest.raises(InputError, match="ranks and slots"):
        IncrementalScenario(previous=LIVE)(Problem(drifted(), Topology(2, 2, 14)))
    for words in ({"price": -1.0}, {"amplification": float("inf")}, {"max_moves": -1}):
        with pytest.raises(InputError, match=next(iter(words))):
            IncrementalScenario(previous=LIVE, **words)
