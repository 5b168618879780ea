"""The descent by levels and the walk over plateaus: what they may never do, and what they are for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.strategies.greedy.level_search_kernel import MOST_PARTNERS, descend_by_levels, walk_plateaus
from tests import oracles
from tests.generators import layer_loads

EVERY_STEP, NO_STEP = 99, 0


class Level:
    """One layer before and after."""

    def __init__(self, load, hands, *, target=0.0, doubles=EVERY_STEP, looks=None, scale=None):
        self.load, self.start = load.tolist(), hands
        self.scale = [1.0] * len(hands) if scale is None else scale
        first_slot, rank_scale = np.cumsum([0] + [len(hand) for hand in hands]), np.array(self.scale)
        phy2log = np.array([expert for hand in hands for expert in hand], dtype=np.int32)
        slot_load = (load / np.bincount(phy2log, minlength=load.size))[phy2log]
        rank_time = np.add.reduceat(slot_load, first_slot[:-1]) * rank_scale
        books = phy2log[None], slot_load[None], rank_time[None]
        if looks is None:
            mean = np.array([load.sum() / (1 / rank_scale).sum()])
            descend_by_levels(first_slot, rank_scale, mean, np.array([target]), doubles, *books)
        else:
            walk_plateaus(first_slot, rank_scale, np.array([target]), doubles, looks, *books)
        self.hands = [phy2log[a:b].tolist() for a, b in pairwise(first_slot)]
        self.slot_load, self.rank_time = slot_load, rank_time

    def times(self, hands):
        return [s * tokens for s, tokens in zip(self.scale, oracles.rank_loads(hands, self.load), strict=True)]

    @property
    def top_at_start(self):
        return max(self.times(self.start))

    @property
    def top(self):
        return max(self.times(self.hands))


def at_rest(load, hands):
    """Descents one after the other until one changes nothing: the steps of a single one may run out."""
    for _ in range(1000):
        level = Level(load, hands)
        if level.hands == hands:
            return level
        hands = level.hands
    raise AssertionError("no rest")


@st.composite
def layouts(draw, max_ranks=5, max_slots=5):
    """A load and full ranks of different experts in no particular order."""
    num_ranks, slots = draw(st.integers(1, max_ranks)), draw(st.integers(1, max_slots))
    num_experts = draw(st.integers(slots, slots * num_ranks))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    circle = rng.permutation(num_experts)[np.arange(num_ranks * slots) % num_experts]
    return draw(layer_loads(num_experts)), circle.reshape(num_ranks, slots).tolist()


def large_layer(num_ranks, slots, seed):
    """Experts of 0.5 to 1.5 load, one copy each, dealt to the ranks at random."""
    rng = np.random.default_rng(seed)
    num_experts = num_ranks * slots
    return 0.5 + rng.random(num_experts), rng.permutation(num_experts).reshape(num_ranks, slots).tolist()


def test_the_lowest_level_that_an_exchange_allows_is_taken():
    # 10 + 6 = 16 against 4 + 2 = 6, mean 11. Half way down, at 13.5, 2.5 to 7.5 must move: 10 - 4 = 6 is the first.
    # Then 10 and 12; moving 0 to 2 from the second rank, 10 and 2, to the first, 4 and 6: 10 - 4, 10 - 6, 2 - 4: none.
    level = Level(np.array([10.0, 6, 4, 2]), [[0, 1], [2, 3]], doubles=NO_STEP)
    assert level.hands == [[2, 1], [0, 3]]
    assert level.rank_time.tolist() == [10, 12]


def test_two_for_two_where_one_for_one_is_too_coarse():
    # As in the test of swap_descent: of 36 and 32 only 5 + 10 for 13 + 0 leads to 34 and 34.
    load, hands = np.array([5.0, 10, 9, 12, 5, 14, 13, 0]), [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert Level(load, hands, doubles=3).hands == hands
    assert Level(load, hands, doubles=4).rank_time.tolist() == [34, 34]


def test_unequal_ranks_are_compared_by_time():
    # 8 + 1 tokens at 2 a token: 18, and 2 + 1 at 1: 3. Mean 12 / 1.5 = 8, half way 13: 2.5 to 10 must move: 8 - 2.
    level = Level(np.array([8.0, 1, 2, 1]), [[0, 1], [2, 3]], doubles=NO_STEP, scale=[2.0, 1.0])
    assert level.hands == [[2, 1], [0, 3]]
    assert level.rank_time.tolist() == [6, 9]


SCALES = st.none() | st.lists(st.sampled_from([0.5, 0.8, 1.0, 2.0]), min_size=5, max_size=5)


@given(layout=layouts(), doubles=st.sampled_from([0, 3, 99]), scale=SCALES, looks=st.sampled_from([None, 1, 40]))
def test_books_are_kept_and_the_busiest_rank_gets_no_busier(layout, doubles, scale, looks):
    load, hands = layout
    scale = None if scale is None else scale[: len(hands)]
    level = Level(load, hands, doubles=doubles, scale=scale, looks=looks)
    flat, before = ([expert for hand in each for expert in hand] for each in (level.hands, hands))
    assert sorted(flat) == sorted(before)
    assert not oracles.has_doubles(level.hands)
    expected = level.times(level.hands)
    assert level.rank_time == pytest.approx(expected, rel=1e-9, abs=1e-9 * max(expected))
    assert level.slot_load.tolist() == [load[expert] / flat.count(expert) for expert in flat]
    assert level.top <= level.top_at_start * (1 + 1e-12)


@given(layout=layouts(max_ranks=4, max_slots=4))
def test_no_exchange_that_gains_a_fiftieth_is_left(layout):
    # The highest level is 0.98 of the way from the mean; fewer ranks than MOST_PARTNERS, so all have been asked.
    load, hands = layout
    assert len(hands) <= MOST_PARTNERS
    level = at_rest(load, hands)
    mean = load.sum() / len(hands)
    if len(hands) > 1 and sorted(oracles.rank_loads(level.hands, level.load))[-2] < level.top:
        highest = mean + 0.98 * (level.top - mean)
        for size in (1, 2):
            assert oracles.best_exchange(level.hands, level.load, size=size)[0] >= highest * (1 - 2e-9)


@pytest.mark.parametrize("looks", [None, 1000])
def test_it_stops_as_soon_as_the_target_is_met(looks):
    load, hands = large_layer(16, 4, seed=0)
    start = Level(load, hands, target=np.inf, looks=looks)
    assert start.hands == hands
    target = 0.5 * (start.top + load.sum() / 16)
    level = Level(load, hands, target=target, looks=looks)
    # One exchange more would not be needed: the last one began above the target.
    assert load.sum() / 16 * 1.01 < level.top <= target


@pytest.mark.parametrize("seed", range(5))
def test_the_walk_gets_on_where_the_descent_ends(seed):
    load, hands = large_layer(24, 4, seed)
    descent = at_rest(load, hands)
    gap = descent.top * 24 / load.sum() - 1
    walked = Level(load, descent.hands, looks=2000)
    assert walked.top * 24 / load.sum() - 1 < 0.7 * gap
    assert Level(load, descent.hands, looks=2000).hands == walked.hands


def test_loads_times_eight_give_the_same_exchanges():
    load, hands = large_layer(24, 4, seed=9)
    for looks in (None, 300):
        assert Level(8 * load, hands, looks=looks).hands == Level(load, hands, looks=looks).hands
