"""Claims of replans from maps with empty slots, which can beat bounds that count what shares a full rank."""

import numpy as np
import pytest

import eplb
from eplb.bounds.lower_bounds import lower_bounds

TOPOLOGY_OF = {"equal": None, "unequal": (3.0, 1.0), "slow first": (1.0, 3.0), "close": (1.0, 1.01)}


def replanned(tokens, speeds, target):
    topology = eplb.Topology(1, 2, 2, speeds)
    return eplb.rebalance(eplb.Placement([[0, -1, 1, 2]], 3, topology), eplb.ExpertLoad([tokens]), target=target)


@pytest.mark.parametrize("speeds", TOPOLOGY_OF.values(), ids=TOPOLOGY_OF)
@pytest.mark.parametrize("target", [1.0, 1.3, 100.0])
@pytest.mark.parametrize("tokens", [(10.0, 7.0, 3.0), (100.0, 1.0, 1.0)])
def test_the_claim_is_what_the_judge_finds_and_not_below_its_bound(tokens, speeds, target):
    made = replanned(tokens, speeds, target)
    judged = eplb.evaluate(made.placement, eplb.ExpertLoad([tokens])).total_rank_time.max()
    assert made.layers[0].objective == pytest.approx(judged, rel=1e-9)
    assert made.layers[0].lower_bound <= judged * (1 + 1e-9)


# Speeds 3 and 1, scaled to 1.5 and 0.5. Expert 0 alone takes 100 / 1.5 on the fast rank. Beside it a full rank holds at
# least half of an expert of 1 token, which takes 0.5 / 1.5 more.
def test_the_bound_of_full_ranks_is_false_here():
    made = replanned((100.0, 1.0, 1.0), (3.0, 1.0), 1.0)
    full = lower_bounds(np.array([[100.0, 1.0, 1.0]]), made.placement.topology).value[0]
    assert full == pytest.approx(100.5 / 1.5)
    assert made.layers[0].objective == pytest.approx(100 / 1.5)
    assert made.layers[0].lower_bound <= made.layers[0].objective < full
