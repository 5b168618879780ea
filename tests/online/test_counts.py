"""Counts of any rank layout are the same tokens of logical experts; what cannot be counts is refused."""

import numpy as np
import pytest

from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError, UnknownNameError
from eplb.online import CountsOf, Rebalancer
from eplb.online.counts import logical_counts
from eplb.online.window import LoadWindow, change_against_chance

# Two ranks of three slots; expert 0 lives twice, and slot 5 of layer 1 is a hole.
PLACED = Placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, -1]], 4, Topology(1, 2, 3))
SLOTS = np.array([[1, 2, 3, 4, 5, 6], [10, 20, 30, 40, 50, 0]])
# Layer 0: expert 0 in slots 0 and 4, expert 1 in 1 and 5. Layer 1: expert 3 in slots 0 and 4.
LOGICAL = np.array([[6, 8, 3, 4], [40, 30, 20, 60]])


@pytest.mark.parametrize(
    ("counts", "of"),
    [
        (LOGICAL, CountsOf.EXPERTS),
        (np.stack([LOGICAL, 0 * LOGICAL]), CountsOf.EXPERTS),
        (np.stack([LOGICAL / 4] * 4).reshape(2, 2, 2, 4), CountsOf.EXPERTS),
        (SLOTS, CountsOf.SLOTS),
        (np.stack([SLOTS - SLOTS // 3, SLOTS // 3]), CountsOf.SLOTS),
        (SLOTS.reshape(2, 2, 3).transpose(1, 0, 2), CountsOf.LOCAL_SLOTS),
        (LOGICAL.tolist(), CountsOf.EXPERTS),
    ],
)
def test_every_layout_says_the_same(counts, of):
    assert logical_counts(counts, of, PLACED).tolist() == LOGICAL.tolist()


def test_torch_tensors_are_taken():
    torch = pytest.importorskip("torch")
    for dtype in (torch.int64, torch.float32):
        assert logical_counts(torch.tensor(SLOTS, dtype=dtype), CountsOf.SLOTS, PLACED).tolist() == LOGICAL.tolist()


def test_slots_are_counted_by_the_map_that_was_in_force():
    other = Placement([[3, 2, 1, 0, 3, 2], [0, 1, 2, 3, 0, 1]], 4, PLACED.topology)
    with Rebalancer(other) as rebalancer:
        rebalancer.record(SLOTS, "slots", PLACED)
        assert rebalancer._window.load().tokens[0].tolist() == LOGICAL.tolist()
        with pytest.raises(UnknownNameError, match="local_slots"):
            rebalancer.record(SLOTS, "pages")


@pytest.mark.parametrize(
    ("counts", "of", "message"),
    [
        (LOGICAL[0], CountsOf.EXPERTS, "expected [.., 2, 4]"),
        (SLOTS, CountsOf.EXPERTS, "expected [.., 2, 4]"),
        (LOGICAL, CountsOf.SLOTS, "expected [.., 2, 6]"),
        (SLOTS, CountsOf.LOCAL_SLOTS, "expected (2, 2, 3)"),
        (-LOGICAL, CountsOf.EXPERTS, "finite and >= 0"),
        (LOGICAL * np.nan, CountsOf.EXPERTS, "finite and >= 0"),
        (SLOTS + 1, CountsOf.SLOTS, "counts[layer 1, slot 5] = 1: the slot is empty"),
    ],
)
def test_what_cannot_be_counts_is_refused(counts, of, message):
    with pytest.raises(InputError) as error:
        logical_counts(counts, of, PLACED)
    assert message in str(error.value)


def test_local_slots_need_equal_ranks():
    uneven = Placement([[0, 1, 2, 3, 0]], 4, Topology(1, 2, (3, 2)))
    with pytest.raises(InputError, match="equally many"):
        logical_counts(np.zeros((2, 1, 3)), CountsOf.LOCAL_SLOTS, uneven)


def test_the_window_forgets_and_halves():
    window = LoadWindow(3, half_life=1.0)
    for step in range(1, 6):
        window.add(np.full((1, 2), float(step)))
        window.add(np.zeros((1, 2)))  # an idle step is none
    load = window.load()
    assert load.tokens[:, 0, 0].tolist() == [3, 4, 5]
    assert load.weights.tolist() == [0.25, 0.5, 1.0]
    assert window.recent(2)[:, 0, 0].tolist() == [4, 5]
    sliding = LoadWindow(3, half_life=float("inf"))
    for _ in range(3):
        sliding.add(np.ones((1, 2)))
    assert sliding.load().weights.tolist() == [1, 1, 1]


def test_change_is_one_by_chance_and_more_when_shares_change():
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(64))
    chance = [
        change_against_chance(*(rng.multinomial(5000, share, size=(steps, 4)).astype(float) for steps in (30, 10)))
        for _ in range(40)
    ]
    assert abs(np.mean(chance) - 1) < 0.05
    assert max(chance) < 1.5
    other = np.roll(share, 1)
    assert (
        change_against_chance(rng.multinomial(5000, share, (30, 4)) * 1.0, rng.multinomial(5000, other, (10, 4)) * 1.0)
        > 10
    )
    # Three times the tokens are the same shares.
    steps = rng.multinomial(5000, share, (8, 4)).astype(float)
    assert change_against_chance(steps, 3 * steps) == pytest.approx(0)
    assert change_against_chance(np.ones((2, 1, 2)), np.ones((2, 1, 2))) == 0
    assert change_against_chance(np.ones((1, 1, 2)), np.ones((1, 1, 2))) == np.inf
