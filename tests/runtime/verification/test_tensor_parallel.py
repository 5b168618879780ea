"""Experts cut by moe_tp, alone and with moe_ep, on two and four processes; a fault is found."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError, VerificationError
from eplb.formats.mindie_layout import ParallelLayout
from eplb.runtime import Fault, Launch
from eplb.runtime.verification.tensor_parallel import (
    TensorParallelJob,
    matmul_of,
    process_grid,
    verify_tensor_parallel,
)


def _job(layout, experts, num_experts, exchange="allgather"):
    slots = len(experts) // layout.moe_ep
    return TensorParallelJob(
        placement=Placement([experts], num_experts, Topology(1, layout.moe_ep, slots)),
        layout=layout,
        layer=0,
        rule=DispatchRule.EVEN,
        exchange=exchange,
        tokens_per_rank=5,
        top_k=2,
        hidden=128,
    )


DP8 = ParallelLayout(world_size=8, tp=1, dp=8, moe_tp=8)
"""The example of MindIE's data-parallelism page: attention by data, experts by tensor parallelism."""
BOTH = ParallelLayout(world_size=8, tp=2, dp=4, moe_tp=2, moe_ep=4)


@pytest.mark.parametrize(
    ("job", "processes"),
    [
        (_job(DP8, range(4), 4), 2),
        (_job(BOTH, [0, 1, 2, 3, 4, 5, 0, 2], 6), 4),
        (_job(BOTH, [0, 1, 2, 3, 4, 5, 0, 2], 6, "alltoall"), 4),
        (_job(ParallelLayout(world_size=6, dp=6, moe_tp=3, moe_ep=2), range(4), 4, "alltoall"), 2),
    ],
    ids=["moe_tp alone", "moe_tp and moe_ep", "by all-to-all", "three cuts on one process"],
)
def test_cut_experts_give_the_result_of_whole_experts(job, processes):
    report = verify_tensor_parallel(job, Launch(processes))
    assert report.max_error.keys() == {"dense", "fp8", "fp4"}
    assert report.failures == []
    report.raise_on_failure()


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_cut_experts_over_peer_memory(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    layout = ParallelLayout(world_size=6, dp=6, moe_tp=3, moe_ep=2)
    job = replace(_job(layout, range(4), 4, "symmetric"), tokens_per_rank=2)
    verify_tensor_parallel(job, Launch(2)).raise_on_failure()
    broken = verify_tensor_parallel(replace(job, fault=Fault.SWAP_WEIGHTS), Launch(2))
    assert broken.failures == ["dense", "fp8", "fp4"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("exchange", ["allgather", "alltoall", "symmetric"])
def test_cut_experts_on_two_gpus(exchange):
    # 48 experts on a rank: the grouped matmul.
    for layout, experts in ((DP8, range(48)), (ParallelLayout(world_size=4, dp=4, moe_tp=2, moe_ep=2), range(6))):
        job = _job(layout, experts, len(experts), exchange)
        report = verify_tensor_parallel(job, Launch(2, "nccl"))
        assert report.failures == []
        assert verify_tensor_parallel(replace(job, fault=Fault.SWAP_WEIGHTS), Launch(2, "nccl")).failures


def test_swapped_weights_of_one_cut_are_found():
    report = verify_tensor_parallel(replace(_job(DP8, range(4), 4), fault=Fault.SWAP_WEIGHTS), Launch(2))
    assert report.failures == ["dense", "fp8", "fp4"]
    with pytest.raises(VerificationError, match="tensor parallel experts, dense: error"):
        report.raise_on_failure()


def test_what_each_rank_holds():
    from eplb.runtime.verification.tensor_parallel import TensorParallelReport

    rows = TensorParallelReport(_job(BOTH, [0, 1, 2, 3, 4, 5, 0, 2], 6), {}, 0.0).holdings()
    assert rows[0] == (0, 0, "0-1", "1 of 2", "loop")
    assert rows[7] == (7, 3, "0, 2", "2 of 2", "loop")
    assert [row[1] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_grouped_matmul_is_taken_above_32_experts():
    assert [matmul_of(n) for n in (1, 32, 33, 256)] == ["loop", "loop", "grouped", "grouped"]


@pytest.mark.parametrize(
    ("layout", "processes", "grid"),
    [(DP8, 2, (2, 1)), (DP8, 8, (8, 1)), (BOTH, 4, (2, 2)), (BOTH, 2, (2, 1)), (BOTH, 3, (1, 3)), (BOTH, 8, (2, 4))],
)
def test_processes_divide_the_cuts_first(layout, processes, grid):
    assert process_grid(layout, processes) == grid


def test_processes_that_cannot_divide_the_ranks_are_refused():
    with pytest.raises(InputError, match="processes = 3: expected a divisor of moe_tp = 8 times at most moe_ep = 1"):
        process_grid(DP8, 3)
