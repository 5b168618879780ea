import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_traces import ExpertLoad, InputError, ModelShape
from eplb_traces.expert_load import logical_counts
from tests.traces.examples import loads


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0])
def test_first_wrong_count_is_named(value):
    tokens = np.ones((2, 3, 4))
    tokens[1, 2, 3] = value
    with pytest.raises(InputError, match=rf"tokens\[window 1, layer 2, expert 3\] = {value}: expected finite and >= 0"):
        ExpertLoad(tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2], [3]],), "not a rectangular array"),
        ((np.ones(3),), r"shape \(3,\): expected \[windows, layers, experts\]"),
        ((np.ones((1, 0, 3)),), r"shape \(1, 0, 3\)"),
        ((np.ones((2, 1, 3)), [1.0]), r"weights has shape \(1,\): expected one for each of 2 windows"),
        ((np.ones((1, 3)), [0.0]), "expected finite and > 0"),
        ((np.ones((1, 3)), None, ["a", "b"]), "labels has 2 entries: expected one for each of 1 windows"),
        ((np.ones((1, 3)), None, None, ModelShape(2, 3)), "load of 1 layers x 3 experts: the model has 2 x 3"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        ExpertLoad(*arguments)


@given(loads())
def test_pickle_keeps_everything_read_only(load):
    copy = pickle.loads(pickle.dumps(load))
    assert copy == load
    assert hash(copy) == hash(load)
    assert not copy.tokens.flags.writeable
    assert not copy.total.flags.writeable


@given(loads())
def test_merging_keeps_the_weighted_total(load):
    np.testing.assert_allclose(load.merged(2).total, load.total, rtol=1e-12)
    np.testing.assert_allclose(load.total, sum(w * t for w, t in zip(load.weights, load.tokens, strict=True)))


def test_select_keeps_weights_and_labels():
    load = ExpertLoad(np.arange(12.0).reshape(3, 2, 2), [1, 2, 3], ["a", "b", "c"])
    selected = load.select(slice(1, 3))
    assert selected.labels == ("b", "c")
    assert selected.weights.tolist() == [2, 3]
    assert selected.tokens[0, 0, 0] == 4
    with pytest.raises(InputError, match="windows_per_merge = 0"):
        load.merged(0)


def test_a_load_is_frozen_and_owns_its_array():
    tokens = np.ones((1, 2))
    load = ExpertLoad(tokens)
    tokens[0, 0] = 5
    assert load.total[0, 0] == 1
    with pytest.raises(AttributeError, match="frozen"):
        load.tokens = tokens


@given(st.integers(0, 2**32 - 1))
def test_slots_of_an_expert_are_added_up(seed):
    rng = np.random.default_rng(seed)
    phy2log = rng.integers(-1, 4, (2, 6))
    counts = np.where(phy2log < 0, 0, rng.integers(0, 9, (3, 2, 6))).astype(np.float64)
    logical = logical_counts(counts, phy2log, 4)
    for window, layer, expert in np.ndindex(3, 2, 4):
        assert logical[window, layer, expert] == counts[window, layer][phy2log[layer] == expert].sum()
    np.testing.assert_array_equal(logical_counts(counts[0], phy2log, 4), logical[0])


def test_tokens_on_an_empty_slot_are_refused():
    with pytest.raises(InputError, match=r"counts\[layer 1, slot 2\] = 5: the slot is empty"):
        logical_counts(np.array([[1.0, 2, 0], [0, 0, 5]]), np.array([[0, 1, -1], [0, 1, -1]]), 2)
