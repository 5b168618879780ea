"""Distributes redundant slots over the layers: layers that gain most get more slots a rank, others fewer."""

import dataclasses

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.problem import Plan, Problem, SolveStatus
from eplb.core.topology import Topology
from eplb.errors import InfeasibleError, InputError
from eplb.strategies.greedy.greedy import Greedy
from eplb_traces import ExpertLoad
from eplb_traces.jit import WorkClock


def plan_with_budget(
    load: ExpertLoad, topology: Topology, total_redundant: int, *, num_groups: int = 1, seed: int = 0
) -> Plan:
    """Plan with redundancy that may differ by layer.

    Every layer fills the same number of slots on every rank, at least enough for its experts, at most what the topology
    has; the rest stays empty. `greedy` plans every layer for every number. Of all ways to spend at most
    `total_redundant`, the one with the least sum over layers of the tokens on the busiest rank is taken, to which step
    time is proportional; of equally good ones the one that spends least. It is found exactly, by dynamic programming
    over layers (where benefits shrink with every slot it is what spending by marginal benefit finds):
    O(L B S) for B slots a rank of budget and S slots a rank.

    Parameters
    ----------
    load
        Tokens of each expert; windows are summed.
    topology
        Ranks and nodes, with the most slots that a rank has for a layer; equal on all ranks.
    total_redundant
        Most redundant experts over all layers together.
    num_groups, seed
        As in `Problem`; the seed is kept in the plan, nothing is random.

    Returns
    -------
    Plan
        With empty slots where a layer has fewer than others, so only formats with empty slots can hold it, and with a
        certificate for each layer that is valid for the slots it fills.

    Raises
    ------
    InputError
        If the topology's ranks have unequal slots.
    InfeasibleError
        If the budget does not cover the slots that any layer must have.
    """
    clock = WorkClock()
    if not topology.has_equal_slots:
        raise InputError(f"slots_per_rank = {topology.slots_per_rank}: a budget by layer needs equal ranks")
    problem = Problem(load, topology, num_groups=num_groups)
    num_layers, num_experts, num_ranks = load.num_layers, load.num_experts, topology.num_ranks
    least, most = -(-num_experts // num_ranks), int(topology.rank_num_slots[0])
    forced = num_layers * (least * num_ranks - num_experts)
    if total_redundant < forced:
        raise InfeasibleError(
            f"redundant = {total_redundant} over all layers: {num_experts} experts on {num_ranks} ranks take {least} "
            f"slots a rank, {forced} redundant ones over {num_layers} layers"
        )
    plans = [
        Greedy()(dataclasses.replace(problem, topology=dataclasses.replace(topology, slots_per_rank=slots)), seed=seed)
        for slots in range(least, most + 1)
    ]
    busiest = np.array([[layer.objective for layer in made.layers] for made in plans]).T
    extra = spend(busiest, (total_redundant - forced) // num_ranks)
    phy2log = np.full((num_layers, num_ranks, most), EMPTY_SLOT, dtype=np.int32)
    for layer, more in enumerate(extra.tolist()):
        filled = plans[more].placement.physical_to_logical_map[layer].reshape(num_ranks, -1)
        phy2log[layer, :, : filled.shape[1]] = filled
    layers = tuple(plans[more].layers[layer] for layer, more in enumerate(extra.tolist()))
    optimal = all(layer.status is SolveStatus.OPTIMAL for layer in layers)
    return Plan(
        Placement(phy2log.reshape(num_layers, -1), num_experts, topology),
        load.shape,
        "greedy",
        status=SolveStatus.OPTIMAL if optimal else SolveStatus.HEURISTIC,
        seconds=clock.seconds(),
        seed=seed,
        layers=layers,
        notes=_notes(busiest, extra, least=least, num_ranks=num_ranks, num_experts=num_experts),
        load_digest=load.digest,
    )


def spend(cost: Floats, budget: int) -> Ints:
    """Choose a step for each layer so that the steps sum to at most `budget` and the costs to the least there is.

    Parameters
    ----------
    cost
        [L, K] cost of each layer after 0, 1, ... K - 1 steps; it need not fall.
    budget
        Most steps, all layers together.

    Returns
    -------
    NDArray
        [L] steps; of equally good ways one with the fewest steps.
    """
    num_layers, num_steps = cost.shape
    budget = min(budget, num_layers * (num_steps - 1))
    # best[b]: least cost of the layers so far with exactly b steps.
    best = np.full(budget + 1, np.inf)
    best[0] = 0.0
    taken = np.zeros((num_layers, budget + 1), dtype=np.int64)
    for layer in range(num_layers):
        after = np.full(budget + 1, np.inf)
        for step in range(min(num_steps, budget + 1)):
            trial = best[: budget + 1 - step] + cost[layer, step]
            lower = trial < after[step:]
            after[step:][lower] = trial[lower]
            taken[layer, step:][lower] = step
        best = after
    left = int(best.argmin())
    steps = np.zeros(num_layers, dtype=np.int64)
    for layer in range(num_layers - 1, -1, -1):
        steps[layer] = taken[layer, left]
        left -= int(steps[layer])
    return steps


def _notes(busiest: Floats, extra: Ints, *, least: int, num_ranks: int, num_experts: int) -> tuple[str, ...]:
    num_layers = extra.size
    spent = int(((least + extra) * num_ranks - num_experts).sum())
    reached = float(busiest[np.arange(num_layers), extra].sum())
    alike = int(extra.sum()) // num_layers
    levels = ", ".join(f"{least + step} slots: {(extra == step).sum()} layers" for step in np.unique(extra).tolist())
    return (
        f"budget by layer: {spent} redundant experts spent; {levels}",
        f"tokens on the busiest rank, summed over layers: {reached:.6g}; with {least + alike} slots a rank in every "
        f"layer, the most that this budget pays for alike, {busiest[:, alike].sum():.6g}",
    )
