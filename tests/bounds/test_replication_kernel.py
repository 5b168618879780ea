"""The bisection for the smallest largest copy: hand-worked, and against the list of all candidates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.bounds.replication_kernel import smallest_largest_replica
from tests import oracles


def smallest(rows, num_slots, max_copies):
    found = np.empty(len(rows))
    smallest_largest_replica(np.array(rows, dtype=np.float64), num_slots, max_copies, found)
    return found.tolist()


def test_hand_worked_layers():
    # 5 slots for 3 experts. Row 0: 12 -> 6, 6: one more slot: 12 -> 4 leaves 6. Row 1: idle. Row 2: nothing to split.
    # Row 3: 3, 3, 3 with two redundant copies: one 3 stays whole.
    rows = [[12, 6, 1], [0, 0, 0], [1, 1, 9], [3, 3, 3]]
    assert smallest(rows, 5, 5) == [6, 0, 3, 3]
    # At most two copies of an expert: the 9 ends at 4.5.
    assert smallest(rows, 5, 2) == [6, 0, 4.5, 3]


@settings(max_examples=settings.default.max_examples * 3)
@given(
    tokens=st.lists(st.integers(0, 60) | st.integers(0, 10**12), min_size=1, max_size=8),
    unit=st.sampled_from([1.0, 0.1, 1 / 3, 2.0**-40, 1e-200, 1e200]),
    redundant=st.integers(0, 12),
    max_copies=st.integers(1, 9),
)
def test_it_is_the_first_candidate_that_fits(tokens, unit, redundant, max_copies):
    load = [count * unit for count in tokens]
    num_slots = min(len(load) + redundant, len(load) * max_copies)
    expected = oracles.smallest_largest_copy(load, num_slots, max_copies)
    assert smallest([load], num_slots, max_copies) == pytest.approx([expected], rel=1e-12, abs=0)
