"""Calls a strategy; checks and judges the plan of one that is not eplb's."""

from dataclasses import replace

import numpy as np

from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import BindingBound, GroupMode, LayerCertificate, Plan, Problem, SolveStatus, Strategy, Survive
from eplb.errors import InputError
from eplb.evaluation.failures import after_loss
from eplb.evaluation.metrics import off_node_replicas
from eplb.strategies.certify import MET, recertified
from eplb.strategies.own_strategy import OwnStrategy


def plan_of(strategy: Strategy, problem: Problem, *, seed: int = 0) -> Plan:
    """The plan of a strategy; one of the caller's own has its own name and certificates that the judge confirms.

    Where it claims something else, for instance for another load or rule, the certificates are made anew, and a note
    gives the first claim that differs.

    Raises
    ------
    InputError
        If the plan is for another topology or model, or misses the loss to survive, the pinned groups or a constraint
        of the problem.
    """
    made = strategy(problem, seed=seed)
    made.placement.check_model(problem.load.shape, name=f"placement of strategy {made.strategy}")
    if made.placement.topology != problem.topology:
        raise InputError(f"strategy {made.strategy}: a plan for {made.placement.topology}: expected {problem.topology}")
    if not isinstance(strategy, OwnStrategy):
        return made
    for breach in _breaches(made.placement, problem):
        raise InputError(f"strategy {strategy.name} does not meet what was asked: {breach}")
    return _judged(replace(made, strategy=strategy.name), problem)


def _judged(made: Plan, problem: Problem) -> Plan:
    """The plan with certificates that hold: its own, or else new ones."""
    anew = recertified(made, problem)
    pairs = zip(made.layers, anew.layers, strict=False)
    wrong = [layer for layer, (claim, found) in enumerate(pairs) if not _holds(claim, found)]
    if made.layers and not wrong:
        return replace(made, status=_weakest(made), load_digest=anew.load_digest)
    notes = made.notes
    if wrong:
        layer, claim, found = wrong[0], made.layers[wrong[0]], anew.layers[wrong[0]]
        notes += (
            f"{made.strategy}: certificates made anew under {problem.dispatch} dispatch: layer {layer} claimed "
            f"{claim.objective:g} tokens on the busiest rank and the bound {claim.lower_bound:g} "
            f"({claim.binding_bound}, {claim.status}), where {found.objective:g} and {found.lower_bound:g} are found",
        )
    return replace(made, layers=anew.layers, status=anew.status, notes=notes, load_digest=anew.load_digest)


def _holds(claim: LayerCertificate, found: LayerCertificate) -> bool:
    """Whether the claim is what the busiest rank has, optimal only at its bound, and the bound no higher than proven.

    A bound of the strategy's own search cannot be proven here: it is at most what the busiest rank has.
    """
    proven = found.objective if claim.binding_bound is BindingBound.SEARCH else found.lower_bound
    is_true = abs(claim.objective - found.objective) <= MET * found.objective
    is_met = claim.objective <= claim.lower_bound * (1 + MET)
    is_proven = claim.lower_bound <= proven * (1 + MET)
    return is_true and is_proven and (claim.status is not SolveStatus.OPTIMAL or is_met)


def _weakest(made: Plan) -> SolveStatus:
    """The weakest status of the layers."""
    found = {layer.status for layer in made.layers}
    return next(one for one in (SolveStatus.HEURISTIC, SolveStatus.FEASIBLE, SolveStatus.OPTIMAL) if one in found)


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
