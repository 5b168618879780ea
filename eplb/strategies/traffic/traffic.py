"""Plans for tokens that visit few nodes, then few ranks, under a cap on the busiest rank's load.

Dispatch sends a token once to every node (or rank) that holds one of its experts: experts that tokens choose together
belong on one node. Every expert is assigned to one node, by exact moves from the nodes of a balanced plan, of pinned
expert groups and of a plan with a locality penalty; replicas and ranks inside a node follow by `greedy`, and exchanges
of replicas then bring together what tokens choose together. Under even dispatch an expert with replicas on several
nodes costs more visits than the best of these nodes alone: the expected visits are linear in its shares.
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Map
from eplb.core.dispatch_rule import EVEN_RULES
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.placement import replica_counts
from eplb.core.problem import NO_CONSTRAINTS, GroupMode, Plan, Problem, Survive
from eplb.errors import EplbError, InputError
from eplb.strategies.certify import certified_plan
from eplb.strategies.greedy.greedy import Greedy
from eplb.strategies.options import check_options
from eplb.strategies.traffic.layer_plan import LayerTask, SearchSteps, plan_layer
from eplb_traces import RoutingTrace

DEFAULT_LOAD_CAP: Final = 1.03
"""Busiest over mean rank that a plan may have if none is given."""
GROUP_PRICE: Final = 1e-3
"""Locality penalty of the start with priced groups."""


@final
@dataclass(frozen=True, kw_only=True)
class TrafficAware:
    """Parameters of the strategy.

    Parameters
    ----------
    steps
        Moves of the searches.
    most_tokens
        Tokens of the trace that are used, every second, third ... if there are more.
    """

    name: ClassVar[str] = "traffic"
    summary: ClassVar[str] = "few nodes, then ranks, a token under a cap on the rank load; needs a token-level trace"
    steps: SearchSteps = field(default_factory=SearchSteps)
    most_tokens: int = 131_072

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Plan for the choices in `problem.trace` under `problem.load_cap`; even dispatch, free groups.

        Raises
        ------
        InputError
            Without a trace, or for a dispatch rule or group mode that the strategy does not plan for.
        """
        check_options(problem, self.name)
        trace = _checked_trace(problem)
        starts = _start_maps(problem, seed)
        asked = DEFAULT_LOAD_CAP if problem.load_cap is None else problem.load_cap
        topology, load = problem.topology, problem.load.total
        balanced = starts[0]
        mean = load.sum(axis=1) / topology.relative_speed.sum()
        reached = np.divide(_busiest(load, balanced, problem), mean, out=np.ones_like(mean), where=mean > 0)
        cap = np.maximum(asked, reached)
        expert_ids = _choices(trace, self.most_tokens)
        phy2log = balanced.copy()

        def work(layers: slice) -> None:
            for layer in range(layers.start, layers.stop):
                if mean[layer] == 0:
                    continue
                task = LayerTask(
                    np.ascontiguousarray(expert_ids[:, layer]),
                    load[layer],
                    cap[layer] * mean[layer] * topology.relative_speed,
                    topology,
                    self.steps,
                    seed,
                )
                phy2log[layer] = plan_layer(task, balanced[layer], [start[layer] for start in starts])

        for_layer_chunks(work, load.shape[0])
        notes = _notes(asked, cap, (phy2log == balanced).all(axis=1))
        return certified_plan(problem, phy2log, strategy=self.name, seed=seed, notes=notes)


def _checked_trace(problem: Problem) -> RoutingTrace:
    """The trace of a problem that the strategy can plan for."""
    if problem.trace is None:
        raise InputError("strategy traffic: expected a token-level trace of the choices (trace=, --trace)")
    if problem.dispatch not in EVEN_RULES:
        raise InputError(
            f"dispatch = {problem.dispatch}: strategy traffic plans for even dispatch, expected one of "
            f"{', '.join(EVEN_RULES)}"
        )
    return problem.trace


def _start_maps(problem: Problem, seed: int) -> list[Map]:
    """The balanced plan, and those with pinned and priced groups where the groups fit the nodes."""
    plain = replace(
        problem, trace=None, load_cap=None, constraints=NO_CONSTRAINTS, survive=Survive.NOTHING,
        group_mode=GroupMode.FREE, group_price=0.0,
    )  # fmt: skip
    starts = [Greedy()(plain, seed=seed).placement.physical_to_logical_map]
    if problem.num_groups == 1 or problem.topology.num_nodes == 1:
        return starts
    for mode, price in ((GroupMode.PINNED, 0.0), (GroupMode.PRICED, GROUP_PRICE)):
        with suppress(EplbError):  # groups that do not fit the nodes
            made = Greedy()(replace(plain, group_mode=mode, group_price=price), seed=seed)
            starts.append(made.placement.physical_to_logical_map)
    return starts


def _choices(trace: RoutingTrace, most_tokens: int) -> NDArray[np.uint16]:
    """[T, L, K] the choices of evenly spaced tokens."""
    stride, seen = -(-trace.num_tokens // most_tokens), 0
    parts = []
    for batch in trace:
        # A view would keep every batch of the trace in memory.
        parts.append(batch.expert_ids[-seen % max(1, stride) :: max(1, stride)].copy())
        seen += batch.num_tokens
    if seen == 0:
        raise InputError("the trace has no tokens")
    return np.concatenate(parts)


def _busiest(load: Floats, phy2log: Map, problem: Problem) -> Floats:
    """[L] tokens over speed of the busiest rank under even dispatch."""
    topology = problem.topology
    unit = np.take_along_axis(load / replica_counts(phy2log, load.shape[1]), phy2log, axis=1)
    rank_load = np.add.reduceat(unit, topology.rank_first_slot[:-1], axis=1)
    return np.asarray((rank_load / topology.relative_speed).max(axis=1))


def _notes(asked: float, cap: Floats, kept: NDArray[np.bool_]) -> tuple[str, ...]:
    notes = []
    above = cap > asked
    if above.any():
        layer = int(cap.argmax())
        notes.append(
            f"load_cap = {asked:g}: the balanced plan is above it in {int(above.sum())} layers (layer {layer}: "
            f"{cap[layer]:.4f}); these have the balanced plan's load as their cap"
        )
    if kept.any():
        notes.append(f"{int(kept.sum())} of {kept.size} layers keep the balanced plan: nothing better under the cap")
    return tuple(notes)
