"""Defines what a strategy is given (`Problem`) and what it returns (`Plan`, with a certificate for each layer)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, final

import numpy as np

from eplb.core.constraints import Constraints
from eplb.core.counts import check_number, check_seed
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.load_range import check_load_range
from eplb.core.migration import Migration
from eplb.core.named_enum import NamedEnum
from eplb.core.placement import Placement
from eplb.core.step_prediction import StepPrediction
from eplb.core.topology import Topology
from eplb.errors import InfeasibleError, InputError
from eplb_traces import ExpertLoad, ModelShape, RoutingTrace
from eplb_traces.display import counted, cut, facts_html, fields_html, short_repr
from eplb_traces.real_numbers import real_numbers

NO_CONSTRAINTS = Constraints()
SOURCES_SUM_TOLERANCE = 1e-6


class SolveStatus(StrEnum):
    """How much is known about a plan's distance from the optimum. Infeasible is an exception, not a status."""

    OPTIMAL = "optimal"
    """The bound is met or the optimum is proven."""
    FEASIBLE = "feasible"
    """A search ended at its limit; the gap is known."""
    HEURISTIC = "heuristic"
    """No search for a proof was made; the gap to the lower bound is known all the same."""


class BindingBound(StrEnum):
    """Which lower bound is the largest one; see `eplb.bounds.lower_bounds`."""

    MEAN = "mean"
    REPLICATION = "replication"
    FULL_SLOT = "full_slot"
    CO_RESIDENCY = "co_residency"
    PAIR_MIXTURE = "pair_mixture"
    SEARCH = "search"

    @classmethod
    def _missing_(cls, value: object) -> "BindingBound | None":
        """The bound that files of older versions call by another name."""
        return {"companion": cls.CO_RESIDENCY, "pairing": cls.PAIR_MIXTURE}.get(str(value))


class GroupMode(NamedEnum):
    """How expert groups bind experts to nodes."""

    FREE = "free"
    """Any expert on any node."""
    PINNED = "pinned"
    """All replicas of a group's experts on one node, so that group-limited routing limits nodes too."""
    PRICED = "priced"
    """Any expert on any node, at a locality penalty for each off-node replica: one off its group's main node."""


class Survive(NamedEnum):
    """What may be lost at once without losing an expert."""

    NOTHING = "nothing"
    RANK = "rank"
    """Any one rank: every expert has replicas on two ranks."""
    NODE = "node"
    """Any one node: every expert has replicas on two nodes."""


def checked_sources(sources: Sequence[float], topology: Topology) -> tuple[float, ...]:
    """The share of the tokens that each rank sends.

    Raises
    ------
    InputError
        Unless there is one share >= 0 for each rank and they sum to 1.
    """
    array = real_numbers(sources, "sources")
    if array.ndim != 1:
        raise InputError(f"sources = {sources!r}: expected a share for each of {topology.num_ranks} ranks")
    shares = tuple(array.tolist())
    if len(shares) != topology.num_ranks:
        raise InputError(f"sources has {len(shares)} shares: expected one for each of {topology.num_ranks} ranks")
    for rank, share in enumerate(shares):
        if not 0 <= share < float("inf"):
            raise InputError(f"sources[rank {rank}] = {share}: expected a share >= 0")
    total = sum(shares)
    if abs(total - 1) > SOURCES_SUM_TOLERANCE:
        raise InputError(f"sources sum to {total}: expected 1")
    return tuple(share / total for share in shares)


@final
@dataclass(frozen=True)
class Problem:
    """What every strategy is given.

    Parameters
    ----------
    load
        The load to plan for; strategies of one load vector plan for `load.total`.
    topology
        Nodes, ranks and slots; at least one slot for each expert.
    num_groups
        Expert groups of the model; a divisor of the number of experts.
    group_mode
        Whether groups are pinned to nodes, or off-node replicas have a penalty.
    group_price
        In mode "priced", the locality penalty: by how much one off-node replica must lower a layer's max over mean rank
        load; only `greedy` uses it.
    dispatch
        How the runtime will split an expert's tokens over its replicas.
    constraints
        What every layer's placement must meet; `greedy`, `scenario` and `ilp` take any.
    time_limit_s
        Wall time for all layers together, for strategies that search until they have a proof; None for their default.
    survive
        What may be lost without losing an expert; only `greedy` plans for that.
    sources
        [R] share of the tokens that each rank sends, summing to 1; None: all alike. It matters under rules by which
        the rank of a token decides its replica.
    trace
        The choices of tokens of the same model; only `traffic` plans for them, and it needs them.
    load_cap
        Most busiest over mean rank load, for strategies that minimise something else; only `traffic` takes one.

    Raises
    ------
    InputError
        For an all-zero load, counts out of range (see `load_range`), too few slots, groups that do not divide the
        experts, pinned groups that do not divide by the nodes, constraints that do not fit the problem, a time limit
        that is not above 0, or sources that are not one share a rank.
    InfeasibleError
        For constraints that contradict each other or the number of slots, pinned groups with more experts than their
        node has slots, or too few slots to survive a loss.
    """

    load: ExpertLoad
    topology: Topology
    num_groups: int = 1
    group_mode: GroupMode = GroupMode.FREE
    group_price: float = 0.0
    dispatch: DispatchRule = DispatchRule.EVEN
    constraints: Constraints = NO_CONSTRAINTS
    time_limit_s: float | None = None
    survive: Survive = Survive.NOTHING
    sources: Sequence[float] | None = None
    trace: RoutingTrace | None = None
    load_cap: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "group_mode", GroupMode.named(self.group_mode))  # strategies compare with `is`
        object.__setattr__(self, "dispatch", DispatchRule.named(self.dispatch))
        object.__setattr__(self, "survive", Survive.named(self.survive))
        num_experts = self.load.num_experts
        if self.load.tokens.max() == 0:
            raise InputError("load: every count is zero, nothing to plan for")
        check_load_range(self.load)
        if self.topology.num_slots < num_experts:
            raise InputError(
                f"{self.topology.num_slots} slots: expected at least one for each of {num_experts} experts"
            )
        most_slots = int(self.topology.rank_num_slots.max())
        if most_slots > num_experts:
            raise InputError(f"slots_per_rank = {most_slots}: a rank can hold each of {num_experts} experts only once")
        if not isinstance(self.num_groups, int | np.integer) or self.num_groups < 1 or num_experts % self.num_groups:
            raise InputError(f"groups = {self.num_groups}: expected a divisor of {num_experts} experts")
        self._check_types()
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise InputError(f"time_limit_s = {self.time_limit_s}: expected > 0")
        if not 0 <= self.group_price < float("inf"):
            raise InputError(f"group_price = {self.group_price}: expected finite and >= 0")
        if bool(self.group_price > 0) is not (self.group_mode is GroupMode.PRICED):
            raise InputError(
                f"group mode {self.group_mode}, group_price = {self.group_price}: expected a price above 0 with mode "
                "priced and none otherwise"
            )
        if self.group_mode is GroupMode.PRICED and self.survive is not Survive.NOTHING:
            raise InputError(f"group mode priced: plans for no loss, this is survive = {self.survive}")
        self.constraints.check(num_experts, self.topology)
        if self.group_mode is GroupMode.PINNED and self.num_groups % self.topology.num_nodes:
            raise InputError(
                f"groups = {self.num_groups}: pinned groups need a multiple of {self.topology.num_nodes} nodes"
            )
        self._check_nodes()
        self._check_sources()
        self._check_trace()

    @property
    def least_replicas(self) -> int:
        """Replicas that every expert must have."""
        return 1 if self.survive is Survive.NOTHING else 2

    def _check_types(self) -> None:
        """Refuse what is no number, or no Constraints."""
        for name, value in (("time_limit_s", self.time_limit_s), ("load_cap", self.load_cap)):
            if value is not None:
                check_number(name, value)
        check_number("group_price", self.group_price)
        if not isinstance(self.constraints, Constraints):
            raise InputError(f"constraints is of type {type(self.constraints).__name__}: expected Constraints")

    def _check_sources(self) -> None:
        if self.sources is not None:
            object.__setattr__(self, "sources", checked_sources(self.sources, self.topology))

    def _check_trace(self) -> None:
        """Check that the trace is of the load's model and the load cap can be met."""
        if self.load_cap is not None and not 1 <= self.load_cap < float("inf"):
            raise InputError(f"load_cap = {self.load_cap}: expected a busiest over mean rank >= 1")
        if self.trace is None:
            return
        found, expected = self.trace.shape, self.load.shape
        if (found.num_layers, found.num_experts) != (expected.num_layers, expected.num_experts):
            raise InputError(
                f"trace of {found.num_layers} layers x {found.num_experts} experts: the load is of "
                f"{expected.num_layers} layers x {expected.num_experts} experts, another model"
            )

    def _check_nodes(self) -> None:
        """Check that the replicas that every expert must have fit the topology, or the node its group is pinned to."""
        num_experts, num_replicas = self.load.num_experts, self.least_replicas * self.load.num_experts
        if self.topology.num_slots < num_replicas:
            raise InfeasibleError(
                f"{self.topology.num_slots} slots: surviving the loss of a {self.survive} takes 2 replicas of each of "
                f"{num_experts} experts, {num_replicas} slots ({num_replicas - num_experts} redundant ones)"
            )
        node_slots = self.topology.node_num_slots
        if self.survive is Survive.NODE:
            if self.group_mode is GroupMode.PINNED or self.topology.num_nodes == 1:
                raise InfeasibleError("surviving the loss of a node takes two nodes for each expert, not pinned to one")
            usable = int(node_slots.clip(max=num_experts).sum())
            if usable < num_replicas:
                raise InfeasibleError(
                    f"nodes of {node_slots.tolist()} slots: 2 replicas of each of {num_experts} experts on different "
                    f"nodes take {num_replicas} slots, at most {num_experts} of them on a node: there are {usable}"
                )
        elif self.group_mode is GroupMode.PINNED:
            needed = num_replicas // self.topology.num_nodes
            if (node_slots < needed).any():
                node = int((node_slots < needed).argmax())
                raise InfeasibleError(
                    f"node {node} has {node_slots[node]} slots: its pinned groups take {needed}, at least "
                    f"{self.least_replicas} for each of {num_experts // self.topology.num_nodes} experts"
                )


@final
@dataclass(frozen=True, slots=True)
class LayerCertificate:
    """What a plan claims about one layer, for the planned load.

    `objective` and `lower_bound` are tokens on the busiest rank (tokens over relative speed where ranks differ).
    """

    objective: float
    lower_bound: float
    binding_bound: BindingBound
    status: SolveStatus

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return fields_html(self)

    @property
    def gap(self) -> float:
        """Relative distance of the objective from the bound; 0 for a layer without load."""
        return self.objective / self.lower_bound - 1 if self.lower_bound > 0 else 0.0


@final
@dataclass(frozen=True)
class Plan:
    """A placement with the certificates of its quality and all that is needed to write it for an engine.

    Parameters
    ----------
    placement
        The placement itself.
    shape
        The model it is for.
    strategy
        Name of the strategy, or "imported:" and the format of an engine's file without a record.
    status
        The weakest status of its layers.
    seconds
        Wall time of planning, for display: not compared and not written to files; 0 for a plan read from one.
    seed
        Seed of a randomised strategy; the same inputs and seed give the same bytes.
    layers
        One certificate a layer; empty for a placement read from a file that carries none.
    notes
        For the user: what was chosen and why.
    load_digest
        Digest of the load planned for; empty where unknown.
    migration
        What must move from the previous placement, for a plan that was made from one.
    absent_ranks
        Ids of lost ranks that keep their ids and columns in the engine; `placement` is without them.
    step_prediction
        Step times of a plan made for a phase; not compared and not written to files.
    """

    placement: Placement
    shape: ModelShape
    strategy: str
    status: SolveStatus = SolveStatus.HEURISTIC
    seconds: float = field(default=0.0, compare=False)
    seed: int = 0
    layers: tuple[LayerCertificate, ...] = ()
    notes: tuple[str, ...] = ()
    load_digest: str = ""
    migration: Migration | None = None
    absent_ranks: tuple[int, ...] = ()
    step_prediction: StepPrediction | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.layers and len(self.layers) != self.placement.num_layers:
            raise InputError(
                f"{len(self.layers)} certificates: expected one for each of {self.placement.num_layers} layers"
            )
        found = (self.placement.num_layers, self.placement.num_experts)
        if found != (self.shape.num_layers, self.shape.num_experts):
            raise InputError(
                f"placement of {found[0]} layers x {found[1]} experts: "
                f"the model has {self.shape.num_layers} x {self.shape.num_experts}"
            )
        num_ids = self.placement.topology.num_ranks + len(self.absent_ranks)
        for rank in self.absent_ranks:
            if not 0 <= rank < num_ids or self.absent_ranks.count(rank) > 1:
                raise InputError(f"absent rank {rank}: expected different ids, 0 <= id < {num_ids}")

    def __repr__(self) -> str:
        place, ranks = self.placement, self.placement.topology.num_ranks
        size = f"{counted(place.num_layers, 'layer')} of {place.num_experts} experts on {counted(ranks, 'rank')}"
        gap = f", {100 * self.gap_worst:.2f} % above the bound at worst" if self._gaps else ""
        return cut(f"Plan({self.strategy}, {size}{gap})")

    def _repr_html_(self) -> str:
        facts = {
            "model": self.shape,
            "topology": self.placement.topology,
            "strategy": f"{self.strategy} ({self.status})",
            "above the bound": f"{100 * self.gap_mean:.2f} % mean, {100 * self.gap_worst:.2f} % worst layer"
            if self._gaps
            else "unknown: no certificates",
            "planned in": f"{self.seconds:.3g} s",
        }
        moved = {} if self.migration is None else {"migration": self.migration}
        return facts_html("Plan", {**facts, **moved, "notes": self.notes})

    @property
    def rank_ids(self) -> tuple[int, ...]:
        """[R] id that the engine has for each rank: the rank itself unless lost ranks keep their ids."""
        num_ids = self.placement.topology.num_ranks + len(self.absent_ranks)
        return tuple(rank for rank in range(num_ids) if rank not in self.absent_ranks)

    @property
    def gap_mean(self) -> float:
        """Mean of the gap to the proven bound over the layers with load; NaN where there is none."""
        gaps = self._gaps
        return sum(gaps) / len(gaps) if gaps else math.nan

    @property
    def gap_worst(self) -> float:
        """Largest gap of a layer with load; NaN where there is none."""
        return max(self._gaps, default=math.nan)

    @property
    def _gaps(self) -> list[float]:
        return [layer.gap for layer in self.layers if layer.lower_bound > 0]


class Strategy(Protocol):
    """A named way to make a plan. Its fields are its parameters; equal fields, problem and seed give an equal plan."""

    @property
    def name(self) -> str:
        """The name in the table and on the command line."""
        ...

    @property
    def summary(self) -> str:
        """One line for `eplb strategies`."""
        ...

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Make a plan; `seconds` is filled in by the planner."""
        ...
