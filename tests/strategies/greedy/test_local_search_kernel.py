"""The descent on the busiest rank: what it may never do, and that it leaves no step when it ends above its target."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.strategies.greedy.local_search_kernel import descend_layers
from tests import oracles
from tests.generators import layer_loads

EVERY_STEP, NO_STEP = 99, 0


class Descent:
    """One layer before and after."""

    def __init__(self, load, hands, *, target=0.0, doubles=EVERY_STEP, count_moves=EVERY_STEP, scale=None, least=1):
        self.load, self.start = load.tolist(), hands
        self.scale = [1.0] * len(hands) if scale is None else scale
        first_slot = np.cumsum([0] + [len(hand) for hand in hands])
        rank_of_slot = np.repeat(np.arange(len(hands)), np.diff(first_slot))
        flat = np.array([expert for hand in hands for expert in hand], dtype=np.int32)
        count = np.bincount(flat, minlength=load.size)[None]
        phy2log, slot_load = flat[None].copy(), (load / count[0])[flat][None]
        rank_time = np.add.reduceat(slot_load, first_slot[:-1], axis=1) * self.scale
        descend_layers(
            load[None], first_slot, rank_of_slot, np.array(self.scale), np.array([target]), least, doubles, count_moves,
            count, phy2log, slot_load, rank_time,
        )  # fmt: skip
        self.hands = [phy2log[0, a:b].tolist() for a, b in pairwise(first_slot)]
        self.count, self.slot_load, self.rank_time = count[0], slot_load[0], rank_time[0]

    def times(self, hands):
        return [s * tokens for s, tokens in zip(self.scale, oracles.rank_loads(hands, self.load), strict=True)]

    @property
    def top_at_start(self):
        return max(self.times(self.start))

    @property
    def top(self):
        return max(self.times(self.hands))


@st.composite
def layouts(draw, max_ranks=5, max_slots=5):
    """A load and full ranks of different experts in no particular order."""
    num_ranks, slots = draw(st.integers(2, max_ranks)), draw(st.integers(1, max_slots))
    num_experts = draw(st.integers(slots, slots * num_ranks))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    circle = rng.permutation(num_experts)[np.arange(num_ranks * slots) % num_experts]
    return draw(layer_loads(num_experts)), circle.reshape(num_ranks, slots).tolist()


def test_one_exchange_that_brings_both_ranks_to_the_mean():
    # 10 + 6 = 16 against 4 + 2 = 6: half the difference is 5; 10 - 4 = 6, 6 - 2 = 4 and 6 - 4 = 2, 10 - 2 = 8:
    # 6 and 4 come equally close, 10 - 4 first: 10 and 12. Then nothing helps.
    descent = Descent(np.array([10.0, 6, 4, 2]), [[0, 1], [2, 3]], doubles=NO_STEP, count_moves=NO_STEP)
    assert descent.hands == [[2, 1], [0, 3]]
    assert descent.rank_time.tolist() == [10, 12]


def test_two_for_two_where_one_for_one_is_too_coarse():
    # 5 + 10 + 9 + 12 = 36 against 5 + 14 + 13 + 0 = 32: only moves of more than 0 and less than 4 help. One for one
    # moves 0, -9, -8, 5; 5, -4, -3, 10; 4, -5, -4, 9; 7, -2, -1, 12: none. 5 + 10 for 13 + 0 moves 2: both 34.
    load, hands = np.array([5.0, 10, 9, 12, 5, 14, 13, 0]), [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert Descent(load, hands, doubles=3, count_moves=NO_STEP).hands == hands
    assert Descent(load, hands, doubles=4, count_moves=NO_STEP).rank_time.tolist() == [34, 34]


def test_a_copy_moves_to_the_expert_that_needs_it():
    # Ranks {0, 1} and {2, 1}: 10 + 1 = 11 and 1 + 1 = 2. A copy of 0 instead of 1 on rank 1: 5 + 2 = 7 and 5 + 1 = 6.
    descent = Descent(np.array([10.0, 2, 1]), [[0, 1], [2, 1]], doubles=NO_STEP)
    assert descent.hands == [[0, 1], [2, 0]]
    assert descent.count.tolist() == [2, 1, 1]
    assert descent.rank_time.tolist() == [7, 6]


def best_exchange_in_time(descent, size):
    """The lowest that the later of two ranks can get when the busiest exchanges `size` experts with one other rank."""
    hands, times = descent.hands, descent.times(descent.hands)
    busiest, best = times.index(max(times)), max(times)
    copies = [expert for hand in hands for expert in hand]
    for partner in set(range(len(hands))) - {busiest}:
        for give in combinations(hands[busiest], size):
            for take in combinations(hands[partner], size):
                if set(give) & set(hands[partner]) or set(take) & set(hands[busiest]):
                    continue
                moved = sum(descent.load[e] / copies.count(e) for e in give)
                moved -= sum(descent.load[e] / copies.count(e) for e in take)
                mine, theirs = descent.scale[busiest] * moved, descent.scale[partner] * moved
                best = min(best, max(times[busiest] - mine, times[partner] + theirs))
    return best


def test_unequal_ranks_meet_where_their_times_are_equal():
    # 8 and 1 tokens on a rank that takes 2 a token: 18; 2 and 1 on one that takes 1: 3. Moving 5 would make both 8;
    # 8 for 2 moves 6: 6 and 9. 8 for 1 moves 7: 4 and 10. 1 for 2 or 1 does not help.
    descent = Descent(np.array([8.0, 1, 2, 1]), [[0, 1], [2, 3]], doubles=0, count_moves=0, scale=[2.0, 1.0])
    assert descent.hands == [[2, 1], [0, 3]]
    assert descent.rank_time.tolist() == [6, 9]


def test_no_copy_is_moved_below_the_least():
    # As in the test above, but expert 1 must keep its two copies.
    descent = Descent(np.array([10.0, 2, 1]), [[0, 1], [2, 1]], doubles=NO_STEP, least=2)
    assert descent.hands == [[0, 1], [2, 1]]


SCALES = st.lists(st.sampled_from([0.5, 0.8, 1.0, 2.0]), min_size=5, max_size=5)


@settings(max_examples=settings.default.max_examples * 2)
@given(layout=layouts(max_ranks=4, max_slots=4), scale=SCALES)
def test_no_exchange_is_left_on_unequal_ranks_either(layout, scale):
    load, hands = layout
    descent = Descent(load, hands, scale=scale[: len(hands)])
    least = descent.top * (1 - 2e-9)
    if sorted(descent.times(descent.hands))[-2] < least:
        assert best_exchange_in_time(descent, 1) >= least
        assert best_exchange_in_time(descent, 2) >= least


@given(
    layout=layouts(),
    doubles=st.sampled_from([0, 3, 99]),
    count_moves=st.sampled_from([0, 3, 99]),
    scale=st.none() | SCALES,
)
def test_books_are_kept_and_no_rank_gets_worse_than_the_start(layout, doubles, count_moves, scale):
    load, hands = layout
    scale = None if scale is None else scale[: len(hands)]
    descent = Descent(load, hands, doubles=doubles, count_moves=count_moves, scale=scale)
    flat = [expert for hand in descent.hands for expert in hand]
    assert descent.count.tolist() == [flat.count(expert) for expert in range(load.size)]
    assert min(descent.count) >= 1
    assert not oracles.has_doubles(descent.hands)
    expected = descent.times(descent.hands)
    assert descent.rank_time == pytest.approx(expected, rel=1e-9, abs=1e-9 * max(expected))
    assert descent.slot_load.tolist() == [load[expert] / descent.count[expert] for expert in flat]
    assert descent.top <= descent.top_at_start * (1 + 1e-12)
    if count_moves == 0:
        assert sorted(flat) == sorted(expert for hand in hands for expert in hand)


@settings(max_examples=settings.default.max_examples * 2)
@given(layout=layouts(max_ranks=4, max_slots=4))
def test_no_step_is_left_when_it_ends_above_its_target(layout):
    load, hands = layout
    descent = Descent(load, hands)
    least = descent.top * (1 - 2e-9)
    # The lowest of equally busy ranks is the one that moves, in the kernel's own sums: rounding may name another here.
    if sorted(oracles.rank_loads(descent.hands, descent.load))[-2] < least:
        for size in (1, 2):
            assert oracles.best_exchange(descent.hands, descent.load, size=size)[0] >= least
        assert oracles.best_move_of_a_copy(descent.hands, descent.load) >= least


@given(layout=layouts(), share=st.floats(0, 1))
def test_it_stops_as_soon_as_the_target_is_met(layout, share):
    load, hands = layout
    best = Descent(load, hands)
    target = best.top + share * (best.top_at_start - best.top)
    descent = Descent(load, hands, target=target * (1 + 1e-9))
    assert descent.top <= target * (1 + 2e-9)
    if best.top_at_start <= target:
        assert descent.hands == hands


@given(layout=layouts())
def test_it_ends_no_higher_than_plain_single_exchanges(layout):
    # No theorem, both are greedy: of 20,000 random layouts 0.1 % ended higher, by 2.5 % at most.
    load, hands = layout
    plain = oracles.descend_by_single_exchanges(hands, load.tolist())
    assert Descent(load, hands).top <= plain * 1.1
