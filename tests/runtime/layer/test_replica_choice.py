"""Replica rules against plain loops, and rows per slot against the expectation of the evaluation."""

import numpy as np
import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.dispatch.engine_rules import expected_slot_load, rank_slot_map
from eplb.errors import InputError
from eplb.runtime import PlacementTables, TokenSource, choose_slots, online_quotas
from eplb.runtime.layer.replica_choice import no_quotas
from eplb.runtime.layer.routing import source_counts
from tests.runtime import cases

_M32 = 0xFFFFFFFF


def _hash(index, rank, epoch, k):
    """Murmur3's finaliser in Python's integers."""

    def mixed(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _M32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _M32
        return x ^ (x >> 16)

    return mixed((mixed((index * 0x9E3779B1 + rank * 0x85EBCA77 + epoch * 0xC2B2AE3D) & _M32) + k * 0x27D4EB2F) & _M32)


def _loop(case, epoch):  # noqa: C901  # one branch a rule
    """One selection after the other, straight from the words of each rule."""
    placement, topology = case.placement, case.placement.topology
    chosen = []
    arrived, online_left = {}, None
    if case.rule is DispatchRule.ONLINE:
        online_left = _online_queues(case)
    for rank, num_tokens in enumerate(case.tokens_of_rank):
        first = sum(case.tokens_of_rank[:rank])
        for index in range(num_tokens):
            row = []
            for k, expert in enumerate(case.ids_TK[first + index].tolist()):
                if expert < 0:
                    row.append(-1)
                    continue
                slots = [s for s in placement.logical_to_physical_map[0, expert].tolist() if s >= 0]
                number = _hash(index, rank, epoch, k)
                match case.rule:
                    case DispatchRule.EVEN:
                        slot = slots[number * len(slots) >> 32]
                    case DispatchRule.WEIGHTED:
                        bounds = np.floor(np.cumsum(placement.replica_weights[0, slots]) * 2**32)
                        bounds[max(i for i, s in enumerate(slots) if placement.replica_weights[0, s] > 0) :] = 2**32
                        slot = slots[int((number >= bounds).sum())]
                    case DispatchRule.LOCAL_FIRST:
                        own = [s for s in slots if topology.rank_of_slot[s] == rank][:1]
                        node = topology.node_of_rank
                        near = [s for s in slots if node[topology.rank_of_slot[s]] == node[rank]]
                        among = own or near or slots
                        slot = among[number * len(among) >> 32]
                    case DispatchRule.SGLANG_DYNAMIC:
                        own = [s for s in slots if topology.rank_of_slot[s] == rank]
                        node = topology.node_of_rank
                        near = [s for s in slots if node[topology.rank_of_slot[s]] == node[rank]]
                        among = own[:1] or (near[:1] if len(near) < len(slots) else []) or slots
                        slot = among[number * len(among) >> 32]
                    case DispatchRule.SGLANG_BY_ROW:
                        slot = slots[index % len(slots)]
                    case DispatchRule.VLLM:
                        slot = slots[(index * 2654435769 & _M32) % len(slots)]
                    case DispatchRule.ASCEND:
                        slot = slots[rank % len(slots)]
                    case DispatchRule.SGLANG_STATIC:
                        slot = rank_slot_map(placement, case.rule)[0, rank, expert]
                    case DispatchRule.TRTLLM:
                        block = (index * case.ids_TK.shape[1] + k) // 1024
                        place = arrived.get((rank, block, expert), 0)
                        arrived[rank, block, expert] = place + 1
                        slot = slots[(rank + block + place) % len(slots)]
                    case DispatchRule.ONLINE:
                        slot = online_left[rank, expert].pop(0)
                row.append(int(slot))
            chosen.append(row)
    return torch.tensor(chosen, dtype=torch.int64).view(case.ids_TK.shape)


def _online_queues(case):
    """Slots in the order in which each rank's tokens of an expert use them up."""
    tables = PlacementTables(case.placement, case.rule)
    quota = online_quotas(source_counts(case.ids_TK, _source(case), tables), tables, 0)
    return {
        (rank, expert): [
            int(slot)
            for slot, n in zip(tables.log2phy_LEX[0, expert], quota[rank, expert], strict=True)
            for _ in range(int(n))
        ]
        for rank in range(quota.shape[0])
        for expert in range(quota.shape[1])
    }


def _source(case):
    return TokenSource.consecutive(0, case.tokens_of_rank, "cpu")


def _chosen(case, epoch=0):
    tables = PlacementTables(case.placement, case.rule)
    tables.epoch_L += epoch
    quota = no_quotas("cpu")
    if case.rule is DispatchRule.ONLINE:
        quota = online_quotas(source_counts(case.ids_TK, _source(case), tables), tables, 0)
    return choose_slots(case.ids_TK, _source(case), tables, 0, quota)


@pytest.mark.parametrize("rule", list(DispatchRule))
def test_each_rule_equals_a_plain_loop(rule):
    for seed in range(list(DispatchRule).index(rule), 180, len(DispatchRule)):
        case = cases.make_case(seed)
        assert case.rule is rule
        assert torch.equal(_chosen(case, epoch=seed % 3), _loop(case, seed % 3)), seed


def _big_case(rule, tokens=4000):
    """Two nodes of two ranks; expert 0 three times, expert 1 twice."""
    topology = Topology(2, 2, 2)
    placement = Placement([[0, 1, 2, 0, 0, 3, 1, 4]], 5, topology, [[0.5, 0.25, 1, 0.5, 0, 1, 0.75, 1]])
    generator = torch.Generator().manual_seed(1)
    ids = torch.rand((tokens, 5), generator=generator).argsort(dim=1)[:, :2]
    counts = [tokens // 2, tokens // 4, 0, tokens // 4]
    nothing = torch.empty(0)
    return cases.Case(placement, rule, counts, ids, nothing, nothing, nothing)


@pytest.mark.parametrize("rule", list(DispatchRule))
def test_slots_get_the_rows_that_the_evaluation_expects(rule):
    case = _big_case(rule)
    tables = PlacementTables(case.placement, rule)
    counts = source_counts(case.ids_TK, _source(case), tables).numpy()
    found = torch.bincount(_chosen(case).reshape(-1), minlength=8).numpy()
    expected = expected_slot_load(case.placement, 0, counts, rule)
    assert found.sum() == pytest.approx(expected.sum()) == 8000
    exact = rule in (DispatchRule.ONLINE, DispatchRule.ASCEND, DispatchRule.SGLANG_STATIC)
    assert np.abs(found - expected).max() <= (0 if exact else 200)  # five standard deviations of 1600 fair coins: 100


def test_a_round_robin_over_several_kernel_blocks_equals_a_plain_loop():
    case = _big_case(DispatchRule.TRTLLM, tokens=3000)
    assert torch.equal(_chosen(case), _loop(case, 0))


def test_online_balances_ranks_that_even_shares_do_not():
    even, online = (
        torch.bincount(_chosen(_big_case(rule)).reshape(-1), minlength=8).view(4, 2).sum(dim=1)
        for rule in (DispatchRule.EVEN, DispatchRule.ONLINE)
    )
    assert online.max() < even.max()
    assert online.max() - online.min() <= 1600  # experts 2, 3, 4 stay where they are


def test_another_epoch_gives_other_choices():
    case = _big_case(DispatchRule.EVEN)
    assert not torch.equal(_chosen(case), _chosen(case, epoch=1))


def test_an_expert_without_a_replica_raises():
    case = _big_case(DispatchRule.EVEN)
    tables = PlacementTables(case.placement)
    tables.logcnt_LE[0, 2] = 0
    with pytest.raises(InputError, match="layer 0, expert 2: selected"):
        choose_slots(case.ids_TK, _source(case), tables, 0, no_quotas("cpu"))


def test_an_expert_that_does_not_exist_or_a_source_of_other_tokens_raises():
    case = _big_case(DispatchRule.EVEN)
    tables, num_experts = PlacementTables(case.placement), case.placement.num_experts
    with pytest.raises(InputError, match=f"layer 0, expert {num_experts}: the tables hold {num_experts}"):
        choose_slots(case.ids_TK.clone().fill_(num_experts), _source(case), tables, 0, no_quotas("cpu"))
    with pytest.raises(InputError, match=f"source of {len(case.ids_TK)} tokens: expected 1, as the batch"):
        choose_slots(case.ids_TK[:1], _source(case), tables, 0, no_quotas("cpu"))


def test_tokens_of_a_process_are_divided_evenly_over_its_ranks():
    source = TokenSource.divided(range(2, 5), 7, "cpu")  # 7/3: 2, 2, 3 tokens
    assert source.rank_T.tolist() == [2, 2, 3, 3, 4, 4, 4]
    assert source.index_T.tolist() == [0, 1, 0, 1, 0, 1, 2]
    assert TokenSource.divided(range(1), 0, "cpu").rank_T.tolist() == []
