"""Routers against hand-worked choices and plain loops."""

import pytest
import torch

from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.runtime import (
    GroupLimit,
    HashGate,
    PlacementTables,
    SigmoidGroupGate,
    SoftmaxGate,
    hash_table,
    rank_limited_top_k,
)
from eplb.runtime.layer.gate import best, sigmoid_group_top_k, softmax_top_k


def test_softmax_weights_by_hand_and_ties_go_to_the_lowest_id():
    logits = torch.log(torch.tensor([[1.0, 3.0, 3.0, 1.0]]))  # probabilities 1/8, 3/8, 3/8, 1/8
    ids, weights = softmax_top_k(logits, 3, normalise=False)
    assert ids.tolist() == [[1, 2, 0]]
    assert torch.allclose(weights, torch.tensor([[3 / 8, 3 / 8, 1 / 8]]))
    _, weights = softmax_top_k(logits, 3, normalise=True)
    assert torch.allclose(weights, torch.tensor([[3 / 7, 3 / 7, 1 / 7]]))


def test_the_bias_changes_the_choice_and_not_the_weights():
    logits, bias = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    ids, weights = sigmoid_group_top_k(logits, bias, 2, GroupLimit(), scale=2.5)
    # Biased scores 0.88, 0.73, 0.5, 1.27: experts 3 and 0, weighed by sigmoid(-1) and sigmoid(2).
    assert ids.tolist() == [[3, 0]]
    scores = logits.sigmoid()[0, [3, 0]]
    assert torch.allclose(weights, (scores / scores.sum() * 2.5)[None])


def _group_limited(scores, bias, top_k, num_groups, top_k_groups):
    """DeepSeek-V3's rule, one token."""
    size = len(scores) // num_groups
    biased = [score + extra for score, extra in zip(scores, bias, strict=True)]
    group_score = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(num_groups)]
    groups = sorted(range(num_groups), key=lambda g: (-group_score[g], g))[:top_k_groups]
    allowed = [e for e in range(len(scores)) if e // size in groups]
    return sorted(allowed, key=lambda e: (-biased[e], e))[:top_k]


@pytest.mark.parametrize(("num_groups", "top_k_groups", "top_k"), [(4, 2, 5), (8, 4, 8), (1, 1, 3), (16, 3, 3)])
def test_group_limited_choice_equals_a_plain_loop(num_groups, top_k_groups, top_k):
    generator = torch.Generator().manual_seed(0)
    logits, bias = torch.randn((50, 32), generator=generator), torch.randn(32, generator=generator) / 3
    ids, weights = sigmoid_group_top_k(logits, bias, top_k, GroupLimit(num_groups, top_k_groups))
    for token in range(50):
        scores = logits[token].sigmoid()
        expected = _group_limited(scores.tolist(), bias.tolist(), top_k, num_groups, top_k_groups)
        assert ids[token].tolist() == expected
        assert torch.allclose(weights[token], scores[expected] / scores[expected].sum())


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="equal groups"):
        sigmoid_group_top_k(torch.zeros((1, 10)), torch.zeros(10), 2, GroupLimit(4, 2))
    with pytest.raises(InputError, match="at least top_k = 6"):
        sigmoid_group_top_k(torch.zeros((1, 8)), torch.zeros(8), 6, GroupLimit(4, 2))
    with pytest.raises(InputError, match="top_k_groups = 5"):
        GroupLimit(4, 5)


@pytest.mark.parametrize("top_k", [0, 5])
def test_more_choices_than_experts_are_refused(top_k):
    with pytest.raises(InputError, match=f"top_k = {top_k}: expected 1 to 4, the router's experts"):
        SoftmaxGate(torch.ones((4, 8)), top_k)


def test_gates_route_by_their_router():
    router = torch.eye(4)
    x = torch.tensor([[0.0, 5.0, 0.0, 1.0]])
    assert SoftmaxGate(router, 2)(x, torch.zeros(1)).expert_ids_TK.tolist() == [[1, 3]]
    gate = SigmoidGroupGate(router, torch.zeros(4), 2, GroupLimit(2, 1))
    # Group sums: sigmoid(0) + sigmoid(5) = 1.49 for the first, sigmoid(0) + sigmoid(1) = 1.23 for the second.
    assert gate(x, torch.zeros(1)).expert_ids_TK.tolist() == [[1, 0]]


def test_hash_routing_depends_on_token_ids_only_and_is_balanced_without_duplicates():
    table = hash_table(32 * 5, num_experts=32, top_k=6, seed=3)
    assert torch.equal(table, hash_table(32 * 5, num_experts=32, top_k=6, seed=3))
    assert (table.sort(dim=1).values.diff(dim=1) > 0).all()
    assert torch.bincount(table.reshape(-1)).tolist() == [30] * 32
    gate = HashGate(torch.randn(32, 8), table)
    tokens = torch.tensor([7, 40, 7])
    ids, weights = gate(torch.randn(3, 8), tokens)
    assert torch.equal(ids, table[tokens])
    assert torch.allclose(weights.sum(dim=1), torch.ones(3))
    with pytest.raises(InputError, match="top_k = 9"):
        hash_table(10, num_experts=8, top_k=9)


@pytest.mark.parametrize("max_ranks", [1, 2, 4])
def test_rank_limited_tokens_use_few_ranks_and_the_best_experts_there(max_ranks):
    topology = Topology(1, 4, 3)
    placement = Placement([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, -1]], 8, topology)
    tables = PlacementTables(placement)
    scores = torch.rand((60, 8), generator=torch.Generator().manual_seed(2))
    (ids, weights), slots = rank_limited_top_k(scores, tables, 0, top_k=4, max_ranks=max_ranks)
    held = [set(placement.physical_to_logical_map[0, r * 3 : r * 3 + 3].tolist()) - {-1} for r in range(4)]
    for token in range(60):
        score = scores[token].tolist()
        ranks = sorted(range(4), key=lambda r: (-max(score[e] for e in held[r]), r))[:max_ranks]
        allowed = set().union(*(held[r] for r in ranks))
        expected = sorted(allowed, key=lambda e: -score[e])[:4]
        found = [e for e in ids[token].tolist() if e >= 0]
        assert found == expected
        chosen = slots[token][ids[token] >= 0].tolist()
        assert {slot // 3 for slot in chosen} <= set(ranks)
        assert placement.physical_to_logical_map[0, chosen].tolist() == found
        assert (slots[token][ids[token] < 0] == -1).all()
        assert weights[token].sum() == pytest.approx(1)


def test_a_limit_of_zero_ranks_is_refused():
    tables = PlacementTables(Placement([[0, 1]], 2, Topology(1, 2, 1)))
    with pytest.raises(InputError, match="max_ranks = 3"):
        rank_limited_top_k(torch.rand((1, 2)), tables, 0, top_k=1, max_ranks=3)


def test_equal_scores_go_to_the_lowest_id():
    assert best(torch.zeros((2, 300)), 5).tolist() == [[0, 1, 2, 3, 4]] * 2
