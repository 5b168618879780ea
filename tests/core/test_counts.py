"""Counts that callers give."""

import numpy as np
import pytest

from eplb.core.counts import check_count
from eplb.cost import Batch
from eplb.errors import InputError


@pytest.mark.parametrize("count", [1, 7, np.int32(3)])
def test_a_whole_number_is_accepted(count):
    check_count("num_ranks", count)


@pytest.mark.parametrize("count", [0, -1, 1.0, 1.5, "12", None, True, np.float64(2)])
def test_anything_else_is_refused_with_its_name(count):
    with pytest.raises(InputError, match=r"^num_ranks = .*expected"):
        check_count("num_ranks", count)


def test_a_batch_refuses_numbers_that_are_no_counts():
    with pytest.raises(InputError, match="tokens_per_rank = '12': expected a whole number >= 1"):
        Batch.sampled(np.ones((1, 4)), num_ranks=2, tokens_per_rank="12", top_k=1)
    with pytest.raises(InputError, match="num_ranks = 0: expected >= 1"):
        Batch.evenly_sent(np.ones((1, 4)), num_ranks=0, top_k=1)
    with pytest.raises(InputError, match=r"counts has shape \(4,\)"):
        Batch.evenly_sent(np.ones(4), num_ranks=2, top_k=1)
