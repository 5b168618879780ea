"""Redundancy by layer: the spending against brute force, and what the plan owes to its user and to the formats."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eplb
from eplb.core.placement import EMPTY_SLOT
from eplb.errors import FormatError, InfeasibleError, InputError
from eplb.formats import FORMATS
from eplb.planning.redundancy_budget import plan_with_budget, spend
from tests.oracles import busiest_time, hands_of

COSTS = st.integers(1, 4).flatmap(
    lambda steps: st.lists(st.lists(st.integers(0, 20), min_size=steps, max_size=steps), min_size=1, max_size=4)
)


@given(costs=COSTS, budget=st.integers(0, 12))
def test_spending_is_as_good_as_trying_everything_and_wastes_nothing(costs, budget):
    ways = product(range(len(costs[0])), repeat=len(costs))
    best = min(
        (sum(row[step] for row, step in zip(costs, way, strict=True)), sum(way)) for way in ways if sum(way) <= budget
    )
    steps = spend(np.array(costs, dtype=np.float64), budget).tolist()
    assert (sum(row[step] for row, step in zip(costs, steps, strict=True)), sum(steps)) == best


def skewed_load():
    """Four layers of 16 experts: two even ones, two in which one expert has half of all tokens."""
    even, skewed = np.full(16, 10.0), np.full(16, 10.0)
    skewed[3] = 150
    return eplb.ExpertLoad([even, skewed, even, skewed])


def test_layers_that_gain_get_the_slots():
    # 4 ranks; 4 slots hold 16 experts, so a slot more on every rank costs 4 redundant experts.
    made = plan_with_budget(skewed_load(), eplb.Topology(1, 4, 6), 8)
    filled = (made.placement.physical_to_logical_map != EMPTY_SLOT).sum(axis=1)
    assert filled.tolist() == [16, 20, 16, 20]
    assert made.notes[0] == "budget by layer: 8 redundant experts spent; 4 slots: 2 layers, 5 slots: 2 layers"
    # Alike, 8 redundant experts over 4 layers pay for none: 40, 180, 40, 180. With one slot more the 150 is split over
    # the 4 ranks and one copy of another expert is left: 300 / 4 = 75 at least.
    assert made.notes[1].endswith("alike, 440")
    assert sum(layer.objective for layer in made.layers) < 40 + 80 + 40 + 80


@given(
    seed=st.integers(0, 2**32 - 1),
    num_experts=st.integers(2, 8),
    num_ranks=st.integers(1, 4),
    total=st.integers(0, 40),
    speeds=st.booleans(),
)
def test_every_layer_fills_the_same_slots_of_every_rank_and_its_certificate_holds(
    seed, num_experts, num_ranks, total, speeds
):
    rng = np.random.default_rng(seed)
    load = eplb.ExpertLoad(rng.lognormal(0, 2, (3, num_experts)))
    speed = rng.choice([0.5, 1.0], num_ranks).tolist() if speeds else None
    topology = eplb.Topology(1, num_ranks, num_experts, speed)
    least = -(-num_experts // num_ranks)
    forced = 3 * (least * num_ranks - num_experts)
    made = plan_with_budget(load, topology, forced + total)
    spent = 0
    for layer, certificate in enumerate(made.layers):
        hands = hands_of(made.placement, layer)
        (size,) = {sum(expert != EMPTY_SLOT for expert in hand) for hand in hands}
        assert all(expert == EMPTY_SLOT for hand in hands for expert in hand[size:])
        spent += size * num_ranks - num_experts
        held = [hand[:size] for hand in hands]
        assert certificate.objective == pytest.approx(busiest_time(held, load.total[layer], speed), rel=1e-9)
        own = eplb.plan(
            eplb.ExpertLoad(load.total[layer][None]), eplb.Topology(1, num_ranks, size, speed), "greedy"
        ).layers[0]
        assert certificate == own
    assert spent <= forced + total
    judged = eplb.evaluate(made.placement, load).rank_load[0] / topology.relative_speed
    assert judged.max(axis=1) == pytest.approx([layer.objective for layer in made.layers], rel=1e-9)


def test_more_budget_is_never_worse():
    rng = np.random.default_rng(1)
    load = eplb.ExpertLoad(rng.lognormal(0, 1.5, (6, 32)))
    topology = eplb.Topology(1, 8, 8)
    sums = [
        sum(layer.objective for layer in plan_with_budget(load, topology, budget).layers) for budget in range(0, 192, 8)
    ]
    assert sums == sorted(sums, reverse=True)


def test_a_budget_that_does_not_fill_the_ranks_is_infeasible():
    load = eplb.ExpertLoad(np.ones((3, 5)))
    with pytest.raises(
        InfeasibleError, match="redundant = 2 over all layers: 5 experts on 2 ranks take 3 slots a rank"
    ):
        plan_with_budget(load, eplb.Topology(1, 2, 4), 2)
    assert plan_with_budget(load, eplb.Topology(1, 2, 4), 3).notes[0].startswith("budget by layer: 3 ")


def test_unequal_ranks_are_refused():
    with pytest.raises(InputError, match="a budget by layer needs equal ranks"):
        plan_with_budget(eplb.ExpertLoad([[1.0, 1]]), eplb.Topology(1, 2, [1, 2]), 1)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in {"native", "omni"}])
def test_formats_without_a_hole_refuse_unequal_layers(name, tmp_path):
    made = plan_with_budget(skewed_load(), eplb.Topology(1, 4, 6), 8)
    with pytest.raises(FormatError, match=r"is empty \(-1\).*as many redundant ones in every layer"):
        eplb.write_placement(made, tmp_path / f"plan{SUFFIXES.get(name, '.json')}", format=name)


SUFFIXES = {"trtllm": ".yaml", "deepseek": ".npz"}


def test_the_native_format_keeps_unequal_layers(tmp_path):
    made = plan_with_budget(skewed_load(), eplb.Topology(1, 4, 6), 8)
    eplb.write_placement(made, tmp_path / "plan.json", format="native")
    assert eplb.read_placement(tmp_path / "plan.json") == made.placement
