"""Several files put together: by hand for small loads, and by counting for traces."""

import numpy as np
import pytest

from eplb_traces import ExpertLoad, InputError, ModelShape, RoutingTrace, TokenBatch
from eplb_traces.combine import Combine, combine_loads, combine_traces
from tests.traces.examples import joined

A, B = [[1.0, 2], [3, 4]], [[5.0, 6], [7, 8]]


def of_layers(tokens, ids, hidden=None):
    tokens = np.array(tokens, dtype=float)
    return ExpertLoad(tokens, shape=ModelShape(len(ids), 2, moe_layer_ids=ids, num_hidden_layers=hidden))


@pytest.mark.parametrize("how", Combine)
def test_a_single_load_stays_as_it_is(how):
    load = ExpertLoad(A)
    assert combine_loads([load], ["a.npz"], how) is load


def test_workloads_are_windows_with_the_names_of_their_files():
    two = ExpertLoad([A, B], weights=[2, 3], labels=["day", "night"])
    found = combine_loads([ExpertLoad(A), two, ExpertLoad([B, A])], ["x/a.npz", "b.npz", "c.npz"], Combine.WORKLOADS)
    assert found.tokens.tolist() == [A, A, B, B, A]
    assert found.labels == ("a", "b, day", "b, night", "c, window 0", "c, window 1")
    assert found.weights.tolist() == [1, 2, 3, 1, 1]
    alike = combine_loads([ExpertLoad(A)] * 2, ["x/a.npz", "x/a.csv"], Combine.WORKLOADS)
    assert alike.labels == ("x/a.npz", "x/a.csv")


def test_ranks_are_added_window_by_window():
    found = combine_loads([ExpertLoad([A, B]), ExpertLoad([B, B])], "ab", Combine.SUM)
    assert found.tokens.tolist() == [[[6, 8], [10, 12]], [[10, 12], [14, 16]]]
    with pytest.raises(InputError, match="b has 1 windows: a has 2"):
        combine_loads([ExpertLoad([A, B]), ExpertLoad(B)], "ab", Combine.SUM)
    one, other = (ExpertLoad(A, labels=[label]) for label in ("steps 0-9", "steps 10-19"))
    with pytest.raises(InputError, match="b has a window 'steps 10-19' where a has 'steps 0-9'"):
        combine_loads([one, other], "ab", Combine.SUM)
    with pytest.raises(InputError, match="b and a weigh their windows differently"):
        combine_loads([ExpertLoad(A), ExpertLoad(A, weights=[2])], "ab", Combine.SUM)


def test_time_is_one_history_in_the_order_of_the_files():
    found = combine_loads([ExpertLoad([A, B]), ExpertLoad(A)], "ab", Combine.TIME)
    assert (found.tokens.tolist(), found.labels) == ([A, B, A], ())


def test_layers_are_sorted_by_their_ids():
    last, first = of_layers(A, (4, 61), hidden=62), of_layers(B, (3, 5))
    found = combine_loads([last, first], ["last", "first"], Combine.LAYERS)
    assert found.shape == ModelShape(4, 2, moe_layer_ids=(3, 4, 5, 61), num_hidden_layers=62)
    assert found.tokens.tolist() == [[B[0], A[0], B[1], A[1]]]


@pytest.mark.parametrize(
    ("loads", "message"),
    [
        ((of_layers(A, (3, 4)), of_layers(B, (4, 5))), "layers 4 are in more than one of a, b"),
        ((of_layers(A, (3, 4)), ExpertLoad(B)), r"b: the layer ids are unknown: give moe_layer_ids \(--moe-layers\)"),
        ((of_layers(A, (3, 4)), of_layers([B, B], (5, 6))), "b has 2 windows: a has 1"),
    ],
)
def test_layers_that_do_not_fit_are_refused_by_file(loads, message):
    with pytest.raises(InputError, match=message):
        combine_loads(loads, "ab", Combine.LAYERS)


@pytest.mark.parametrize("how", [Combine.WORKLOADS, Combine.SUM, Combine.TIME])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ExpertLoad([[1.0, 2]]), "^b.npz: layers = 1, and 2 in a.npz$"),
        (ExpertLoad([[1.0, 2, 3]] * 2), "^b.npz: experts = 3, and 2 in a.npz$"),
        (of_layers(B, (3, 5)), "^b.npz: MoE layer ids = 3, 5, and 3-4 in a.npz$"),
    ],
)
def test_other_models_are_refused_by_file(how, other, message):
    with pytest.raises(InputError, match=message):
        combine_loads([of_layers(A, (3, 4)), other], ["a.npz", "b.npz"], how)


def trace(steps, requests, domains=("x",), seed=0):
    shape = ModelShape(1, 4, 2)
    ids = np.random.default_rng(seed).permuted(np.tile(np.arange(4), (len(steps), 1, 1)), axis=2)[:, :, :2]
    domain = np.arange(len(steps)) % len(domains)
    return RoutingTrace(shape, [TokenBatch(shape, ids, steps, requests, domain=domain)], domain_names=domains)


@pytest.mark.parametrize(("how", "steps"), [(Combine.SUM, [0, 1, 0, 2]), (Combine.TIME, [0, 1, 2, 4])])
def test_traces_keep_every_token_and_tell_requests_apart(how, steps):
    one, other = trace([0, 1], [0, 5], ("x", "y")), trace([0, 2], [0, 1], ("y", "z"), seed=1)
    found = combine_traces([one, other], "ab", how)
    columns = joined(found)
    assert columns["step"].tolist() == steps
    assert columns["request"].tolist() == [0, 5, 6, 7]
    assert [found.domain_names[i] for i in columns["domain"]] == ["x", "y", "y", "z"]
    np.testing.assert_array_equal(found.load().total, one.load().total + other.load().total)


@pytest.mark.parametrize("how", [Combine.WORKLOADS, Combine.LAYERS])
def test_traces_are_neither_workloads_nor_layers(how):
    with pytest.raises(InputError, match=f"combine = {how}: expected time or sum for token-level traces"):
        combine_traces([trace([0], [0])] * 2, "ab", how)
