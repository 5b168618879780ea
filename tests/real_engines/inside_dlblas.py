"""LMDeploy's EPLB, the package dlblas, with our loads and our algorithm; dlblas 0.0.7.

Exercised: `EPLBMetadata.init`, which reads the file of expert statistics in EPLB_EXPERTS_STATISTIC_FILE, its call of
`rebalance_experts` with ours in the place of its own, `EPLBDispatchInfo` and `topk_ids_logical_to_physical`. Stubbed
besides `engine_import`: it makes its tensors on the device "cuda", which is the CPU here.
"""

import json

import numpy as np
import pytest
import torch

from tests.real_engines.engine_import import prepare

prepare("dlblas")

from dlblas.layers.moe import eplb as dlblas_eplb  # noqa: E402

import eplb  # noqa: E402
from eplb.dispatch.engine_dispatch import engine_dispatch  # noqa: E402
from tests.real_engines.our_plans import NUM_EXPERTS, NUM_LAYERS, a_load  # noqa: E402

NUM_RANKS = 4
REDUNDANT = 8
THEIRS = dlblas_eplb.rebalance_experts


class OnTheCpu(torch.overrides.TorchFunctionMode):
    """Functions that are asked for the device "cuda" give tensors of the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        if function is torch.Tensor.cuda:
            return args[0]
        return function(*args, **kwargs)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(dlblas_eplb, "_global_eplb_metadata", None)
    monkeypatch.setattr(dlblas_eplb, "rebalance_experts", THEIRS)
    monkeypatch.setenv("EPLB_NUM_GROUPS", "4")
    monkeypatch.setenv("RANKS_PER_NODES", "2")
    monkeypatch.setenv("EPLB_NUM_REDUNDANT_EXPERTS", str(REDUNDANT))


@pytest.fixture
def statistics(tmp_path, monkeypatch):
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(a_load(0).tokens[0].tolist()))
    monkeypatch.setenv("EPLB_EXPERTS_STATISTIC_FILE", str(path))
    return path


def start(num_experts=NUM_EXPERTS):
    with OnTheCpu():
        dlblas_eplb.init_global_eplb_metadata(NUM_RANKS, num_experts, NUM_LAYERS)
    return dlblas_eplb.get_global_eplb_metadata()


def busiest(phy2log):
    """[layers] busiest over mean rank by our judge."""
    machine = eplb.Topology(2, 2, (NUM_EXPERTS + REDUNDANT) // NUM_RANKS)
    placement = eplb.Placement(phy2log.numpy().astype(np.int32), NUM_EXPERTS, machine)
    return eplb.evaluate(placement, a_load(0)).max_over_mean


def test_the_published_algorithm_is_theirs(statistics):
    # 4 ranks in nodes of 2: two nodes, which divide the 4 groups, so both plan hierarchically.
    theirs = start()
    weight = torch.from_numpy(a_load(0).tokens[0]).float()
    phy2log, _, logcnt = eplb.rebalance_experts(weight, NUM_EXPERTS + REDUNDANT, 4, 2, NUM_RANKS)
    assert torch.equal(theirs.physical_to_logical_map, phy2log)
    assert torch.equal(theirs.logical_to_all_physical_map_num_valid, logcnt)


@pytest.mark.parametrize("strategy", ["deepseek", "greedy"])
def test_dlblas_plans_and_dispatches_with_our_algorithm(strategy, statistics, monkeypatch):
    calls = []

    def ours(**arguments):
        calls.append(arguments)
        return eplb.rebalance_experts(**arguments, strategy=strategy)

    monkeypatch.setattr(dlblas_eplb, "rebalance_experts", ours)
    found = start()
    (call,) = calls
    np.testing.assert_array_equal(call["weight"], a_load(0).tokens[0])  # their reader, our numbers
    topk = torch.randint(0, NUM_EXPERTS, (100, 4), generator=torch.Generator().manual_seed(0))
    for layer in range(NUM_LAYERS):
        for rank in range(NUM_RANKS):
            info = dlblas_eplb.EPLBDispatchInfo.init_new(rank, layer)
            slots = dlblas_eplb.topk_ids_logical_to_physical(topk, info)
            assert torch.equal(dlblas_eplb.get_eplb_phy2log_metadata_by_layer(layer)[slots], topk)
    assert found.num_physical_experts() == NUM_EXPERTS + REDUNDANT


def test_ranks_get_the_load_that_evaluate_predicts(statistics):
    """Uniformly random over all replicas of an expert, near or far: an even split within five standard deviations."""
    phy2log = start().physical_to_logical_map
    machine = eplb.Topology(2, 2, (NUM_EXPERTS + REDUNDANT) // NUM_RANKS)
    placement = eplb.Placement(phy2log.numpy().astype(np.int32), NUM_EXPERTS, machine)
    rule = engine_dispatch("lmdeploy").rule
    torch.manual_seed(0)
    topk = torch.randint(0, NUM_EXPERTS, (5000, 4))
    tokens = np.bincount(topk.flatten().numpy(), minlength=NUM_EXPERTS) * NUM_RANKS
    judged = eplb.evaluate(placement, eplb.ExpertLoad(np.tile(tokens, (1, NUM_LAYERS, 1))), rule).rank_load[0]
    for layer in range(NUM_LAYERS):
        infos = [dlblas_eplb.EPLBDispatchInfo.init_new(rank, layer) for rank in range(NUM_RANKS)]
        slots = torch.cat([dlblas_eplb.topk_ids_logical_to_physical(topk, info).flatten() for info in infos])
        found = np.bincount(machine.rank_of_slot[slots.numpy()], minlength=NUM_RANKS)
        assert np.abs(found - judged[layer]).max() <= 5 * np.sqrt(tokens.sum() / 4)


def test_ours_is_better_where_theirs_leaves_the_copies_unpacked(statistics, monkeypatch):
    """3 groups do not divide by 2 nodes: dlblas counts the copies but places them in order."""
    monkeypatch.setenv("EPLB_NUM_GROUPS", "3")
    theirs = start().physical_to_logical_map
    monkeypatch.setattr(dlblas_eplb, "_global_eplb_metadata", None)
    monkeypatch.setattr(dlblas_eplb, "rebalance_experts", eplb.rebalance_experts)
    ours = start().physical_to_logical_map
    assert (busiest(ours) < busiest(theirs)).all()


@pytest.mark.parametrize("content", ["[[1, 2], [3]]", "nothing", json.dumps([[1.0] * NUM_EXPERTS])])
def test_statistics_of_another_form_are_refused(content, statistics):
    statistics.write_text(content)
    with pytest.raises((RuntimeError, AssertionError), match=r"statistics\.json"):
        start()
