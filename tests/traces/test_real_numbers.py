"""Only numbers are numbers: wherever a caller passes an array."""

import numpy as np
import pytest

import eplb
from eplb.engines.arrays import as_history, as_ids
from eplb_traces.real_numbers import real_numbers

TOPOLOGY = eplb.Topology(1, 2, 2)
MASKED = np.ma.masked_array([[9.0, 3, 2, 2]], mask=[[False, True, False, False]])
IDS = np.ma.masked_array([[0, 1, 2, 3]], mask=[[False, True, False, False]])


def test_integers_and_floats_of_any_kind_are_copied():
    for kind in ("u1", "i8", ">i4", "f2", "f4", ">f8"):
        values = np.arange(4, dtype=kind)
        made = real_numbers(values, "x")
        assert (made.dtype, made.tolist()) == (np.dtype(np.float64), [0, 1, 2, 3])
        assert not np.shares_memory(made, values)
    assert real_numbers(np.ma.masked_array([1, 2]), "x").tolist() == [1, 2]  # nothing is masked


@pytest.mark.parametrize("kind", ["?", "S4", "U4", "O", "c16", "M8[s]", "m8[s]"])
def test_other_elements_are_refused(kind):
    values = np.ones((1, 4)).astype(kind)
    for use in (eplb.ExpertLoad, lambda it: eplb.rebalance_experts(it, 4, 1, 1, 2), lambda it: real_numbers(it, "x")):
        with pytest.raises(eplb.errors.InputError, match="not a rectangular array of numbers: it holds"):
            use(values)
    with pytest.raises(eplb.errors.InputError):
        eplb.plan(values, TOPOLOGY)
    with pytest.raises(eplb.errors.InputError):
        eplb.ExpertLoad(np.ones((4, 1, 4)), weights=values[0])


@pytest.mark.parametrize(
    "use",
    [
        lambda: eplb.ExpertLoad(MASKED),
        lambda: eplb.ExpertLoad([[1.0]], weights=np.ma.masked_array([1.0], mask=[True])),
        lambda: eplb.plan(MASKED, TOPOLOGY),
        lambda: eplb.evaluate(eplb.Placement([[0, 1, 2, 3]], 4, TOPOLOGY), MASKED),
        lambda: eplb.rebalance_experts(MASKED, 4, 1, 1, 2),
        lambda: eplb.Placement(IDS, 4, TOPOLOGY),
        lambda: eplb.Placement([[0, 1, 2, 3]], 4, TOPOLOGY, replica_weights=MASKED),
        lambda: as_ids(IDS, "ids"),
        lambda: as_history(MASKED, "counts", most_windows=1),
        lambda: eplb.plan([MASKED[0]], TOPOLOGY),
        lambda: eplb.ExpertLoad([[list(MASKED[0])]]),
        lambda: eplb.Placement([IDS[0]], 4, TOPOLOGY),
    ],
)
def test_masked_elements_are_refused_in_nested_lists_too(use):
    with pytest.raises(eplb.errors.InputError, match=r"\[\d(, 1)?\] is masked"):
        use()
