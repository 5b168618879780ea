"""Windows of a trace: the rule that cuts one that is not told otherwise, and what a caller may say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eplb
from eplb_traces import ExpertLoad, InputError, ModelShape, RoutingTrace, TokenBatch, read_load, write_trace
from eplb_traces.routing_trace import ALL_STEPS
from eplb_traces.windows import LEAST_CHOICES, MOST_WINDOWS, load_by_window, load_over_time, window_length
from tests.traces.examples import random_batch, traces


@given(traces(), st.integers(1, 9))
def test_a_trace_over_time_is_all_of_it_in_at_most_so_many_windows(trace, num_windows):
    load = load_over_time(trace, num_windows)
    np.testing.assert_array_equal(load.total, trace.load().total)
    assert load.num_windows <= num_windows
    assert load.shape == trace.shape


def test_eight_windows_of_forty_steps():
    shape = ModelShape(1, 4, 1)
    batch = random_batch(np.random.default_rng(0), 2000, shape, num_steps=40)
    assert load_over_time(RoutingTrace(shape, [batch]), 8).labels[:2] == ("steps 0-4", "steps 5-9")


def stepped(steps):
    """One token in each of some steps, which chooses expert 0."""
    shape = ModelShape(1, 4, 1)
    ids = np.zeros((len(steps), 1, 1), dtype=int)
    return RoutingTrace(shape, [TokenBatch(shape, ids, steps, np.zeros(len(steps), dtype=int))])


@pytest.mark.parametrize("offset", [0, 1000, 100_000])
def test_windows_over_time_do_not_depend_on_the_number_of_the_first_step(offset):
    load = load_over_time(stepped(offset + np.arange(80)), 40)
    assert load.tokens.sum(axis=(1, 2)).tolist() == [2] * 40
    assert load.labels[0] == f"steps {offset}-{offset + 1}"


def test_gaps_do_not_make_windows_longer():
    # 20 steps, a million without a token, 20 more: windows of 4 steps, of which the gap takes none.
    load = load_over_time(stepped(np.concatenate([np.arange(20), 10**6 + np.arange(20)])), 10)
    assert load.num_windows == 10
    assert load.tokens.sum(axis=(1, 2)).tolist() == [4] * 10
    # Every hundredth step is recorded: windows of one step each.
    assert load_over_time(stepped(np.arange(0, 1000, 100)), 10).labels[:2] == ("step 0", "step 100")


def test_steps_far_apart_share_windows_where_there_are_too_many():
    load = load_over_time(stepped(np.array([0, 1, 2, 1000, 2000, 3000])), 3)
    assert load.num_windows <= 3
    assert load.tokens.sum() == 6


def test_a_load_keeps_its_windows_or_sums_them_and_a_trace_is_counted():
    load = ExpertLoad(np.arange(1.0, 25).reshape(6, 1, 4))
    assert load_by_window(load, None) is load
    assert load_by_window(load, 3) == load.merged(3)
    trace = stepped(np.arange(6))
    assert load_by_window(trace, 2) == trace.load(2)
    assert load_by_window(trace, ALL_STEPS) == trace.load(ALL_STEPS) == trace.load()
    assert load_by_window(load, ALL_STEPS) == load.merged(6)


def test_nothing_to_look_at_is_named():
    trace = RoutingTrace(ModelShape(1, 4, 1), [])
    with pytest.raises(InputError, match="the trace has no tokens"):
        load_over_time(trace, 8)
    with pytest.raises(InputError, match="num_windows = 0: expected >= 1"):
        load_over_time(trace, 0)


def even_trace(*, num_steps, choices_per_expert):
    """Every step, every one of 4 experts is chosen equally often."""
    shape = ModelShape(1, 4, 1)
    steps = np.repeat(np.arange(num_steps), 4 * choices_per_expert)
    ids = (np.arange(len(steps)) % 4).reshape(-1, 1, 1)
    return RoutingTrace(shape, [TokenBatch(shape, ids, steps, np.zeros(len(steps), dtype=int))])


@pytest.mark.parametrize(
    ("num_steps", "choices_per_expert", "num_windows"),
    [
        (12, LEAST_CHOICES, 12),  # a window a step
        (12, LEAST_CHOICES // 2, 6),  # two steps hold enough choices
        (12, 2 * LEAST_CHOICES, 12),  # never shorter than a step
        (12, LEAST_CHOICES // 8, 1),  # 12 choices an expert in all: not two windows
        (1, 100, 1),
        (100, LEAST_CHOICES, 34),  # at most 40: three steps each
    ],
)
def test_a_trace_is_cut_into_windows_as_short_as_the_limits_allow(num_steps, choices_per_expert, num_windows):
    trace = even_trace(num_steps=num_steps, choices_per_expert=choices_per_expert)
    load = load_by_window(trace, None)
    assert load.num_windows == num_windows <= MOST_WINDOWS
    np.testing.assert_array_equal(load.total, trace.load().total)
    assert bool(load.labels) == (num_windows > 1)


def test_steps_without_enough_choices_are_one_window():
    assert window_length(np.arange(10), 4 * LEAST_CHOICES * 2 - 1, 4) == ALL_STEPS
    assert window_length(np.arange(10), 4 * LEAST_CHOICES * 2, 4) == 5


def test_everyone_who_reads_a_trace_cuts_it_alike(tmp_path):
    trace, path = even_trace(num_steps=12, choices_per_expert=LEAST_CHOICES), tmp_path / "t.parquet"
    write_trace(trace, path)
    expected = load_by_window(trace, None)
    assert read_load(path) == expected
    assert read_load(path, window=ALL_STEPS) == trace.load()
    topology = eplb.Topology.for_experts(4, num_ranks=2, num_redundant=2)
    for given_as in (trace, path, str(path)):
        made = eplb.plan(given_as, topology)
        assert made.load_digest == expected.digest
        assert eplb.evaluate(made, given_as).load == expected


def test_positions_of_tokens_in_their_requests_are_no_time():
    ids = np.random.default_rng(0).random((600, 2, 8)).argsort(axis=2)[:, :, :2].astype(np.uint16)
    shape = ModelShape(2, 8, 2)
    position, request = np.tile(np.arange(200), 3), np.repeat(np.arange(3), 200)

    def cut(step, parts=1):
        batches = [
            TokenBatch(shape, ids[part], step[part], request[part]) for part in np.array_split(np.arange(600), parts)
        ]
        return load_by_window(RoutingTrace(shape, batches), None).num_windows

    assert cut(position) == cut(position, 7) == 1
    assert cut(position + 1) > 1  # steps of an engine that counts from another one
    assert cut(position // 2) > 1  # two tokens of a request in one step: prefill
    assert cut(position[::-1].copy()) > 1
