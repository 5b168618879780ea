"""Shares of pairs on one rank or node, against an enumeration of every choice of replicas."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.evaluation.pair_locality import share_inside_nodes, share_inside_ranks
from eplb_traces.coactivation.layer_coactivation import CoActivation
from tests.generators import placements


def coactivation_of(num_experts, pairs, layer=0, num_tokens=1000):
    """A table from {(expert, other): tokens}; each expert has as many tokens as its pairs ask for."""
    table = np.zeros((num_experts, num_experts), dtype=np.int64)
    for (expert, other), tokens in pairs.items():
        table[expert, other] = table[other, expert] = tokens
    np.fill_diagonal(table, table.sum(axis=1))
    return CoActivation(layer, table, num_tokens)


def enumerated(placement, pairs, layer, place_of_rank, weights):
    """Share of pairs in one place: every replica of one expert with every replica of the other, by their weights."""
    phy2log, rank_of_slot = placement.physical_to_logical_map[layer], placement.topology.rank_of_slot
    together = total = 0.0
    for expert, other in combinations(range(placement.num_experts), 2):
        total += pairs[expert, other]
        for slot, mate in product(np.flatnonzero(phy2log == expert), np.flatnonzero(phy2log == other)):
            if place_of_rank[rank_of_slot[slot]] == place_of_rank[rank_of_slot[mate]]:
                together += pairs[expert, other] * weights[slot] * weights[mate]
    return together / total


def even_weights(placement, layer):
    phy2log = placement.physical_to_logical_map[layer]
    return np.array([0 if expert < 0 else 1 / (phy2log == expert).sum() for expert in phy2log])


@given(placements(holes=True, weights=True), st.integers(0, 2**32 - 1))
def test_shares_are_those_of_every_choice_of_replicas(placement, seed):
    rng = np.random.default_rng(seed)
    layer = int(rng.integers(placement.num_layers))
    names = combinations(range(placement.num_experts), 2)
    table = coactivation_of(placement.num_experts, {name: int(rng.integers(0, 9)) for name in names}, layer)
    ranks = np.arange(placement.topology.num_ranks)
    for judge, place in ((share_inside_ranks, ranks), (share_inside_nodes, placement.topology.node_of_rank)):
        if table.num_pairs == 0:
            assert np.isnan(judge(placement, table)).all()
            continue
        for pairs, found in zip((table.pairs, table.expected_pairs), judge(placement, table), strict=True):
            assert found == pytest.approx(enumerated(placement, pairs, layer, place, even_weights(placement, layer)))
        if placement.replica_weights is not None:
            weights = placement.replica_weights[layer]
            expected = enumerated(placement, table.pairs, layer, place, weights)
            assert judge(placement, table, "weighted").observed == pytest.approx(expected)


def test_friends_on_one_rank_by_hand():
    # Pairs 01: 6, 23: 3, 02: 1. Ranks {0, 1} and {2, 3}: 9 of 10 pairs are on one rank; {0, 2} and {1, 3}: 1 of 10.
    table = coactivation_of(4, {(0, 1): 6, (2, 3): 3, (0, 2): 1})
    machine = Topology(1, 2, 2)
    assert share_inside_ranks(Placement([[0, 1, 2, 3]], 4, machine), table).observed == pytest.approx(0.9)
    assert share_inside_ranks(Placement([[0, 2, 1, 3]], 4, machine), table).observed == pytest.approx(0.1)
    assert share_inside_nodes(Placement([[0, 2, 1, 3]], 4, machine), table).observed == pytest.approx(1)
    # Without redundant experts a rank is a group of experts.
    assert share_inside_ranks(Placement([[0, 1, 2, 3]], 4, machine), table) == table.share_inside([0, 0, 1, 1])


def test_a_replica_that_is_elsewhere_halves_the_share():
    # Expert 0 on both ranks, 1 on the first: a token's choice of 0 is with its choice of 1 half of the time.
    table = coactivation_of(3, {(0, 1): 8})
    placement = Placement([[0, 1, 0, 2]], 3, Topology(1, 2, 2))
    assert share_inside_ranks(placement, table).observed == pytest.approx(0.5)


def test_a_placement_for_another_model_is_refused():
    placement = Placement([[0, 1]], 2, Topology(1, 2, 1))
    for judge in (share_inside_ranks, share_inside_nodes):
        with pytest.raises(InputError, match="pairs of 3 experts: the placement has 2"):
            judge(placement, coactivation_of(3, {(0, 1): 1}))
        for layer in (1, 4):
            with pytest.raises(InputError, match=f"pairs of layer {layer}: the placement has 1 layers"):
                judge(placement, coactivation_of(2, {(0, 1): 1}, layer=layer))
        with pytest.raises(InputError, match="its shares depend"):
            judge(placement, coactivation_of(2, {(0, 1): 1}), "online")
        with pytest.raises(InputError, match="carries no replica_weights"):
            judge(placement, coactivation_of(2, {(0, 1): 1}), "weighted")
