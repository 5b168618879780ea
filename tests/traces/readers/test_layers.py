"""Which rows of a file are MoE layers: dense layers are found, holes are refused, what the caller says is checked."""

import numpy as np
import pytest

from eplb_traces import InputError, ReadOptions
from eplb_traces.readers.layers import hidden_layer_rows, moe_rows


def rows(loaded, num_rows, row_ids=None, **options):
    """The decision for a file of which only some rows have tokens."""
    silent = ~np.isin(np.arange(num_rows), loaded)
    return moe_rows(silent, row_ids, ReadOptions(**options))


def test_silent_rows_at_the_front_are_dense_layers():
    found = rows(range(3, 61), 61)
    assert found.moe_layer_ids == tuple(range(3, 61))
    assert found.rows.tolist() == list(range(3, 61))
    assert found.num_hidden_layers == 61
    assert "layers 0-2 have no token and count as dense" in found.notes[0]


@pytest.mark.parametrize(
    ("loaded", "num_rows"),
    [(range(1, 48, 2), 48), (range(0, 48, 2), 48), (range(3, 32, 4), 32), ([0, 1, 3, 4, 6, 7, 9, 10], 11)],
)
def test_a_regular_pattern_of_silent_rows_is_dense_layers(loaded, num_rows):
    found = rows(loaded, num_rows)
    assert found.moe_layer_ids == tuple(loaded)
    assert "count as dense (one layer in" in found.notes[0]


@pytest.mark.parametrize(
    ("loaded", "num_rows"),
    [([0, 2], 3), ([*range(3, 30), *range(31, 61)], 61), ([17], 43), (range(57), 58), ([0, 1, 2, 5, 6], 7)],
    ids=["a hole in three", "a hole behind a stem", "one row of 43", "a silent last row", "two holes"],
)
def test_a_hole_is_a_broken_recording(loaded, num_rows):
    with pytest.raises(InputError, match=r"a broken recording, or dense layers; give moe_layer_ids \(--moe-layers\)"):
        rows(loaded, num_rows)


def test_the_caller_may_say_that_a_silent_row_is_a_moe_layer():
    found = rows([*range(3, 30), *range(31, 61)], 61, moe_layer_ids=range(3, 61))
    assert found.moe_layer_ids == tuple(range(3, 61))
    assert not found.notes


def test_ids_of_the_file_are_kept_and_gaps_between_them_named():
    found = rows(range(4), 4, row_ids=(3, 4, 6, 7))
    assert found.moe_layer_ids == (3, 4, 6, 7)
    assert found.num_hidden_layers is None
    assert found.notes == ("layers are 3-4, 6-7: the ids between are not in the file",)


def test_nobody_invents_ids():
    assert rows(range(4), 4).moe_layer_ids is None
    assert rows(range(4), 4, num_hidden_layers=7).moe_layer_ids is None
    assert rows(range(4), 4, num_hidden_layers=4).moe_layer_ids == (0, 1, 2, 3)
    whole = hidden_layer_rows(np.zeros(4, dtype=bool), ReadOptions())
    assert (whole.moe_layer_ids, whole.num_hidden_layers) == ((0, 1, 2, 3), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moe_layer_ids": (1, 2)}, "layer 3, not among them, has tokens in the file"),
        ({"moe_layer_ids": (1, 2, 9)}, "the file has 4 rows, expected one for each MoE layer"),
        ({"moe_layer_ids": (1, 2, 3), "num_hidden_layers": 9}, "the file has 4 rows"),
        ({"num_hidden_layers": 3}, "4 rows, 1 of them without a token, and the model 3 hidden layers"),
    ],
)
def test_what_does_not_fit_the_rows_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        rows([1, 2, 3], 4, **options)


def test_a_file_without_a_token_is_an_empty_recording():
    with pytest.raises(InputError, match=r"every count is zero: an empty recording \(5 layers\)"):
        rows([], 5)
