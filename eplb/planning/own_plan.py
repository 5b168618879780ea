"""Checks that the plan of a strategy that is not eplb's meets what the caller asked for."""

import numpy as np

from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import GroupMode, Plan, Problem, Survive
from eplb.errors import InputError
from eplb.evaluation.failures import after_loss
from eplb.evaluation.metrics import off_node_replicas


def check_own_plan(made: Plan, problem: Problem) -> None:
    """Refuse a plan that misses the loss to survive, the pinned groups or a constraint of the problem.

    Raises
    ------
    InputError
        With the first thing that the plan does not meet.
    """
    for breach in _breaches(made.placement, problem):
        raise InputError(f"strategy {made.strategy} does not meet what was asked: {breach}")


def _breaches(placement: Placement, problem: Problem) -> list[str]:
    found = []
    if problem.survive is not Survive.NOTHING:
        report = after_loss(placement, problem.load, problem.survive)
        found += [] if report.survivable else [report.notes[-1]]
    if problem.group_mode is GroupMode.PINNED:
        off_node = off_node_replicas(placement, problem.num_groups)
        if off_node.any():
            layer = int(off_node.argmax())
            found.append(f"layer {layer}: {off_node[layer]} replicas are not on the node of their expert group")
    if not problem.constraints.is_empty:
        for layer, row in enumerate(placement.physical_to_logical_map):
            ranks = np.split(row, placement.topology.rank_first_slot[1:-1])
            held = [rank[rank != EMPTY_SLOT].tolist() for rank in ranks]
            found += [f"layer {layer}: {text}" for text in problem.constraints.breaches(held, placement.num_experts)]
    return found
