"""ParallelLayout: which combinations exist, who shares what, and that tokens are neither lost nor held by strangers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.errors import InputError
from eplb.formats.mindie_layout import ParallelLayout, TokenPart


@st.composite
def layouts(draw):
    """Any valid layout of up to 64 ranks."""
    tp, dp, cp = (draw(st.sampled_from([1, 2, 4])) for _ in range(3))
    world = tp * dp * cp
    moe_tp = draw(st.sampled_from([d for d in (1, 2, 4, 8, 16, 32, 64) if world % d == 0]))
    sp = draw(st.sampled_from([1, tp]))
    return ParallelLayout(world_size=world, tp=tp, dp=dp, cp=cp, sp=sp, moe_tp=moe_tp, moe_ep=world // moe_tp)


def test_groups_of_the_drawing_in_the_module():
    layout = ParallelLayout(world_size=8, tp=2, dp=4, moe_tp=2, moe_ep=4)

    assert layout.tp_groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert layout.dp_groups == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert layout.ep_groups == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert layout.moe_tp_groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert layout.ep_group(5) == (1, 3, 5, 7)
    assert layout.moe_tp_peers(5) == (4, 5)
    assert layout.placement_rank(5) == 2


def test_experts_over_all_ranks_while_attention_is_cut_by_tensor():
    layout = ParallelLayout(world_size=16, tp=8, dp=2, moe_ep=16)

    assert layout.ep_groups == (tuple(range(16)),)
    assert layout.token_part(3) == layout.token_part(7) == TokenPart(0, 0, 0)
    assert layout.token_part(8) == TokenPart(1, 0, 0)
    assert layout.holders(TokenPart(1, 0, 0)) == tuple(range(8, 16))


def test_context_and_sequence_parts_of_sixteen_tokens():
    # cp = 2: chunks 0-3 4-7 8-11 12-15; part 0 gets the first and the last, part 1 the middle ones; sp halves each.
    layout = ParallelLayout(world_size=4, tp=2, cp=2, sp=2, moe_ep=4)

    assert layout.token_ranges(0, 16) == (range(0, 2), range(12, 14))
    assert layout.token_ranges(1, 16) == (range(2, 4), range(14, 16))
    assert layout.token_ranges(2, 16) == (range(4, 6), range(8, 10))
    assert layout.cp_groups == ((0, 2), (1, 3))


@given(layouts(), st.integers(0, 50))
def test_the_parts_of_a_replica_cut_its_tokens_and_holders_agree(layout, num_tokens):
    for replica in range(layout.dp):
        held = []
        for part in layout.token_parts:
            if part.replica == replica:
                ranges = {layout.token_ranges(rank, num_tokens) for rank in layout.holders(part)}
                assert len(ranges) == 1
                held += [position for run in ranges.pop() for position in run]
        assert sorted(held) == list(range(num_tokens))


@given(layouts())
def test_groups_of_every_kind_cut_the_world(layout):
    kinds = [
        (layout.tp_groups, layout.tp),
        (layout.dp_groups, layout.dp),
        (layout.cp_groups, layout.cp),
        (layout.moe_tp_groups, layout.moe_tp),
        (layout.ep_groups, layout.moe_ep),
    ]
    for groups, size in kinds:
        assert {len(group) for group in groups} == {size}
        assert sorted(rank for group in groups for rank in group) == list(range(layout.world_size))


@given(layouts())
def test_placement_ranks_go_up_along_every_ep_group_and_peers_share_one(layout):
    for rank in range(layout.world_size):
        group = layout.ep_group(rank)
        assert rank in group
        assert [layout.placement_rank(member) for member in group] == list(range(layout.moe_ep))
        assert {layout.placement_rank(peer) for peer in layout.moe_tp_peers(rank)} == {layout.placement_rank(rank)}


@given(layouts())
def test_every_part_has_equally_many_holders(layout):
    num_copies = layout.tp // layout.sp
    assert {len(layout.holders(part)) for part in layout.token_parts} == {num_copies}
    assert len(layout.token_parts) * num_copies == layout.world_size


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tp": 8, "dp": 4, "moe_ep": 16}, "tp 8 x dp 4 x cp 1 = 32 ranks: expected world_size = 16"),
        ({"tp": 16, "moe_tp": 2, "moe_ep": 16}, "moe_tp 2 x moe_ep 16 = 32 ranks: expected world_size = 16"),
        ({"tp": 8, "dp": 2, "sp": 2, "moe_ep": 16}, "sp = 2: expected 1 or tp = 8"),
        ({"tp": 0, "moe_ep": 16}, "tp = 0: expected an integer >= 1"),
        ({"tp": True, "moe_ep": 16}, "tp = True: expected an integer >= 1"),
    ],
)
def test_broken_rules_are_named_with_the_numbers(sizes, message):
    with pytest.raises(InputError, match=message):
        ParallelLayout(world_size=16, **sizes)


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_the_world_is_refused(rank):
    layout = ParallelLayout(world_size=4, dp=4, moe_ep=4)
    for method in (layout.ep_group, layout.token_part, layout.placement_rank, layout.moe_tp_peers):
        with pytest.raises(InputError, match=f"rank = {rank}: expected 0 <= rank < world_size = 4"):
            method(rank)
