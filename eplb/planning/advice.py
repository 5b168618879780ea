"""Compares deployments by predicted step time: EP size, redundancy, placement and dispatch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, final

from eplb.arguments.accepted import LoadLike, accepted_load
from eplb.core.counts import check_count
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.evaluation.metrics import evaluate
from eplb.evaluation.step_cost import PredictedStep, StepCost
from eplb.planning.advice_memory import GpuMemory
from eplb.planning.planner import plan
from eplb_traces import ExpertLoad
from eplb_traces.display import fields_html, short_repr
from eplb_traces.scale.executors import IN_ORDER, Executor

KNEE_SHARE: Final = 0.95
"""The knee is the fewest GPUs with this share of the best tokens/s per GPU."""
_MOST_RANKS_PER_EXPERT = 16
"""Every rank holds an expert: on more ranks each expert would have more than 16 replicas."""
_AS_FAST: Final = 0.99
_EXTRA_SLOTS: Final = (0, 1, 2)


@final
@dataclass(frozen=True, kw_only=True)
class DeploymentSpace:
    """The deployments to compare.

    Parameters
    ----------
    nodes
        Numbers of nodes.
    gpus_per_node
        Ranks of a node.
    redundant
        Numbers of redundant experts; those that an EP size cannot spread equally are left out for it. Empty: the
        fewest that it can, and one and two slots a rank more.
    strategies
        Placements: names of strategies.
    rules
        Dispatch rules. An EP size without replicas has the first alone: there all are alike.

    Raises
    ------
    InputError
        For an empty list, a value given twice, an unknown rule, or a number that is out of range.
    """

    nodes: tuple[int, ...]
    gpus_per_node: int = 8
    redundant: tuple[int, ...] = ()
    strategies: tuple[str, ...] = ("linear", "deepseek", "greedy")
    rules: tuple[DispatchRule, ...] = (DispatchRule.EVEN, DispatchRule.WEIGHTED)

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return fields_html(self)

    def __post_init__(self) -> None:
        for name in ("nodes", "redundant", "strategies", "rules"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise InputError(f"{name} = {given!r}: expected a tuple")
        object.__setattr__(self, "rules", tuple(DispatchRule.named(rule) for rule in self.rules))
        for name in ("nodes", "strategies", "rules"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty: expected at least one")
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InputError(f"{name} = {', '.join(map(str, getattr(self, name)))}: expected each once")
        for name, counts, least in (
            ("nodes", self.nodes, 1),
            ("gpus_per_node", (self.gpus_per_node,), 1),
            ("redundant", self.redundant, 0),
        ):
            for count in counts:
                check_count(name, count, least=least)

    def topologies(self, num_experts: int) -> tuple[Topology, ...]:
        """One for each EP size and number of redundant experts.

        Raises
        ------
        InputError
            If no number of redundant experts fits any EP size, or for more than 16 ranks an expert.
        """
        most = max(self.nodes) * self.gpus_per_node
        if most > _MOST_RANKS_PER_EXPERT * num_experts:
            raise InputError(
                f"{max(self.nodes)} nodes of {self.gpus_per_node} GPUs: expected at most "
                f"{_MOST_RANKS_PER_EXPERT * num_experts} GPUs for {num_experts} experts"
            )
        found = []
        for nodes in self.nodes:
            ranks = nodes * self.gpus_per_node
            least = -num_experts % ranks
            numbers = self.redundant or tuple(least + ranks * extra for extra in _EXTRA_SLOTS)
            found += [
                Topology.for_experts(num_experts, num_ranks=ranks, num_nodes=nodes, num_redundant=number)
                for number in numbers
                if (number - least) % ranks == 0 and least <= number <= (ranks - 1) * num_experts
            ]
        if not found:
            raise InputError(
                f"redundant = {list(self.redundant)}: none fits, expected experts plus redundant experts to be a "
                f"multiple of the ranks, {[nodes * self.gpus_per_node for nodes in self.nodes]}"
            )
        return tuple(found)

    def choices(self, topology: Topology, num_experts: int) -> list[tuple[str, DispatchRule]]:
        """(strategy, rule) of the deployments on one topology."""
        rules = self.rules if topology.num_slots > num_experts else self.rules[:1]
        return [(strategy, rule) for strategy in self.strategies for rule in rules]

    def size(self, num_experts: int) -> int:
        """Number of deployments."""
        return sum(len(self.choices(topology, num_experts)) for topology in self.topologies(num_experts))


@final
@dataclass(frozen=True, eq=False)
class Deployment:
    """One row of an advice."""

    num_nodes: int
    num_ranks: int
    """The EP size."""
    num_redundant: int
    slots_per_rank: int
    strategy: str
    rule: DispatchRule
    max_over_mean: float
    """Mean over layers and windows with tokens."""
    step: PredictedStep
    tokens_per_s: float
    """Of a GPU, if a step were its MoE layers alone: no deployment serves more."""
    expert_bytes: float
    """Routed experts of a GPU, all layers."""
    left_bytes: float
    """For KV cache and activations; below 0 if the weights do not fit."""
    fits: bool
    meets_slo: bool
    """True without an SLO."""

    @property
    def eligible(self) -> bool:
        """Fits the memory and meets the SLO."""
        return self.fits and self.meets_slo

    @property
    def name(self) -> str:
        """The choices, in words."""
        nodes = "1 node" if self.num_nodes == 1 else f"{self.num_nodes} nodes"
        return (
            f"EP{self.num_ranks} on {nodes}, {self.num_redundant} redundant experts, {self.strategy} placement, "
            f"{self.rule} dispatch"
        )

    def summary(self) -> dict[str, object]:
        """The figures by name, as `--json` prints them."""
        return {
            "num_nodes": self.num_nodes,
            "num_ranks": self.num_ranks,
            "num_redundant": self.num_redundant,
            "slots_per_rank": self.slots_per_rank,
            "placement": self.strategy,
            "dispatch": self.rule.value,
            "max_over_mean_mean": self.max_over_mean,
            **self.step.summary(),
            "tokens_per_s_per_gpu": self.tokens_per_s,
            "expert_bytes": self.expert_bytes,
            "left_bytes": self.left_bytes,
            "fits": self.fits,
            "meets_slo": self.meets_slo,
        }


@final
@dataclass(frozen=True, eq=False)
class Advice:
    """All deployments, the knee, and the one that is recommended."""

    deployments: tuple[Deployment, ...]
    cost: StepCost
    memory: GpuMemory
    slo_s: float | None

    @property
    def choices(self) -> str:
        """Where the choices of the steps come from."""
        return f"{self.cost.sampled}{self.cost.scaling(len(self.deployments[0].step.times.layers))}"

    @property
    def best_of_each_size(self) -> tuple[Deployment, ...]:
        """The fastest placement and dispatch of each EP size and number of redundant experts."""
        best: dict[tuple[int, int], Deployment] = {}
        for row in self.deployments:
            key = (row.num_ranks, row.num_redundant)
            if key not in best or row.tokens_per_s > best[key].tokens_per_s:
                best[key] = row
        return tuple(best.values())

    @property
    def fastest(self) -> Deployment | None:
        """Most tokens/s per GPU of those that fit and meet the SLO; None if there are none."""
        eligible = [row for row in self.deployments if row.eligible]
        return max(eligible, key=lambda row: row.tokens_per_s, default=None)

    @property
    def knee(self) -> int | None:
        """Fewest ranks with at least 95 % of the best tokens/s per GPU; None if nothing fits or meets the SLO."""
        best = self.fastest
        if best is None:
            return None
        near = [row for row in self.deployments if row.eligible and row.tokens_per_s >= KNEE_SHARE * best.tokens_per_s]
        return min(row.num_ranks for row in near)

    @property
    def recommended(self) -> Deployment | None:
        """At the knee, the fewest redundant experts within 1 % of the most tokens/s; of these even dispatch.

        Other dispatch has to be supported by the engine. Of several that are left, the fastest.
        """
        at_knee = [row for row in self.deployments if row.eligible and row.num_ranks == self.knee]
        best = max((row.tokens_per_s for row in at_knee), default=0.0)
        near = [row for row in at_knee if row.tokens_per_s >= _AS_FAST * best]
        return min(
            near,
            key=lambda row: (row.num_redundant, row.rule is not DispatchRule.EVEN, -row.tokens_per_s),
            default=None,
        )

    @property
    def reason(self) -> str:
        """Why a row is recommended, or why none is, in one sentence."""
        row, best = self.recommended, self.fastest
        if row is None or best is None:
            return self._why_none()
        share = 100 * row.tokens_per_s / best.tokens_per_s
        slo = ""
        if self.slo_s is not None:
            rest_ms = 1e3 * (self.slo_s - row.step.step_s)
            slo = f", and {rest_ms:.1f} of {1e3 * self.slo_s:g} ms left for the rest of the step"
        return (
            f"{row.name}: the fewest GPUs with at least {100 * KNEE_SHARE:.0f} % of the best tokens/s per GPU "
            f"({share:.1f} % of EP{best.num_ranks}'s), with {row.left_bytes / 1e9:.1f} GB a GPU left for KV cache and "
            f"activations{slo}."
        )

    def _why_none(self) -> str:
        fitting = [row for row in self.deployments if row.fits]
        if not fitting or self.slo_s is None:
            row = max(self.deployments, key=lambda row: row.left_bytes)
            return (
                f"None fits: {row.name} leaves {row.left_bytes / 1e9:.1f} GB a GPU, and "
                f"{self.memory.reserve_bytes / 1e9:.1f} are to be reserved."
            )
        row = min(fitting, key=lambda row: row.step.step_s)
        return (
            f"None meets {1e3 * self.slo_s:g} ms: the fastest that fits is {row.name}, with "
            f"{1e3 * row.step.step_s:.1f} ms in the MoE layers alone."
        )


def advise(  # noqa: PLR0913  # load, model and GPU, what to compare, and by what
    source: LoadLike,
    cost: StepCost,
    space: DeploymentSpace,
    memory: GpuMemory | None = None,
    *,
    slo_ms: float | None = None,
    on_row: Callable[[], None] | None = None,
    executor: Executor = IN_ORDER,
) -> Advice:
    """Predict the step of every deployment and recommend one.

    All deployments of an EP size are given the same choices, sampled from the load.

    Parameters
    ----------
    source
        A recorded load, or an array as `plan` takes it; a trace is counted.
    cost
        Model, GPU and tokens of a rank.
    space
        The deployments.
    memory
        Of a GPU; None: that of the calibration, the rest of the model estimated, 10 % reserved.
    slo_ms
        Longest step; None: any. A prediction below it is necessary, not sufficient: see `NOT_MODELLED`.
    on_row
        Called for each deployment, for a progress bar.
    executor
        Where the EP sizes are planned, such as `eplb_traces.scale.ray_cluster`; by default one after the other here.

    Raises
    ------
    InputError
        For a load of another model, or if no deployment is possible.

    Examples
    --------
    >>> import eplb
    >>> from eplb.cost import model_sizes, named_calibration
    >>> model, gpu = model_sizes("deepseek-v3"), named_calibration("h200")
    >>> cost = eplb.StepCost(model=model, calibration=gpu, tokens_per_rank=128)
    >>> load = [[float(1 + expert % 7) for expert in range(256)]]  # tokens of one layer
    >>> space = eplb.DeploymentSpace(nodes=(1, 2), redundant=(0,), strategies=("greedy",))
    >>> [deployment.num_ranks for deployment in eplb.advise(load, cost, space).deployments]
    [8, 16]
    """
    load = accepted_load(source)
    cost.check_model(load.shape)
    if slo_ms is not None and not 0 < slo_ms < float("inf"):
        raise InputError(f"slo_ms = {slo_ms}: expected finite and > 0")
    slo_s = None if slo_ms is None else slo_ms / 1e3
    held = GpuMemory.of(cost.model, cost.calibration.memory_bytes) if memory is None else memory

    def announce(_number: int, rows: list[Deployment]) -> None:
        if on_row is not None:
            for _ in rows:
                on_row()

    of_size = partial(_rows, load, cost, space, held, slo_s)
    rows = executor.map(of_size, space.topologies(load.num_experts), announce)
    return Advice(tuple(row for rows_of_size in rows for row in rows_of_size), cost, held, slo_s)


def _rows(  # noqa: PLR0913  # all that the EP sizes have in common, and the size
    load: ExpertLoad,
    cost: StepCost,
    space: DeploymentSpace,
    memory: GpuMemory,
    slo_s: float | None,
    topology: Topology,
) -> list[Deployment]:
    batch = cost.batch(load, topology)
    rows = []
    for strategy, rule in space.choices(topology, load.num_experts):
        placement = plan(load, topology, strategy, dispatch=rule).placement
        step = cost.predict(placement, batch, rule)
        slots = int(topology.rank_num_slots.max())
        expert_bytes = slots * cost.model.num_moe_layers * cost.model.expert_bytes(cost.dtype)
        row = Deployment(
            topology.num_nodes,
            topology.num_ranks,
            topology.num_slots - load.num_experts,
            slots,
            strategy,
            rule,
            evaluate(placement, load, rule).balance["max_over_mean_mean"],
            step,
            cost.tokens_per_rank / step.step_s,
            expert_bytes,
            memory.left(expert_bytes),
            memory.fits(expert_bytes),
            slo_s is None or step.step_s <= slo_s,
        )
        rows.append(row)
    return rows
