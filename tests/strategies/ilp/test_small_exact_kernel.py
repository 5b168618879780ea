"""The enumeration of small layers against every layout, listed naively."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.strategies.ilp.small_exact_kernel import find_optimum
from tests import oracles
from tests.generators import layer_loads, problems


def optimum(load, slots, speeds, *, num_listed):
    order = np.argsort(-load, kind="stable")
    mask_of = np.zeros(load.size, dtype=np.int64)
    found = find_optimum(load[order], np.array(slots), np.array(speeds), num_listed, np.inf, mask_of)
    hands = [[int(e) for e, m in zip(order, mask_of, strict=True) if m >> rank & 1] for rank in range(len(slots))]
    return found, hands


@settings(max_examples=settings.default.max_examples)
@given(problem=problems(tiny=True), data=st.data())
def test_it_finds_what_brute_force_finds_and_says_where(problem, data):
    load, topology = problem.load.total[0], problem.topology
    if load.size < 2 or load.sum() == 0:
        return
    slots, speeds = topology.rank_num_slots.tolist(), topology.relative_speed.tolist()
    found, hands = optimum(load, slots, speeds, num_listed=data.draw(st.integers(1, load.size - 1)))
    alike = topology.has_equal_slots and topology.rank_speed is None
    layouts = oracles.every_layout(load.size, slots, alike=alike)
    assert found == pytest.approx(min(oracles.busiest_time(h, load.tolist(), speeds) for h in layouts), rel=1e-11)
    assert [len(hand) for hand in hands] == slots
    assert not oracles.has_doubles(hands)
    assert oracles.busiest_time(hands, load.tolist(), speeds) == pytest.approx(found, rel=1e-11)


@given(load=layer_loads(7))
@settings(max_examples=20)
def test_how_many_experts_are_listed_changes_nothing(load):
    if load.sum() > 0:
        slots, speeds = [3, 3, 4], [1.0, 1.0, 1.0]
        values = [optimum(load, slots, speeds, num_listed=listed)[0] for listed in (1, 3, 5)]
        assert values == pytest.approx([values[0]] * 3, rel=1e-11)


def test_what_is_reached_already_is_kept_when_nothing_is_better():
    # 2 ranks of 2 slots, loads 3, 2, 1, 0: 3 + 0 and 2 + 1 is perfect.
    mask_of = np.zeros(4, dtype=np.int64)
    load, slots = np.array([3.0, 2, 1, 0]), np.array([2, 2])
    assert find_optimum(load, slots, np.ones(2), 2, 3.0, mask_of) == 3.0
    assert not mask_of.any()
    assert find_optimum(load, slots, np.ones(2), 2, 3.5, mask_of) == 3.0
    assert mask_of.tolist() == [1, 2, 2, 1]
