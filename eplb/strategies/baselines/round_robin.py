"""Expert e on rank e mod R, redundant slots filled on in the same way.

Without redundancy this is the layout of vLLM's ``--expert-placement-strategy round_robin``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

from eplb.core.problem import Plan, Problem
from eplb.strategies.baselines.fixed_layouts import map_of_ranks, place_in_turn
from eplb.strategies.certify import certified_plan


@final
@dataclass(frozen=True, kw_only=True)
class RoundRobin:
    """The strided layout; it has no parameters."""

    name: ClassVar[str] = "round_robin"
    summary: ClassVar[str] = "ids placed on the ranks in turn"

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Place the ids; the load is used for the certificate only."""
        num_ranks, num_experts = problem.topology.num_ranks, problem.load.num_experts
        ranks: list[list[int]] = [[] for _ in range(num_ranks)]

        def choices() -> Iterator[tuple[int, list[int]]]:
            for position in range(problem.topology.num_slots):
                yield position % num_experts, [(position + i) % num_ranks for i in range(num_ranks)]

        place_in_turn(ranks, choices(), problem.topology)
        return certified_plan(problem, map_of_ranks(ranks, problem.load.num_layers), strategy=self.name, seed=seed)
