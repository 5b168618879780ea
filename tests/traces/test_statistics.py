"""What is looked at first: profiles, drift and group affinity, by hand and against draws."""

import numpy as np
import pytest
from hypothesis import example, given

from eplb_traces import ExpertLoad, InputError, ModelShape, RoutingTrace
from eplb_traces.coactivation.layer_coactivation import PairShare
from eplb_traces.statistics import drift, group_affinity, load_profile, mean_share
from tests.traces.examples import loads, random_batch


def test_drift_by_hand():
    # Layer 0: whole (4, 4) of 8; window 0 (4, 0): half of its choices are too many on expert 0; window 1 alike.
    # Layer 1: whole (4, 2) of 6; window 0 (3, 0): 1 - 4/6; window 1 (1, 2): 4/6 - 1/3 = 1/3; so 1/3 both.
    # Layer 2 has no load.
    load = ExpertLoad([[[4, 0], [3, 0], [0, 0]], [[0, 4], [1, 2], [0, 0]]])
    found = drift(load)
    np.testing.assert_allclose(found.distance, [0.5, 1 / 3, np.nan])
    assert np.isnan(found.by_chance[2])
    # Half the sum over both experts of sqrt(2 / pi * 1/4 * (1/4 - 1/8)), in both windows.
    assert found.by_chance[0] == pytest.approx(np.sqrt(2 / np.pi / 4 / 8))
    assert found.mean == pytest.approx((0.5 + 1 / 3) / 2)
    assert found.mean_by_chance == pytest.approx(found.by_chance[:2].mean())


def test_weights_count_windows_several_times():
    # Window 1 counts three times: whole (1, 3) / 4, window 0 is 3/4 away, window 1 1/4; (1 * 3/4 + 3 * 1/4) / 4.
    found = drift(ExpertLoad([[[5, 0]], [[0, 5]]], weights=[1, 3]))
    assert found.distance == pytest.approx([3 / 8])


@given(loads())
@example(ExpertLoad([[[1e-200, 3e-200, 0.7e-200]]]))
@example(ExpertLoad([[[1e-300]]]))
def test_drift_is_a_share_and_none_for_one_window(load):
    found = drift(load)
    loaded = load.total.sum(axis=1) > 0
    assert (np.isnan(found.distance) == ~loaded).all()
    assert (found.distance[loaded] >= 0).all()
    assert (found.distance[loaded] <= 1 + 1e-9).all()
    if load.num_windows == 1:
        np.testing.assert_allclose(found.distance[loaded], 0, atol=1e-12)
        np.testing.assert_allclose(found.by_chance[loaded], 0, atol=1e-6)


def test_chance_is_what_independent_choices_show():
    rng = np.random.default_rng(4)
    share = rng.dirichlet(np.full(64, 2.0))
    sizes = (500, 1000, 4000, 500)
    load = ExpertLoad(np.array([rng.multinomial(n, np.tile(share, (40, 1)), (40,)) for n in sizes]))
    found = drift(load)
    assert found.mean == pytest.approx(found.mean_by_chance, rel=0.03)


def test_profile_by_hand():
    # Layer 0, mean 2: blocks (1, 3), (0, 4, 2) of 5 experts in 2 blocks: 2 and 2; layer 1 has no load.
    load = ExpertLoad([[[1, 3, 0, 4, 2], [0] * 5]])
    np.testing.assert_allclose(load_profile(load, 2), [[1, 1], [np.nan, np.nan]])
    np.testing.assert_allclose(load_profile(load, 5)[0], [0.5, 1.5, 0, 2, 1])
    np.testing.assert_allclose(load_profile(load, 1)[0], [1])
    for wrong in (0, 6):
        with pytest.raises(InputError, match=f"num_blocks = {wrong}: expected 1 to 5 experts"):
            load_profile(load, wrong)


def test_group_affinity_uses_the_models_groups():
    # Groups {0, 1} and {2, 3}; tokens choose 01, 01, 23, 02: three of four pairs are inside.
    shape = ModelShape(1, 4, 2, num_expert_groups=2)
    ids = np.array([[[0, 1]], [[0, 1]], [[2, 3]], [[0, 2]]])
    batch = random_batch(np.random.default_rng(0), 4, shape)
    trace = RoutingTrace(shape, [type(batch)(shape, ids, batch.step, batch.request)])
    (share,) = group_affinity(trace)
    assert share.observed == 3 / 4
    assert share.ratio > 1


def test_means_leave_out_what_is_not_known():
    nan = float("nan")
    assert mean_share([PairShare(0.2, 0.1), PairShare(nan, nan), PairShare(0.4, 0.3)]) == pytest.approx((0.3, 0.2))
    assert np.isnan(mean_share([])).all()
