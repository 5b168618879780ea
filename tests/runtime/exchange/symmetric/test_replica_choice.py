"""The replica choice on the device equals `choose_slots`, bit by bit, in Triton's interpreter."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.runtime import (
    GateChoice,
    Launch,
    PlacementTables,
    RankGroup,
    TokenSource,
    choose_slots,
    online_quotas,
    route,
    run_processes,
)
from eplb.runtime.kernels.online_quotas import online_quotas_on_device
from eplb.runtime.kernels.replica_choice import DEVICE_RULES, choose_slots_on_device
from eplb.runtime.layer.device_route import device_slots, host_reason
from eplb.runtime.layer.replica_choice import no_quotas

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def _tables(rule, seed=0):
    """Two nodes of two ranks, experts with one to four replicas, weights, an empty slot."""
    rng = np.random.default_rng(seed)
    row = rng.permutation(np.concatenate([np.arange(10), [1, 1, 4, 5, 7, -1, 1, 4, 2, 2]]))
    share = np.where(row >= 0, rng.random(row.size), 0)
    share /= np.bincount(row.clip(0), share, 10)[row.clip(0)]
    return PlacementTables(Placement(row[None], 10, Topology(2, 2, 5), np.where(row >= 0, share, 0)[None]), rule)


def _wrong(_, argument):
    wrong = []
    for rule in DEVICE_RULES:
        for seed in range(2):
            tables = _tables(rule, seed)
            generator = torch.Generator().manual_seed(seed)
            ids = torch.rand((130, 10), generator=generator).argsort(dim=1)[:, :3]
            ids[torch.rand(ids.shape, generator=generator) < 0.1] = -1
            source = TokenSource.consecutive(0, [40, 0, 61, 29], "cpu")
            for epoch in (0, 1, 2**31 + 5):
                tables.epoch_L[0] = epoch
                out = torch.full(ids.shape, -7)
                choose_slots_on_device(ids, source, tables, 0, out)
                if not torch.equal(out, choose_slots(ids, source, tables, 0, no_quotas("cpu"))):
                    wrong.append(f"{rule}, seed {seed}, epoch {epoch}")
            tables.logcnt_LE[0, 3] = 0
            choose_slots_on_device(ids, source, tables, 0, out)
            if not (out[ids == 3] == 20).all() or (out[ids != 3] == 20).any():
                wrong.append(f"{rule}: an expert without a replica")
    return wrong


def test_the_slots_equal_those_of_choose_slots(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_processes(Launch(1), _wrong, None) == [[]]


def _wrong_turns(_, argument):
    """Ranks with more than the 1024 selections that are numbered together, which end inside a token."""
    tables, counts = _tables(DispatchRule.TRTLLM), [700, 30]
    ids = torch.rand((730, 10), generator=torch.Generator().manual_seed(0)).argsort(dim=1)[:, :3]
    source, out = TokenSource.consecutive(1, counts, "cpu"), torch.empty_like(ids)
    choose_slots_on_device(ids, source, tables, 0, out)
    return int((out != choose_slots(ids, source, tables, 0, no_quotas("cpu"))).sum())


def test_a_round_robin_starts_anew_after_1024_selections_of_a_rank(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_processes(Launch(1), _wrong_turns, None) == [0]


def _wrong_quotas(_, argument):
    """Seeds with quotas unlike those of the host: few and many tokens, ranks and experts without any."""
    wrong = []
    for seed in range(4):
        tables = _tables(DispatchRule.ONLINE, seed)
        counts = (
            np.random.default_rng(seed).poisson([0.3, 3, 40, 1000][seed], (4, 10)) * (np.arange(4) != seed)[:, None]
        )
        counts_RE = torch.from_numpy(counts)
        counts_RE[:, seed] = 0
        if not torch.equal(online_quotas_on_device(counts_RE, tables, 0), online_quotas(counts_RE, tables, 0)):
            wrong.append(seed)
    return wrong


def _of_missing_experts(_member, _):
    """{rule: slots} of experts 0, 6 and 7 of the first of two layers, which hold six experts on eight slots."""
    slots, share = [[0, 1, 2, 3, 4, 0, 1, 5], [5, 4, 3, 2, 1, 0, 0, -1]], [[0.5, 0.5, 1, 1, 1, 0.5, 0.5, 1]] * 2
    share[1] = [1, 1, 1, 1, 1, 0.5, 0.5, 0]
    ids, source = torch.tensor([[0, 6], [7, -1]]), TokenSource.consecutive(0, [2], "cpu")
    found = {}
    for rule in DEVICE_RULES:
        tables = PlacementTables(Placement(slots, 6, Topology(1, 2, 4), share), rule)
        out = torch.full(ids.shape, -7)
        choose_slots_on_device(ids, source, tables, 0, out)
        found[rule.value] = (out[0, 0] in (0, 5), out.flatten()[1:].tolist())
    return found


def test_an_expert_that_does_not_exist_gets_a_slot_that_no_exchange_accepts(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (found,) = run_processes(Launch(1), _of_missing_experts, None)
    assert found == {rule.value: (True, [8, 8, -1]) for rule in DEVICE_RULES}


def test_online_quotas_equal_those_of_the_host(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_processes(Launch(1), _wrong_quotas, None) == [[]]


def _on_many_ranks(member, _):
    """The reasons of tables with few and with many ranks, and whether the host's choice takes the kernels' place."""
    few = _tables(DispatchRule.ONLINE)
    row = np.concatenate([np.arange(200), np.zeros(56, dtype=np.int64)])  # 128 ranks x 2 slots, up to 57 replicas
    many = PlacementTables(Placement(row[None], 200, Topology(1, 128, 2)), DispatchRule.ONLINE)
    choice = GateChoice(torch.arange(40).view(10, 4) % 5, torch.ones((10, 4)))
    source, group = TokenSource.consecutive(3, [4, 6], "cpu"), RankGroup(many.topology)
    found = device_slots(choice, source, many, 0, group)
    same = torch.equal(found, route(choice, source, many, 0, group).slot_TK)
    return host_reason(few), host_reason(_tables(DispatchRule.EVEN)), host_reason(many), same


def test_the_host_splits_batches_that_are_too_large_for_the_kernels(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ((few, even, many, same),) = run_processes(Launch(1), _on_many_ranks, None)
    assert (few, even, same) == ("", "", True)
    assert many.startswith("replica rule online on the device: 128 ranks and up to 57 replicas, expected at most 8192")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert host_reason(_tables(DispatchRule.ONLINE)).startswith("the replica rule online needs Triton on a GPU")


def test_other_rules_are_refused_by_name():
    tables = _tables(DispatchRule.ONLINE)
    ids = torch.zeros((1, 1), dtype=torch.int64)
    with pytest.raises(
        InputError, match="replica rule online on the device: expected one of even, weighted, local_first"
    ):
        choose_slots_on_device(ids, TokenSource.consecutive(0, [1], "cpu"), tables, 0, ids)
