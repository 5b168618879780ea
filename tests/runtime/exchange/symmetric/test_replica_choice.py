"""The replica choice on the device equals `choose_slots`, bit by bit, in Triton's interpreter."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.runtime import Launch, PlacementTables, TokenSource, choose_slots, run_processes
from eplb.runtime.kernels.replica_choice import DEVICE_RULES, choose_slots_on_device
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


def test_other_rules_are_refused_by_name():
    tables = _tables(DispatchRule.VLLM)
    ids = torch.zeros((1, 1), dtype=torch.int64)
    with pytest.raises(
        InputError, match="replica rule vllm on the device: expected one of even, weighted, local_first"
    ):
        choose_slots_on_device(ids, TokenSource.consecutive(0, [1], "cpu"), tables, 0, ids)
