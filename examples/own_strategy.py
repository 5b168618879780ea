"""Plans with a strategy that is not in eplb, and compares it with eplb's own.

Run it in a checkout: python examples/own_strategy.py
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import eplb
from eplb.core.problem import Plan, Problem
from eplb.strategies.certify import certified_plan

SAMPLE = Path(__file__).resolve().parents[1] / "traces/eplb_traces/samples/moe-435m.parquet"


@dataclass(frozen=True)
class Snake:
    """Hottest experts first, forth and back over the ranks; redundant slots take the hottest experts again."""

    name = "snake"
    summary = "hottest first, forth and back over the ranks"

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Make the map [layers, slots], slots rank by rank; `certified_plan` computes bound and objective."""
        load, topology = problem.load.total, problem.topology
        hottest = np.argsort(-load, axis=1, kind="stable")
        order = np.concatenate([hottest, hottest[:, : topology.num_slots - load.shape[1]]], axis=1)
        turns = np.arange(topology.num_slots).reshape(-1, topology.num_ranks)
        turns[1::2] = turns[1::2, ::-1].copy()
        return certified_plan(problem, order[:, turns.T.ravel()].astype(np.int32), strategy=self.name, seed=seed)


def main() -> None:
    """Plan with three strategies and print what `eplb.evaluate` computes from the maps."""
    load = eplb.read_load(SAMPLE)
    topology = eplb.Topology.for_experts(load.num_experts, num_ranks=32, num_nodes=4, num_redundant=32)
    for strategy in ("linear", Snake(), "greedy"):
        plan = eplb.plan(load, topology, strategy)
        worst = eplb.evaluate(plan.placement, load).max_over_mean.max()
        print(f"{plan.strategy:>8}: busiest / mean rank {worst:.4f}, {100 * plan.gap_worst:.2f} % above the bound")


if __name__ == "__main__":
    main()
