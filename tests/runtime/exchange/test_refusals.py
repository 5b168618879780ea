"""Sizes, settings and handles that fit no exchange are refused by name."""

import pytest
import torch

from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.runtime import RankGroup, Reference, RoutingPlan, TokenSource, make_backend
from eplb.runtime.exchange.symmetric.memory import memory_in_process
from eplb.runtime.exchange.symmetric.region import RegionShape
from eplb.runtime.exchange.symmetric.settings import KernelSettings
from eplb.runtime.exchange.symmetric.state import RankState

SHAPE = RegionShape(2, 4, 2, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"pushers": 0}, "pushers = 0, expected >= 1"),
        ({"push_columns": 0}, "push_columns = 0, expected >= 1"),
        ({"combine_group": 3}, "combine_group = 3, expected a power of two"),
        ({"combine_columns": 0}, "combine_columns = 0, expected a power of two"),
    ],
)
def test_kernel_settings_out_of_range(words, message):
    with pytest.raises(InputError, match=f"kernel settings: {message}"):
        KernelSettings(**words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"hidden": 0}, "symmetric region: hidden = 0, expected >= 1"),
        ({"num_ranks": 0}, "symmetric region: 0 ranks, expected 1 to "),
        ({"num_ranks": 4096}, "symmetric region: 4096 ranks, expected 1 to "),
    ],
)
def test_regions_out_of_range(words, message):
    with pytest.raises(InputError, match=message):
        RegionShape(**{"num_ranks": 2, "tokens": 4, "top_k": 2, "hidden": 8, **words})


@pytest.mark.parametrize(
    ("num_ranks", "short", "first_slot", "message"),
    [
        (2, 1, (0, 2, 4), rf"symmetric memory of {SHAPE.num_bytes - 1} bytes: the region needs {SHAPE.num_bytes}"),
        (3, 0, (0, 2, 4), "3 regions and 2 ranks with slots: expected 2"),
        (2, 0, (0, 2, 4, 6), "2 regions and 3 ranks with slots: expected 2"),
    ],
)
def test_memory_that_does_not_fit_the_region(num_ranks, short, first_slot, message):
    memory = memory_in_process(num_ranks, SHAPE.num_bytes - short, "cpu")[0]
    with pytest.raises(InputError, match=message):
        RankState.create(memory, SHAPE, first_slot)


@pytest.mark.parametrize(("maker", "taker"), [("allgather", "alltoall"), ("alltoall", "allgather")])
def test_the_handle_of_another_backend(maker, taker):
    group = RankGroup(Topology(1, 2, 2))
    slots = torch.tensor([[0, 3], [2, 1]])
    routing = RoutingPlan(slots, torch.ones(2, 2), TokenSource.consecutive(0, [1, 1], "cpu"), torch.tensor(0))
    handle = make_backend(maker, group, top_k=2).plan_exchange(routing)
    other = make_backend(taker, group, top_k=2)
    for use in (other.dispatch, other.combine):
        with pytest.raises(InputError, match=f"handle: made by another backend than {taker}"):
            use(torch.ones(2, 4), handle)
    with pytest.raises(InputError, match=f"handle: made by another backend than {taker}"):
        other.wire_rows(handle)


@pytest.mark.parametrize("backend", ["allgather", "alltoall"])
def test_several_processes_without_a_communicator(backend):
    group = RankGroup(Topology(1, 2, 2), 2, 0)
    routing = RoutingPlan(
        torch.tensor([[0, 3]]), torch.ones(1, 2), TokenSource.consecutive(0, [1], "cpu"), torch.tensor(0)
    )
    for exchange in (
        lambda: make_backend(backend, group, top_k=2).plan_exchange(routing),
        lambda: group.all_to_all(torch.ones(2, 4), [1, 1], [1, 1]),
        lambda: group.reduce_scatter(torch.ones(2, 4)),
    ):
        with pytest.raises(InputError, match="2 processes without a communicator: expected a process_group"):
            exchange()


def test_choices_by_columns_are_read_as_they_are():
    group = RankGroup(Topology(1, 2, 2))
    slots = torch.tensor([[0, 3], [2, 1]]).t().contiguous().t()
    routing = RoutingPlan(slots, torch.ones(2, 2), TokenSource.consecutive(0, [1, 1], "cpu"), torch.tensor(0))
    assert Reference(group).plan_exchange(routing).rows.row_DJ.tolist() == [[0, 3], [2, 1]]
