"""Hard side constraints: what is refused at sight, what a placement breaks, and who may be asked."""

import pytest

from eplb.core.constraints import Constraints, ReplicatedSlot
from eplb.core.problem import Problem
from eplb.core.topology import Topology
from eplb.errors import InfeasibleError, InputError
from eplb.strategies import STRATEGIES
from eplb_traces import ExpertLoad

LOAD, TOPOLOGY = ExpertLoad([[4.0, 3, 2, 1]]), Topology(1, 3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pin": [(-1, 0)]}, r"pin: \(-1, 0\): expected ids >= 0"),
        ({"apart": [[3]]}, r"apart: \(3,\): expected two or more different ids"),
        ({"together": [[3, 3]]}, r"together: \(3, 3\): expected two or more different ids"),
        ({"replica_counts": [1, 0]}, r"replica_counts\[1\] = 0: expected >= 1"),
        ({"expert_bytes": -1.0, "rank_bytes": 1.0}, "expert_bytes = -1.0: expected finite bytes >= 0"),
        ({"expert_bytes": 1.0}, "expected both or neither"),
        ({"replicate_everywhere": [2, 2]}, r"replicate_everywhere: \(2, 2\): expected different ids >= 0"),
        ({"replicate_everywhere": [2, -1]}, r"replicate_everywhere: \(-1, 2\): expected different ids >= 0"),
        ({"apart": [[-1, 2]]}, r"apart: \(-1, 2\): expected two or more different ids >= 0"),
        ({"expert_bytes": 1.0, "rank_bytes": [4, float("inf")]}, "rank_bytes = inf: expected finite bytes >= 0"),
    ],
)
def test_constraints_that_cannot_be_meant_are_refused_at_birth(arguments, message):
    with pytest.raises(InputError, match=message):
        Constraints(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pin": [(4, 0)]}, "pin: expert = 4: expected 0 <= id < 4"),
        ({"forbid": [(0, 3)]}, "forbid: rank = 3: expected 0 <= id < 3"),
        ({"apart": [[0, 9]]}, "apart: expert = 9"),
        ({"replicate_everywhere": [4]}, "replicate_everywhere: expert = 4: expected 0 <= id < 4"),
        ({"replica_counts": [2, 2, 2]}, "replica_counts has 3 entries: expected one for each of 4 experts"),
        ({"expert_bytes": 1.0, "rank_bytes": [4, 4]}, "rank_bytes has 2 entries: expected one for each of 3 ranks"),
    ],
)
def test_constraints_of_another_machine_or_model_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Problem(LOAD, TOPOLOGY, constraints=Constraints(**arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pin": [(1, 2)], "forbid": [(1, 2)]}, "expert 1 is pinned to rank 2 and forbidden there"),
        ({"forbid": [(1, 0), (1, 1), (1, 2)]}, "expert 1 may lie on none of 3 ranks"),
        ({"pin": [(0, 1), (1, 1), (2, 1)]}, "3 experts on rank 1 of 2 slots"),
        ({"pin": [(0, 1), (2, 1)], "apart": [[0, 2]]}, r"experts \[0, 2\] are pinned to rank 1 and kept apart"),
        ({"apart": [[0, 1]], "together": [[0, 1]]}, r"experts \[0, 1\] are kept together and apart"),
        ({"together": [[0, 1, 2]]}, "3 experts, but a rank has at most 2 slots"),
        ({"apart": [[0, 1, 2, 3]]}, "apart: 4 experts on 3 ranks"),
        ({"replica_counts": [1, 1, 1, 1]}, "sum to 4: expected the 6 slots"),
        ({"replica_counts": [3, 1, 1, 1], "forbid": [(0, 0)]}, r"replica_counts\[0\] = 3: it may lie on 2 ranks"),
        ({"replica_counts": [1, 2, 2, 1], "pin": [(0, 0), (0, 1)]}, "it is pinned to 2 ranks"),
        ({"replicate_everywhere": [1], "forbid": [(1, 0)]}, "expert 1 is replicated everywhere and forbidden"),
        ({"replicate_everywhere": [1, 2], "apart": [[1, 2]]}, r"experts \[1, 2\] are pinned to rank 0 and kept apart"),
        ({"replicate_everywhere": [0, 1, 2]}, "3 experts on rank 0 of 2 slots"),
        ({"replicate_everywhere": [0], "replica_counts": [2, 2, 1, 1]}, r"\[0\] = 2: it is pinned to 3 ranks"),
        ({"expert_bytes": 2.0, "rank_bytes": 2.0}, "rank_bytes sum to 6: the experts take 8"),
        ({"expert_bytes": [1, 9, 1, 1], "rank_bytes": [8, 8, 8]}, "expert 1 fits on no rank"),
    ],
)
def test_contradictions_are_named_before_any_search(arguments, message):
    with pytest.raises(InfeasibleError, match=message):
        Problem(LOAD, TOPOLOGY, constraints=Constraints(**arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {"pin": [(0, 1), (1, 1)]},
        {"pin": [(0, 1), (1, 1)], "apart": [[0, 2]]},
        {"forbid": [(1, 0), (1, 2)]},
        {"together": [[0, 1]], "apart": [[1, 2]]},
        {"apart": [[0, 1, 2]]},
        {"replica_counts": [2, 2, 1, 1], "forbid": [(0, 0)]},
        {"replica_counts": [2, 2, 1, 1], "pin": [(0, 0), (0, 1)]},
        {"expert_bytes": 1.5, "rank_bytes": 2.0},
        {"expert_bytes": [1, 8, 1, 1], "rank_bytes": [8, 1, 2]},
        {"expert_bytes": 1.0, "rank_bytes": 2.0, "replica_counts": [2, 2, 1, 1]},
        {"expert_bytes": 0.0, "rank_bytes": 0.0},
    ],
    ids=str,
)
def test_what_just_fits_is_accepted(arguments):
    Constraints(**arguments).check(4, TOPOLOGY)


def test_experts_that_are_kept_together_need_one_rank_that_is_large_enough():
    Constraints(together=[[0, 1, 2]]).check(4, Topology(1, 3, [1, 2, 3]))
    with pytest.raises(InfeasibleError, match="together: 4 experts, but a rank has at most 3 slots"):
        Constraints(together=[[0, 1, 2, 3]]).check(4, Topology(1, 3, [1, 2, 3]))


def test_the_bytes_of_every_replica_count():
    asked = Constraints(expert_bytes=[1, 2, 1, 1], rank_bytes=2.5, replica_counts=[2, 2, 1, 1])
    with pytest.raises(InfeasibleError, match=r"rank_bytes sum to 7.5: the experts take 8"):
        asked.check(4, TOPOLOGY)


@pytest.mark.parametrize(
    ("arguments", "apart"),
    [
        ({}, False),
        ({"pin": [(0, 1)]}, True),
        ({"forbid": [(0, 1)]}, True),
        ({"expert_bytes": 1.0, "rank_bytes": [2, 2, 3]}, True),
        ({"expert_bytes": 1.0, "rank_bytes": 2.0, "together": [[0, 1]]}, False),
    ],
    ids=str,
)
def test_equal_ranks_may_be_exchanged_unless_a_constraint_names_them(arguments, apart):
    assert Constraints(**arguments).tells_ranks_apart is apart


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pin": [(3, 0)]}, "expert 3 is not on rank 0, where it is pinned"),
        ({"forbid": [(0, 1)]}, "expert 0 is on rank 1, where it is forbidden"),
        ({"apart": [[0, 1]]}, r"experts \[0, 1\] are on rank 0 and kept apart"),
        ({"together": [[0, 2]]}, r"experts \[0\] are on rank 0 without all of \(0, 2\)"),
        ({"replica_counts": [3, 1, 1, 1]}, "expert 0 has 2 replicas, not 3"),
        ({"expert_bytes": [3, 3, 1, 1], "rank_bytes": 5.0}, "rank 0 holds 6 of 5 bytes"),
        ({"replicate_everywhere": [0]}, "expert 0 is not on rank 2, where it is pinned"),
    ],
)
def test_what_a_placement_breaks_is_said(arguments, message):
    hands = [[0, 1], [0, 2], [2, 3]]
    breaches = list(Constraints(**arguments).breaches(hands, 4))
    assert breaches
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(breaches[0])


def test_a_placement_that_meets_everything_breaks_nothing():
    asked = Constraints(
        pin=[(0, 0)],
        forbid=[(3, 0)],
        apart=[[0, 3]],
        together=[[2, 3]],
        replica_counts=[2, 1, 1, 1],
        expert_bytes=[2, 2, 1, 1],
        rank_bytes=[4, 2, 2],
    )
    assert list(asked.breaches([[0, 1], [0], [2, 3]], 4)) == []
    assert not asked.is_empty
    assert Constraints().is_empty


HONOUR_CONSTRAINTS = {"greedy", "scenario", "ilp"}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in HONOUR_CONSTRAINTS])
def test_strategies_that_know_no_constraints_refuse_them(name):
    problem = Problem(LOAD, TOPOLOGY, constraints=Constraints(pin=[(0, 0)]))
    with pytest.raises(
        InputError, match=f"constraints: strategy {name} does not plan for it, expected strategy greedy, scenario, ilp"
    ):
        STRATEGIES[name](problem)


def test_experts_replicated_everywhere_are_in_the_last_slots_or_the_first():
    last = Constraints(replicate_everywhere=[2, 0])
    first = Constraints(replicate_everywhere=[2, 0], replicated_slot=ReplicatedSlot.FIRST)
    assert last.in_slot_order([3, 0, 1, 2]) == [1, 3, 0, 2]
    assert first.in_slot_order([3, 0, 1, 2]) == [0, 2, 1, 3]
    hands = [[1, 3, 0, 2], [1, 0, 2]]
    assert list(last.breaches(hands, 4)) == []
    assert list(last.breaches([[2, 0]], 4)) == ["rank 0 holds [2, 0] in its last slots, not [0, 2]"]
    assert next(iter(first.breaches(hands, 4))) == "rank 0 holds [1, 3] in its first slots, not [0, 2]"


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_time_limit_is_above_zero(limit):
    with pytest.raises(InputError, match="time_limit_s"):
        Problem(LOAD, TOPOLOGY, time_limit_s=limit)
