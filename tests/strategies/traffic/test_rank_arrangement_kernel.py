"""Replicas on ranks: visits and load against counting in plain numpy; the map stays a placement."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb.strategies.traffic.rank_arrangement_kernel import arrange_replicas
from eplb.strategies.traffic.token_lists_kernel import choices_among, expected_visits


def shares_of(row, num_experts, rank_of_slot, num_ranks):
    share = np.zeros((num_experts, num_ranks))
    np.add.at(share, (row, rank_of_slot), 1 / np.bincount(row, minlength=num_experts)[row])
    return share


def visits_of(ids, share):
    return (1 - np.prod(1 - share[ids], axis=1)).sum()


@st.composite
def cases(draw):
    num_ranks, per_rank = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    num_slots = num_ranks * per_rank
    num_experts = draw(st.integers(max(3, per_rank), num_slots))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = np.stack([random.permutation(num_experts)[:3] for _ in range(30)]).astype(np.uint16)
    row, held = np.full(num_slots, -1), [set() for _ in range(num_ranks)]
    order = np.r_[np.arange(num_experts), np.arange(num_slots - num_experts) % num_experts]
    for slot, expert in zip(np.arange(num_slots).reshape(num_ranks, -1).T.ravel(), order, strict=True):
        row[slot] = expert
        held[slot // per_rank].add(int(expert))
    if any(len(experts) < per_rank for experts in held):  # a duplicate: rotate by one expert a rank instead
        row = (np.arange(num_slots) % num_experts).astype(int)
    return ids, row.astype(np.int32), num_experts, num_ranks, per_rank


@given(cases(), st.integers(0, 60), st.floats(1.0, 1.5))
def test_claims_hold_and_the_map_stays_a_placement(case, steps, slack):
    ids, start, num_experts, num_ranks, per_rank = case
    rank_of_slot = np.arange(start.size) // per_rank
    load = np.bincount(ids.ravel(), minlength=num_experts).astype(float)
    cap = np.full(num_ranks, load.sum() / num_ranks * slack)
    first, choice = choices_among(ids, np.arange(num_experts, dtype=np.int32), 1)
    row = start.copy()
    visits, over = arrange_replicas(
        first, choice, load, np.arange(num_ranks + 1) * per_rank, cap, steps, np.uint64(2), row
    )
    share = shares_of(row, num_experts, rank_of_slot, num_ranks)
    assert abs(visits - visits_of(ids, share)) < 1e-6
    excess = np.maximum(0, load @ share / cap - 1).sum()
    assert abs(over - excess) < 1e-9
    assert (np.bincount(row, minlength=num_experts) > 0).all()
    assert all(len(set(slots)) == per_rank for slots in row.reshape(num_ranks, -1))
    before = shares_of(start, num_experts, rank_of_slot, num_ranks)
    start_excess = np.maximum(0, load @ before / cap - 1).sum()
    assert excess <= start_excess + 1e-9
    if start_excess == 0:
        assert visits <= visits_of(ids, before) + 1e-6


@given(cases())
def test_expected_visits_against_numpy(case):
    ids, row, num_experts, num_ranks, per_rank = case
    share = shares_of(row, num_experts, np.arange(row.size) // per_rank, num_ranks)
    assert abs(expected_visits(ids, share) - visits_of(ids, share)) < 1e-9


def test_tokens_with_few_choices_among_some_experts_are_left_out():
    ids = np.array([[0, 1, 2], [3, 4, 0], [3, 4, 5]], np.uint16)
    local_id = np.array([0, 1, -1, 2, -1, -1], np.int32)  # experts 0, 1 and 3
    first, choice = choices_among(ids, local_id, 2)
    assert first.tolist() == [0, 2, 4]
    assert choice.tolist() == [0, 1, 2, 0]
    first, choice = choices_among(ids, local_id, 1)
    assert first.tolist() == [0, 2, 4, 5]
