"""Many ranks of unequal speed: classes of like speed, experts in proportion, and a time like that of equal ranks."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eplb
from eplb.core.problem import Problem
from eplb.errors import InfeasibleError
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.greedy.speed_classes import share_out
from tests.oracles import hands_of, has_doubles

RNG = np.random.default_rng(11)


@given(
    load=st.lists(st.integers(0, 9), min_size=4, max_size=12),
    speed=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=2, max_size=3),
    data=st.data(),
)
@settings(max_examples=50)
def test_experts_are_shared_out_once_within_the_fewest_and_most_of_each_class(load, speed, data):
    least = [data.draw(st.integers(0, len(load) // len(speed))) for _ in speed]
    most = [data.draw(st.integers(max(1, fewest), len(load))) for fewest in least]
    load = np.array(load, dtype=np.float64)
    if sum(most) < load.size:
        with pytest.raises(InfeasibleError, match=f"{load.size} experts: expected {sum(least)} to {sum(most)}"):
            share_out(load, np.array(speed), least, most)
        return
    shared = share_out(load, np.array(speed), least, most)
    assert sorted(np.concatenate(shared).tolist()) == list(range(load.size))
    assert all(low <= own.size <= high for low, own, high in zip(least, shared, most, strict=True))


def test_the_load_of_a_class_is_in_proportion_to_its_speed():
    # 12 tokens, speeds 1 and 2: 4 and 8. Largest first to the class that lacks most: 5 and 2 to the fast one (8, then
    # 3, against 4: the 3 goes to the slow one), the ones to each in turn.
    shared = share_out(np.array([5.0, 3, 2, 1, 1]), np.array([1.0, 2.0]), [0, 0], [5, 5])
    assert [np.array([5.0, 3, 2, 1, 1])[own].sum() for own in shared] == [4.0, 8.0]


@pytest.mark.parametrize(
    ("topology", "num_experts", "most_gap"),
    [
        (eplb.Topology(8, 8, 6, np.resize([0.5, 1, 2], 64).tolist()), 128, 0.01),
        (eplb.Topology(8, 8, 6, RNG.uniform(0.5, 2, 64).tolist()), 128, 0.05),
        (eplb.Topology(8, 8, RNG.integers(4, 8, 64).tolist(), np.resize([1, 3], 64).tolist()), 96, 0.1),
    ],
)
def test_many_ranks_of_unequal_speed_come_near_the_bound(topology, num_experts, most_gap):
    load = eplb.ExpertLoad(np.round(RNG.lognormal(5, 1.2, (2, num_experts))))
    made = Greedy()(Problem(load, topology))
    judged = eplb.evaluate(made.placement, load).total_rank_time.max(axis=1)
    for layer, certificate in enumerate(made.layers):
        hands = hands_of(made.placement, layer)
        assert not has_doubles(hands)
        assert {expert for hand in hands for expert in hand} == set(range(num_experts))
        assert certificate.objective == pytest.approx(judged[layer], rel=1e-9)
        assert certificate.gap < most_gap


def test_too_few_experts_for_two_classes_still_give_a_plan():
    # Every rank holds 40 of 41 experts: no class can have experts of its own.
    load = eplb.ExpertLoad(RNG.lognormal(5, 1, (1, 41)))
    made = Greedy()(Problem(load, eplb.Topology(1, 8, 40, np.resize([0.5, 1, 2], 8).tolist())))
    judged = eplb.evaluate(made.placement, load).total_rank_time.max(axis=1)
    assert made.layers[0].objective == pytest.approx(judged[0], rel=1e-9)


LARGE = """
import time, numpy as np, eplb
from eplb.strategies.greedy.greedy import Greedy
from eplb.core.problem import Problem
load = eplb.ExpertLoad(np.round(np.random.default_rng(1).lognormal(5, 1.2, (1, 512))))
for slots in (1, 2, 4):
    topology = eplb.Topology(128, 8, slots, np.resize([0.5, 1, 2], 1024).tolist())
    print(slots, Greedy()(Problem(load, topology)).layers[0].gap)
"""


@pytest.mark.slow
def test_a_thousand_ranks_of_unequal_speed_are_planned_within_the_time_limit():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", LARGE], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
