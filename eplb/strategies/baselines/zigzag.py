"""Group-aware layout: every rank gets its share of every expert group, and no place in a group is favoured.

Experts in group order are placed one round at a time, the direction turning every round and the start shifted by group.
DeepSeek models need it: loads of V3 fall with the expert id, both from group to group and inside a group, so that
contiguous and strided layouts collect hot experts on the same ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from eplb.core.problem import Plan, Problem
from eplb.strategies.baselines.fixed_layouts import RankExperts, map_of_ranks, place_in_turn
from eplb.strategies.certify import certified_plan


@final
@dataclass(frozen=True, kw_only=True)
class Zigzag:
    """The group-aware layout; it has no parameters."""

    name: ClassVar[str] = "zigzag"
    summary: ClassVar[str] = "groups placed round by round, turning and shifting: every rank a share of every group"

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Place group by group; the load is used for the certificate only.

        Without redundant slots the experts of a group differ by at most one in number between any two ranks.
        """
        num_groups, num_experts = problem.num_groups, problem.load.num_experts
        held: list[RankExperts] = [[] for _ in range(problem.topology.num_ranks)]
        groups = [
            range(first, first + num_experts // num_groups)
            for first in range(0, num_experts, num_experts // num_groups)
        ]
        place_in_turn(held, _group_rounds(held, groups), problem.topology)
        redundant = [i % num_experts for i in range(problem.topology.num_slots - num_experts)]
        for first in range(0, len(redundant), num_experts):
            lap = redundant[first : first + num_experts]
            place_in_turn(held, _rounds(held, lap, shift=len(held) // 2, first_turn=0), problem.topology)
        return certified_plan(problem, map_of_ranks(held, problem.load.num_layers), strategy=self.name, seed=seed)


def _group_rounds(held: list[RankExperts], groups: list[range]) -> Iterator[tuple[int, list[int]]]:
    rounds_per_group = -(-len(groups[0]) // len(held))
    for group, experts in enumerate(groups):
        first_turn = group * rounds_per_group
        # The start moves once a there-and-back: an expert's place in one round is made up for in the other.
        shift = first_turn // 2 * 2 * len(held) // (len(groups) * rounds_per_group)
        yield from _rounds(held, list(experts), shift=shift, first_turn=first_turn)


def _rounds(
    held: list[RankExperts], experts: list[int], *, shift: int, first_turn: int
) -> Iterator[tuple[int, list[int]]]:
    """Rounds over all ranks, every second one backwards; a round that is not full goes to the ranks that hold least."""
    num_ranks = len(held)
    for turn, first in enumerate(range(0, len(experts), num_ranks), start=first_turn):
        placed = experts[first : first + num_ranks]
        ranks = [(shift + i) % num_ranks for i in range(num_ranks)]
        if turn % 2:
            ranks.reverse()
        if len(placed) < num_ranks:
            ranks.sort(key=lambda rank: len(held[rank]))
        for i, expert in enumerate(placed):
            yield expert, ranks[i:] + ranks[:i]
