"""Every exchange mode gives the bits of the reference, on 2 and 4 processes that execute 4 to 8 ranks."""

import pytest

from eplb.core.topology import Topology
from eplb.errors import InputError, UnknownNameError
from eplb.runtime import (
    AllGather,
    AllToAll,
    ExchangeLimits,
    Launch,
    RankGroup,
    Reference,
    auto_backend,
    exchange_bytes,
    make_backend,
    read_buffer_scale_factors,
    run_processes,
)
from tests.runtime import cases

SEEDS = {2: range(80), 4: range(80, 120)}
"""Number of processes -> the generated cases that they execute."""

CORNERS = {
    "no token": lambda case: len(case.ids_TK) == 0,
    "one token": lambda case: len(case.ids_TK) == 1,
    "a rank without tokens": lambda case: len(case.ids_TK) > 1 and 0 in case.tokens_of_rank,
    "all tokens to one expert": lambda case: (
        len(case.ids_TK) > 5 and len(set(case.ids_TK.flatten().tolist()) - {-1}) == 1
    ),
    "masked choices": lambda case: bool((case.ids_TK == -1).any() and (case.ids_TK[:, 1:] >= 0).any()),
    "a token whose choices are all masked": lambda case: bool((case.ids_TK == -1).all(dim=1).any()),
    "one choice a token": lambda case: len(case.ids_TK) > 0 and case.ids_TK.shape[1] == 1,
    "every expert chosen": lambda case: len(case.ids_TK) > 0 and case.ids_TK.shape[1] == case.placement.num_experts,
    "rows of one number": lambda case: len(case.ids_TK) > 0 and case.x_TH.shape[1] == 1,
    "rows of an odd size": lambda case: len(case.ids_TK) > 0 and case.x_TH.shape[1] in (3, 5, 7),
    "an empty slot": lambda case: (case.placement.physical_to_logical_map == -1).any(),
    "an expert twice on a rank": lambda case: case.placement.duplicate_slots.any(),
    "a replica that gets no tokens": lambda case: (
        (case.placement.replica_weights == 0) & (case.placement.physical_to_logical_map >= 0)
    ).any(),
    "ranks that four processes share unevenly": lambda case: case.placement.topology.num_ranks % 4 > 0,
    "one node": lambda case: case.placement.topology.num_nodes == 1,
    "two nodes": lambda case: case.placement.topology.num_nodes == 2,
    **{f"rule {rule}": lambda case, rule=rule: case.rule is rule for rule in cases.RULES},
}

_LARGE = next(seed for seed in range(1000) if cases.make_case(seed).ids_TK.numel() > 200)


def _all(member, seeds):
    return cases.run_cases(member, seeds), cases.run_dtypes(member, _LARGE), cases.run_overflow(member)


@pytest.fixture(scope="module", params=SEEDS)
def answers(request):
    return run_processes(Launch(request.param), _all, SEEDS[request.param])


def test_generated_cases_equal_the_reference_bit_by_bit(answers):
    assert [differences for differences, _, _ in answers] == [[]] * len(answers)


def test_a_run_without_cases_is_not_a_success():
    assert cases.run_cases(None, range(0)) == ["no cases"]


def test_bf16_and_float8_are_exchanged(answers):
    assert [wrong for _, wrong, _ in answers] == [[]] * len(answers)


def test_overflow_raises_everywhere_or_every_dropped_row_is_counted(answers):
    for mode in ("allgather", "alltoall"):
        selections, rows, dropped, raised = zip(*(outcome[mode] for _, _, outcome in answers), strict=True)
        # 15 tokens x 4 choices for rank 0. AllGather keeps 15 x int(4 x 0.25) = 15 rows. All-to-all takes at most
        # ceil(int(6 x 4 x 0.5) / 4) = 3, 2, 0 and ceil(10 / 4) = 3 copies of 4 choices from the four ranks.
        assert sum(rows) == (15 if mode == "allgather" else 4 * (3 + 2 + 0 + 3))
        assert sum(selections) == sum(rows) + sum(dropped) == 60
        assert all(raised)


def _missing(seeds):
    made = [cases.make_case(seed) for seed in seeds]
    return [corner for corner, occurs_in in CORNERS.items() if not any(occurs_in(case) for case in made)]


@pytest.mark.parametrize("processes", SEEDS)
def test_the_generated_cases_reach_every_corner(processes):
    assert _missing(SEEDS[processes]) == []


def test_a_corner_that_no_case_reaches_is_named():
    assert "masked choices" in _missing(range(1, 4))


def test_capacity_is_the_factor_times_an_even_exchange():
    limits = ExchangeLimits(((100, 1.5), (0, 4.0)))
    # 128 tokens x top-8 x 1.5 = 1536 rows, over 8 ranks 192; below 100 tokens the factor is 4: 10 x 8 x 4 / 8 = 40.
    assert limits.copies_per_peer(128, 8, 8) == 192
    assert limits.copies_per_peer(10, 8, 8) == 40
    assert ExchangeLimits(topk_scaling_factor=0.3).rows_per_rank(100, 8) == 200  # int(8 x 0.3) = 2 rows a token


@pytest.mark.parametrize(
    ("limits", "fragment"),
    [
        ({"buffer_scale_factors": ((0, 1.0), (5, 2.0))}, "descending"),
        ({"buffer_scale_factors": ((0, 0.0),)}, "factor > 0"),
        ({"topk_scaling_factor": 1.5}, "topk_scaling_factor = 1.5"),
    ],
)
def test_invalid_limits_are_refused(limits, fragment):
    with pytest.raises(InputError, match=fragment):
        ExchangeLimits(**limits)


def test_buffer_factors_are_read_as_mindie_writes_them():
    assert read_buffer_scale_factors("[[8192, 5.2], [0, 8]]") == ((8192, 5.2), (0, 8.0))
    with pytest.raises(InputError, match="list of"):
        read_buffer_scale_factors("8.0")


def test_auto_is_allgather_up_to_top_k_ranks():
    assert [auto_backend(ranks, 8) for ranks in (2, 8, 9, 64)] == ["allgather", "allgather", "alltoall", "alltoall"]


def test_bytes_of_the_backends_by_formula():
    # Two ranks, top-8 of 256: a token misses a rank with probability C(128, 8) / C(256, 8) = 0.0035.
    two = exchange_bytes(2, num_tokens=4096, top_k=8, num_experts=256, token_bytes=14336)
    assert two.allgather == 4096 * 14336
    assert two.alltoall == pytest.approx(two.allgather * 0.9965, rel=1e-4)
    assert two.alltoall_no_dedup == 4 * two.allgather


def test_a_backend_is_made_by_name():
    group = RankGroup(Topology(1, 2, 2))
    assert isinstance(make_backend("auto", group, top_k=2), AllGather)
    assert isinstance(make_backend("alltoall", group, top_k=2), AllToAll)
    with pytest.raises(UnknownNameError, match="unknown exchange 'mesh'"):
        make_backend("mesh", group, top_k=2)


def test_processes_execute_consecutive_ranks():
    topology = Topology(1, 7, 2)
    groups = [RankGroup(topology, 3, process) for process in range(3)]
    assert [list(group.ranks) for group in groups] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [list(group.slots) for group in groups] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11, 12, 13]]
    assert groups[0].process_of_rank("cpu").tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_more_processes_than_ranks_and_a_shared_reference_are_refused():
    topology = Topology(1, 2, 2)
    with pytest.raises(InputError, match="3 processes: expected 1 to 2"):
        RankGroup(topology, 3, 0)
    with pytest.raises(InputError, match="reference: 2 processes"):
        Reference(RankGroup(topology, 2, 0))


@pytest.mark.parametrize(("words", "fragment"), [((0,), ">= 1"), ((2, "mpi"), "gloo, nccl"), ((99, "nccl"), "a GPU")])
def test_an_invalid_launch_is_refused(words, fragment):
    with pytest.raises(InputError, match=fragment):
        Launch(*words)


def _fail(member, message):
    if member.process == 1:
        raise InputError(message)


def test_an_error_of_a_process_is_raised_in_the_caller():
    with pytest.raises(InputError, match="process one says no"):
        run_processes(Launch(2), _fail, "process one says no")
