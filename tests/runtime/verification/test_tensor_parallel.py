"""Experts cut by moe_tp, alone and with moe_ep, on two and four processes; a fault is found."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError, VerificationError
from eplb.formats.mindie_layout import ParallelLayout
from eplb.runtime import Fault, Launch
from eplb.runtime.layer.gate import GateChoice
from eplb.runtime.verification.launch import Member
from eplb.runtime.verification.probe_experts import generator_of
from eplb.runtime.verification.tensor_parallel import (
    CODECS,
    TensorParallelJob,
    TensorParallelReport,
    _batch,
    _error,
    _ranges,
    _whole_expert,
    matmul_of,
    process_grid,
    run_member,
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


@pytest.fixture
def alone():
    """This process as the only member of a group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Member(0, torch.device("cpu"), dist.group.WORLD, dist.group.WORLD)
    dist.destroy_process_group()


CUT_IN_TWO = ParallelLayout(world_size=4, tp=2, dp=2, moe_tp=2, moe_ep=2)


def test_one_process_executes_all_cuts_of_all_ranks(alone):
    # Two cuts of each expert and two ranks of the placement, one slot empty, on this process.
    job = replace(_job(CUT_IN_TWO, [0, 1, 2, 0, -1, 2], 3), hidden=128, tokens_per_rank=2)
    found = run_member(alone, job)
    assert found.keys() == {"dense", "fp8", "fp4"}
    assert max(found.values()) < 1e-5
    swapped = run_member(alone, replace(job, fault=Fault.SWAP_WEIGHTS))
    assert min(swapped.values()) > 0.1


def test_the_error_of_a_token_is_relative_to_the_largest_output(alone):
    job = _job(CUT_IN_TWO, range(4), 4)
    dense = CODECS[0]
    x_TH = torch.randn((3, 128), generator=torch.Generator().manual_seed(1))
    choice = GateChoice(torch.tensor([[0, 3], [3, 1], [2, 0]]), torch.tensor([[0.5, 0.25], [1.0, 0.5], [0.75, 0.125]]))
    y_TH = torch.zeros((3, 128), dtype=torch.float64)
    for token in range(3):
        x = x_TH[token].double()
        for expert, weight in zip(choice.expert_ids_TK[token].tolist(), choice.weight_TK[token].tolist(), strict=True):
            gate_up, down = (matrix.bfloat16().double() for matrix in _whole_expert(job, expert))
            y_TH[token] += weight * down @ (torch.nn.functional.silu(gate_up[0] @ x) * (gate_up[1] @ x))
    assert _error(job, dense, x_TH, choice, y_TH) < 1e-12
    largest = float(y_TH.abs().max())
    y_TH[1, 5] += 0.25 * largest
    assert _error(job, dense, x_TH, choice, y_TH) == pytest.approx(0.25)
    y_TH[2, 7] -= 0.5 * largest
    assert _error(job, dense, x_TH, choice, y_TH) == pytest.approx(0.5)


def test_experts_differ_by_id_layer_and_seed_and_keep_the_size_of_a_token():
    job = _job(CUT_IN_TWO, range(4), 4)
    others = [replace(job, layer=1), replace(job, seed=1), replace(job, layer=1, seed=1)]
    found = [_whole_expert(one, expert)[1] for one in (job, *others) for expert in (0, 1, 3)]
    assert len({float(matrix[0, 0]) for matrix in found}) == 12
    gate_up, down = _whole_expert(job, 3)
    assert (gate_up.shape, down.shape) == ((2, 256, 128), (128, 256))  # two cuts of 128 channels
    assert float(gate_up.std()) == pytest.approx(128**-0.5, rel=0.05)
    assert float(down.std()) == pytest.approx(256**-0.5, rel=0.05)


def test_every_sequence_of_numbers_has_its_own_generator():
    sequences = [(0,), (0, 0), (1, 0), (0, 1), (0, 0, 0), (2**40,), (2**40 + 2**32,)]
    drawn = {int(torch.randint(2**60, (1,), generator=generator_of(*numbers))) for numbers in sequences}
    assert len(drawn) == len(sequences)


def test_processes_have_different_numbers_of_tokens(alone):
    job = _job(CUT_IN_TWO, range(4), 4)
    sizes = [_batch(replace(alone, process=process), job)[0].shape for process in (0, 1, 7, 30)]
    assert sizes == [(4 * 5, 128), (19, 128), (13, 128), (1, 128)]
    first, second = (_batch(replace(alone, process=process), job)[0][0, 0] for process in (0, 1))
    assert first != second
    x_TH, choice = _batch(alone, job)
    assert choice.expert_ids_TK.shape == choice.weight_TK.shape == (20, 2)
    assert torch.equal(x_TH, _batch(alone, job)[0])
    assert not torch.equal(x_TH, _batch(alone, replace(job, seed=1))[0])


def test_ranges_of_experts():
    assert [_ranges(numbers) for numbers in ([], [4], [0, 1, 2, 40], [0, 2, 3])] == ["", "4", "0-2, 40", "0, 2-3"]


def test_a_report_fails_above_its_tolerance():
    job = _job(CUT_IN_TWO, range(4), 4)
    report = TensorParallelReport(job, {"dense": 0.5, "fp8": 0.25, "fp4": float("nan")}, 0.25)
    assert report.failures == ["dense", "fp4"]
    with pytest.raises(
        VerificationError, match=r"tensor parallel experts, dense: error 5.0e-01: expected at most 0.25"
    ):
        report.raise_on_failure()


def test_a_placement_for_other_ranks_is_refused():
    with pytest.raises(InputError, match="placement for 1 ranks: expected moe_ep = 2"):
        verify_tensor_parallel(
            replace(_job(CUT_IN_TWO, range(4), 4), placement=_job(DP8, range(4), 4).placement), Launch(2)
        )


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
    rows = TensorParallelReport(_job(BOTH, [0, 1, 2, 3, 4, 5, 0, 2], 6), {}, 0.0).holdings()
    assert rows[0] == (0, 0, "0-1", "1 of 2", "loop")
    assert rows[7] == (7, 3, "0, 2", "2 of 2", "loop")
    assert [row[1] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    for num_slots, matmul in ((20, "loop"), (33, "grouped")):
        job = _job(BOTH, range(4 * num_slots), 4 * num_slots)
        assert {row[4] for row in TensorParallelReport(job, {}, 0.0).holdings()} == {matmul}


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
