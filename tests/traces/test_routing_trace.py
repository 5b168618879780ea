import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_traces import InputError, ModelShape, RoutingTrace, TokenBatch, kernels
from tests.traces.examples import joined, random_batch, random_ids, traces

SHAPE = ModelShape(2, 8, 3)


def oracle_counts(trace, window):
    """{window: [L, E]} by the plainest loop."""
    counts = {}
    columns = joined(trace)
    first = min(columns["step"])
    for ids, step in zip(columns["expert_ids"], columns["step"], strict=True):
        of_window = counts.setdefault(
            int(step - first) // window, np.zeros((trace.shape.num_layers, trace.shape.num_experts))
        )
        for layer, chosen in enumerate(ids):
            of_window[layer, chosen] += 1
    return counts


@given(traces(), st.integers(1, 40))
def test_windows_are_counted_as_by_hand_however_batches_are_cut(trace, window):
    load = trace.load(window)
    expected = oracle_counts(trace, window)
    assert load.num_windows == len(expected)
    for counts, w in zip(load.tokens, sorted(expected), strict=True):
        np.testing.assert_array_equal(counts, expected[w])
    np.testing.assert_array_equal(trace.load().total, load.total)
    assert load.shape == trace.shape
    assert trace.num_tokens * trace.shape.top_k == load.tokens[:, 0].sum()


def test_a_gap_in_the_steps_costs_no_windows_and_labels_say_which_steps():
    ids = random_ids(np.random.default_rng(0), 4, SHAPE)
    batch = TokenBatch(SHAPE, ids, [3, 10**9, 4, 9], [0, 0, 0, 0])
    load = RoutingTrace(SHAPE, [batch]).load(5)
    # Windows of 5 steps from step 3 on: 3-7, 8-12, and 3 + 5 * 199999999 = 999999998 for step 10^9.
    assert load.labels == ("steps 3-7", "steps 8-12", "steps 999999998-1000000002")
    assert load.tokens.sum(axis=(1, 2)).tolist() == [12, 6, 6]
    assert RoutingTrace(SHAPE, [batch]).load(1).labels[0] == "step 3"
    assert RoutingTrace(SHAPE, [batch]).load().labels == ()


@pytest.mark.parametrize("offset", [0, 1000, 100_000])
@pytest.mark.parametrize("order", [1, -1])
def test_the_number_of_the_first_step_does_not_move_the_windows(offset, order):
    ids = random_ids(np.random.default_rng(0), 12, SHAPE)
    batches = [
        TokenBatch(SHAPE, ids[part], offset + np.arange(12)[part], np.zeros(len(ids[part]), dtype=int))
        for part in (slice(0, 5), slice(5, 5), slice(5, 12))
    ]
    load = RoutingTrace(SHAPE, batches[::order]).load(5)
    assert load.labels == tuple(f"steps {offset + first}-{offset + first + 4}" for first in (0, 5, 10))
    assert load.tokens[:, 0].sum(axis=1).tolist() == [5 * 3, 5 * 3, 2 * 3]  # the last window is cut by the end


def test_steps_are_those_with_tokens():
    ids = random_ids(np.random.default_rng(0), 4, SHAPE)
    trace = RoutingTrace(SHAPE, [TokenBatch(SHAPE, ids, [9, 3, 10**9, 3], [0, 0, 0, 0])])
    assert trace.steps.tolist() == [3, 9, 10**9]
    with pytest.raises(InputError, match="the trace has no tokens"):
        _ = RoutingTrace(SHAPE, []).steps


@given(traces(), st.integers(0, 30), st.integers(0, 30))
def test_selected_steps_are_those_and_only_those(trace, first, stop):
    chosen = RoutingTrace(trace.shape, list(trace.select_steps(first, stop)))
    steps = np.concatenate([batch.step for batch in trace])
    assert chosen.num_tokens == ((steps >= first) & (steps < stop)).sum()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint16])
def test_any_integers_become_read_only_uint16(dtype):
    ids = random_ids(np.random.default_rng(0), 4, SHAPE).astype(dtype)
    batch = TokenBatch(SHAPE, ids, np.arange(4), np.zeros(4, dtype=int))
    assert batch.expert_ids.dtype == np.uint16
    assert not batch.expert_ids.flags.writeable
    expected = batch.expert_ids.copy()
    ids[:] = 0
    np.testing.assert_array_equal(batch.expert_ids, expected)


def test_arrays_that_nobody_can_write_to_are_not_copied():
    ids = random_ids(np.random.default_rng(0), 4, SHAPE)
    ids.setflags(write=False)
    assert TokenBatch(SHAPE, ids, np.arange(4), np.arange(4)).expert_ids is ids


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((2, 1, 0), 8, r"expert_ids\[token 2, layer 1\] = 8: expected 0 <= id < 8"),
        ((2, 1, 0), -1, r"expert_ids\[token 2, layer 1\] = -1: expected 0 <= id < 8"),
        ((3, 0, 2), 65536 + 2, r"expert_ids\[token 3, layer 0\] = 65538: expected 0 <= id < 8"),
        ((0, 0), [5, 1, 5], r"expert_ids\[token 0, layer 0\] = \[5, 1, 5\]: expert 5 is there twice"),
    ],
)
def test_the_wrong_id_is_named(place, value, message):
    ids = np.tile(np.array([0, 1, 2]), (4, 2, 1))
    ids[place] = value
    with pytest.raises(InputError, match=message):
        TokenBatch(SHAPE, ids, np.arange(4), np.arange(4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_ids": np.zeros((4, 3, 3), int)}, r"shape \(4, 3, 3\): expected \[tokens, 2 layers, 3\]"),
        ({"expert_ids": np.zeros((4, 2, 2), int)}, r"shape \(4, 2, 2\): expected \[tokens, 2 layers, 3\]"),
        ({"expert_ids": np.zeros((4, 6), int)}, r"shape \(4, 6\)"),
        ({"expert_ids": np.zeros((4, 2, 3))}, "expert_ids is float64: expected integers"),
        ({"step": np.arange(3)}, r"step has shape \(3,\): expected one for each of 4 tokens"),
        ({"step": np.array([0, -2, 0, 0])}, r"step\[token 1\] = -2: expected 0 to"),
        ({"request": np.zeros(4)}, "request is float64: expected integers"),
        ({"source_rank": np.array([0, 0, 2**31, 0])}, r"source_rank\[token 2\] = 2147483648: expected 0 to 2147483647"),
    ],
)
def test_the_wrong_column_is_named(changes, message):
    fields = {
        "expert_ids": random_ids(np.random.default_rng(0), 4, SHAPE),
        "step": np.arange(4),
        "request": np.arange(4),
    }
    with pytest.raises(InputError, match=message):
        TokenBatch(SHAPE, **{**fields, **changes})


def test_more_experts_than_ids_are_refused():
    shape = ModelShape(1, 70_000, 1)
    with pytest.raises(InputError, match="num_experts = 70000: expected at most 65536"):
        TokenBatch(shape, np.zeros((1, 1, 1), int), [0], [0])


def test_batches_compare_and_pickle_by_value():
    batch = random_batch(np.random.default_rng(0), 6, SHAPE, optional=True)
    copy = pickle.loads(pickle.dumps(batch))
    assert copy == batch
    assert not copy.expert_ids.flags.writeable
    assert batch != batch.select(slice(0, 5))
    assert batch != TokenBatch(SHAPE, batch.expert_ids, batch.step, batch.request)
    assert batch != "a batch"
    assert repr(batch) == "TokenBatch(6 tokens)"


def test_a_source_that_runs_dry_is_refused():
    with pytest.raises(InputError, match="batches is a list_iterator: expected a source that can be iterated again"):
        RoutingTrace(SHAPE, iter([]))


def test_a_trace_is_frozen_and_walks_any_number_of_times():
    trace = RoutingTrace(SHAPE, [random_batch(np.random.default_rng(0), 6, SHAPE)])
    assert trace.load() == trace.load()
    assert list(trace) == list(trace.batches())
    assert repr(trace) == "RoutingTrace(2 layers x 8 experts, top-3)"
    with pytest.raises(AttributeError, match="frozen"):
        trace.shape = None


def test_wrong_traces_are_named():
    batch = random_batch(np.random.default_rng(0), 6, SHAPE, optional=True)
    with pytest.raises(InputError, match="the trace has no tokens"):
        RoutingTrace(SHAPE, []).load()
    with pytest.raises(InputError, match="window = 0: expected >= 1 step"):
        RoutingTrace(SHAPE, [batch]).load(0)
    with pytest.raises(InputError, match="a batch has the shape"):
        RoutingTrace(ModelShape(3, 8, 3), [batch]).load()
    with pytest.raises(InputError, match="domain 1: the trace has 1 domain_names"):
        RoutingTrace(SHAPE, [batch], domain_names=["prose"]).load()


@given(traces())
def test_kernels_do_what_their_python_text_says(trace):
    ids = joined(trace)["expert_ids"]
    shape = trace.shape
    window = np.arange(len(ids), dtype=np.int64) % 2
    compiled, plain = (np.zeros((2, shape.num_layers, shape.num_experts), dtype=np.int64) for _ in range(2))
    kernels.count_tokens(ids, window, compiled)
    kernels.count_tokens.py_func(ids, window, plain)
    np.testing.assert_array_equal(compiled, plain)
    for num_experts in (shape.num_experts, max(1, shape.num_experts - 1)):
        expected = kernels.first_bad_choice.py_func(ids, num_experts)
        assert kernels.first_bad_choice(ids, num_experts) == expected
