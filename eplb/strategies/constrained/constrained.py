"""Places experts under hard constraints: a feasible start for every layer, then a local search that keeps it feasible.

The start is exact where only ranks and replica counts are constrained. For experts that are kept together or apart and
for memory it is a heuristic; where that finds nothing, the integer model of `ilp` looks for a start and proves whether
there is one. Under `sglang_static` the search is for the expectation of the draw; where only ranks and counts are
constrained, exchanges that change no draw then balance the draw of one window.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.constraints import Constraints
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.problem import GroupMode, Problem, Survive
from eplb.dispatch.replica_shares import FIXED_SHARE_RULES, ReplicaShares
from eplb.errors import InfeasibleError, InputError, MissingExtraError
from eplb.strategies.constrained.blocks import BlockTable, Flags, blocks_of
from eplb.strategies.constrained.conflict import conflict
from eplb.strategies.ilp.feasibility import Feasibility, nearest_feasible
from eplb.strategies.ilp.region import whole_layer
from eplb.strategies.ilp.search_control import SearchControl
from eplb.strategies.under_rule.fit import settled
from eplb.strategies.under_rule.search import Limits


@final
@dataclass(frozen=True, kw_only=True)
class ConstrainedSearch:
    """Parameters of the search.

    Parameters
    ----------
    descents
        Each descent lowers the sum over ranks and windows of rank time to the power 2 ** d.
    tries_per_slot
        Moves tried a slot in each descent.
    tolerance
        Relative distance from the mean rank time at which a layer of one window is good enough.
    """

    descents: tuple[int, int] = (3, 5)
    tries_per_slot: int = 200
    tolerance: float = 5e-4

    def __call__(self, load: Floats, hotness: Floats, problem: Problem, *, seed: int) -> Map:
        """Place every layer.

        Parameters
        ----------
        load
            [L, E, W] tokens of each window, in any unit that is the same for the experts of a layer and window.
        hotness
            [L, E] load that replica counts and the start are made for.
        problem
            Topology, constraints, dispatch rule.
        seed
            Of the search.

        Returns
        -------
        Map
            [L, P]

        Raises
        ------
        InputError
            For group modes other than "free", or survive = node.
        InfeasibleError
            Naming constraints that no placement meets together, or that none was found.
        """
        _refuse_others(problem)
        topology = problem.topology
        table = blocks_of(problem.constraints, load.shape[1], topology, least_replicas=problem.least_replicas)
        load, hotness = _scaled(load, topology.num_ranks), _scaled(hotness, topology.num_ranks)
        on = _starts(table.load_of(hotness), table, problem, seed=seed)
        self._search(table.load_of(load), on, table, problem, seed=seed)
        phy2log = _map_of(on[:, table.block_of_expert], problem.constraints)
        if problem.dispatch is DispatchRule.SGLANG_STATIC and load.shape[2] == 1 and table.is_flow:
            return settled(problem, phy2log, _limits_of(table, phy2log, problem))[0]
        return phy2log

    def _search(self, load: Floats, on: Flags, table: BlockTable, problem: Problem, *, seed: int) -> None:
        from eplb.strategies.constrained.search_kernel import search_layers

        topology = problem.topology
        rule = problem.dispatch if problem.dispatch in FIXED_SHARE_RULES else DispatchRule.EVEN
        shares = ReplicaShares(rule, topology, problem.sources).fields(int(table.most.max()))
        ranks, scale = (topology.rank_num_slots, table.room), 1 / topology.relative_speed
        num_tries, target = self.tries_per_slot * topology.num_slots, 1 + self.tolerance

        def work(layers: slice) -> None:
            search_layers(
                load[layers], table.fields, ranks, scale, shares, self.descents, num_tries,
                target if load.shape[2] == 1 else 0.0, seed, layers.start, on[layers],
            )  # fmt: skip

        for_layer_chunks(work, load.shape[0])


def _refuse_others(problem: Problem) -> None:
    if problem.group_mode is not GroupMode.FREE:
        wanted = "strategy ilp" if problem.group_mode is GroupMode.PINNED else "group mode free"
        raise InputError(f"constraints with group mode {problem.group_mode}: expected {wanted}")
    if problem.survive is Survive.NODE:
        raise InputError("constraints with survive = node: expected survive = rank, or no constraints")


def _scaled(load: Floats, num_ranks: int) -> Floats:
    """The load [L, E, ...] with mean rank load 1 in each layer and window; even where there is none."""
    total = load.sum(axis=1, keepdims=True)
    even = np.full_like(load, num_ranks / load.shape[1])
    return np.divide(load, total, out=even, where=total > 0) * np.where(total > 0, num_ranks, 1.0)


def _starts(load: Floats, table: BlockTable, problem: Problem, *, seed: int) -> Flags:
    """[L, B, R] which ranks hold the blocks, in a placement that meets the constraints."""
    on, is_feasible = _start_layers(load, table, problem)
    failed = np.flatnonzero(~is_feasible)
    if failed.size > 0:
        # Constraints are those of every layer: a start of one is a start of all.
        found = np.flatnonzero(is_feasible)
        on[failed] = on[found[0]] if found.size > 0 else _searched_start(table, problem, seed=seed)
    return on


def _start_layers(load: Floats, table: BlockTable, problem: Problem) -> tuple[Flags, Flags]:
    """[L, B, R] starts by the heuristic, and [L] where it found one."""
    from eplb.strategies.constrained.start_kernel import FEASIBLE, start_layers

    topology = problem.topology
    on = np.zeros((*load.shape, topology.num_ranks), dtype=np.bool_)
    result: Ints = np.empty(load.shape[0], dtype=np.int64)
    ranks, scale = (topology.rank_num_slots, table.room), 1 / topology.relative_speed

    def work(layers: slice) -> None:
        start_layers(load[layers], table.fields, ranks, scale, on[layers], result[layers])

    for_layer_chunks(work, load.shape[0])
    return on, result == FEASIBLE


def _searched_start(table: BlockTable, problem: Problem, *, seed: int) -> Flags:
    """[B, R] a start for any layer, by the integer model; InfeasibleError with names if there is none."""
    if table.is_flow:
        named = conflict(problem.constraints, lambda constraints: _is_infeasible(constraints, problem))
        named.append(f"{problem.load.num_experts} experts in {problem.topology.num_slots} slots, none twice on a rank")
        raise InfeasibleError(f"no placement meets these together: {'; '.join(named)}")
    topology = problem.topology
    slots, speed = tuple(topology.rank_num_slots.tolist()), tuple(topology.relative_speed.tolist())
    whole = whole_layer(problem.load.total[0], slots, speed, problem.constraints, np.inf, even=False)
    try:
        control = SearchControl(np.inf if problem.time_limit_s is None else problem.time_limit_s)
        layout = nearest_feasible(Feasibility(whole, problem.least_replicas, seed, control), [])
    except MissingExtraError as error:
        raise InfeasibleError(f"no placement that meets the constraints was found; to search on: {error}") from error
    on = np.zeros((table.size.size, topology.num_ranks), dtype=np.bool_)
    for rank, held in enumerate(layout):
        on[table.block_of_expert[held], rank] = True
    return on


def _limits_of(table: BlockTable, phy2log: Map, problem: Problem) -> Limits:
    """What exchanges of replicas may do where only ranks and counts are constrained: pinned replicas stay."""
    allowed, pinned = (mask[table.block_of_expert] for mask in (table.allowed, table.pinned))
    return Limits(
        allowed=np.broadcast_to(allowed, (phy2log.shape[0], *allowed.shape)),
        fixed=pinned[phy2log, problem.topology.rank_of_slot],
        least_replicas=problem.least_replicas,
    )


def _is_infeasible(constraints: Constraints, problem: Problem) -> bool:
    """Whether no placement meets these constraints on ranks and counts, whatever the load."""
    table = blocks_of(constraints, problem.load.num_experts, problem.topology, least_replicas=problem.least_replicas)
    _, is_feasible = _start_layers(np.ones((1, table.size.size)), table, problem)
    return not bool(is_feasible[0])


def _map_of(on: Flags, constraints: Constraints) -> Map:
    """[L, P] the map of which ranks hold which experts [L, E, R]."""
    num_layers, num_experts, _ = on.shape
    order = np.array(constraints.in_slot_order(range(num_experts)), dtype=np.int32)
    _, _, place = np.nonzero(on[:, order].transpose(0, 2, 1))
    return order[place].reshape(num_layers, -1)
