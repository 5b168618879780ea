"""The search: what it accepted lowers the cost that is added up from scratch, and the layout stays legal."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.strategies.step_time.expected_time_kernel import expected_seconds, fill_moments, num_moments
from eplb.strategies.step_time.search_kernel import search_layers
from tests.strategies.step_time.test_expected_time_kernel import FFN


def cost(held, rows, per_reference, first_slot, doublings) -> float:
    """Sum over ranks and loads of a power of the expected seconds, from the slots alone; id E gets no tokens."""
    num_experts, num_loads = rows.shape
    count = np.bincount(held, minlength=num_experts + 1)
    total = 0.0
    for first, last in pairwise(first_slot):
        for load in range(num_loads):
            sums = np.zeros(num_moments.py_func(FFN.table))
            moments = np.empty_like(sums)
            for expert in held[first:last]:
                if expert < num_experts:
                    fill_moments(rows[expert, load], count[expert], FFN.table, moments)
                    sums += moments
            total += (expected_seconds(sums, last - first, FFN.table) * per_reference[load]) ** 2**doublings
    return total


def start_map(rng, num_experts, slots, may_cool):
    """Experts in order, then random replicas of others than the rank holds, or none."""
    first_slot = np.concatenate([np.zeros(1, np.int64), np.cumsum(slots)])
    held = np.full(first_slot[-1], num_experts, dtype=np.int32)
    share = np.diff(num_experts * np.arange(len(slots) + 1) // len(slots))
    next_expert = 0
    for rank, own in enumerate(share):
        held[first_slot[rank] : first_slot[rank] + own] = np.arange(next_expert, next_expert + own)
        next_expert += own
    for slot in np.flatnonzero(held == num_experts):
        rank = np.searchsorted(first_slot, slot, side="right") - 1
        others = np.setdiff1d(np.arange(num_experts), held[first_slot[rank] : first_slot[rank + 1]])
        if not (may_cool and rng.random() < 0.5):
            held[slot] = rng.choice(others)
    return held, first_slot


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    slots=st.lists(st.integers(3, 5), min_size=2, max_size=5),
    num_loads=st.integers(1, 2),
    may_cool=st.booleans(),
    doublings=st.sampled_from([2, 4, 5]),
)
def test_the_search_lowers_the_cost_and_keeps_the_layout_legal(seed, slots, num_loads, may_cool, doublings):
    rng = np.random.default_rng(seed)
    num_experts = 3 * len(slots) - int(rng.integers(0, len(slots)))
    rows = rng.lognormal(3, 1, (num_experts, num_loads))
    start, first_slot = start_map(rng, num_experts, slots, may_cool)
    per_reference = np.full(num_loads, 1e4)
    before = cost(start, rows, per_reference, first_slot, doublings)
    for num_tries in (1, 2, 3, 300):  # after few steps, a wrong sum would show
        held = start[None].copy()
        search_layers(
            np.pad(rows, ((0, 1), (0, 0)))[None], per_reference[None], FFN.table, first_slot,
            np.repeat(np.arange(len(slots)), slots), doublings, num_tries, seed, 0, may_cool, held,
        )  # fmt: skip
        (found,) = held
        assert set(range(num_experts)) <= set(found.tolist()) <= set(range(num_experts + may_cool))
        for first, last in pairwise(first_slot):
            hot = found[first:last][found[first:last] < num_experts]
            assert len(set(hot.tolist())) == hot.size
        after = cost(found, rows, per_reference, first_slot, doublings)
        assert after < before * (1 - 1e-10) or (found == start).all()


def test_a_worse_map_has_a_higher_cost():
    rows = np.array([[90.0], [80.0], [5.0], [4.0]])
    first_slot = np.array([0, 2, 4])
    even, uneven = (cost(np.array(row), rows, np.full(1, 1e4), first_slot, 4) for row in ([0, 2, 1, 3], [0, 1, 2, 3]))
    assert even < uneven
