"""Experts in order of their ids, rank by rank, redundant slots starting again at expert 0.

Engines start with it when they get no plan: vLLM's initial map is exactly this one.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from eplb.core.problem import Plan, Problem
from eplb.strategies.certify import certified_plan


@final
@dataclass(frozen=True, kw_only=True)
class Linear:
    """The contiguous layout; it has no parameters."""

    name: ClassVar[str] = "linear"
    summary: ClassVar[str] = "contiguous ids, rank by rank: what engines start with"

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Lay the ids out; the load is used for the certificate only."""
        row = np.arange(problem.topology.num_slots, dtype=np.int32) % problem.load.num_experts
        phy2log = np.tile(row, (problem.load.num_layers, 1))
        return certified_plan(problem, phy2log, strategy=self.name, seed=seed)
