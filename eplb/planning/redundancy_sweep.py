"""Plans with several numbers of redundant experts: balance and memory of each. `eplb.report` draws the result."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import final

import numpy as np

from eplb.arguments.accepted import LoadLike, accepted_load
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.expert_bytes import known_expert_bytes
from eplb.core.placement import Placement
from eplb.core.problem import Problem, Strategy
from eplb.core.topology import Nodes, Topology
from eplb.dispatch.optimal_shares import placement_under
from eplb.errors import InputError
from eplb.evaluation.metrics import evaluate, mean_of_known, worst_of_known
from eplb.evaluation.step_cost import StepBatch, StepCost
from eplb.planning.own_plan import plan_of
from eplb.strategies import StrategyLike, accepted_strategy
from eplb_traces.display import fields_html, short_repr
from eplb_traces.jit import WorkClock
from eplb_traces.scale.executors import IN_ORDER, Executor

_logger = logging.getLogger("eplb")


@final
@dataclasses.dataclass(frozen=True, slots=True)
class SweepPoint:
    """Balance and memory of a plan with one number of redundant experts."""

    num_redundant: int
    slots_per_rank: int
    num_slots: int
    max_over_mean_mean: float
    """Mean over the layers and windows with tokens, by the windows' weights."""
    max_over_mean_worst: float
    """Largest of a layer and window."""
    gap_mean: float
    """Mean over layers of the relative distance to the proven bound, for the summed load."""
    bytes_per_rank: float | None
    """Expert weights of all layers on one rank; None where the bytes of an expert are unknown."""
    seconds: float
    """Wall time of planning; the first one may include compilation."""
    predicted_step_s: float | None = None
    """Predicted seconds of all MoE layers; None where nothing was given to predict with."""

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return fields_html(self)


def sweep(  # noqa: PLR0913  # the public call: what a plan depends on, the rule by keyword
    load: LoadLike,
    num_ranks: int,
    num_nodes: Nodes,
    redundant: Iterable[int],
    expert_bytes: float | None = None,
    *,
    strategy: StrategyLike = "greedy",
    dispatch: str = DispatchRule.EVEN,
    sources: Sequence[float] | None = None,
    cost: StepCost | None = None,
    executor: Executor = IN_ORDER,
    on_point: Callable[[], None] | None = None,
) -> tuple[SweepPoint, ...]:
    """Plan with each number of redundant experts and evaluate the plans.

    Numbers that do not fill all ranks equally, or that would need duplicates on a rank, are left out; the log names
    them.

    Parameters
    ----------
    load
        Tokens of each expert, in any form that `plan` takes; planned for the sum, evaluated window by window.
    num_ranks, num_nodes
        Ranks and nodes, as in `Topology.for_experts`.
    redundant
        Numbers of redundant experts to try, such as ``range(0, 65, 8)``.
    expert_bytes
        Bytes of one expert of one layer; None: those of the recording, or unknown.
    strategy
        What plans every point: a name or a strategy of your own, as in `plan`, but for "auto".
    dispatch, sources
        The rule by which an expert's tokens are split over its replicas, and the share of the tokens that each rank
        sends, to plan for and to evaluate under.
    cost
        Model, GPU and step to predict with, on one batch for all points; None: nothing is predicted.
    executor
        Where the points are planned, such as `eplb_traces.scale.ray_cluster`; by default one after the other here.
    on_point
        Called after each number that is planned.

    Raises
    ------
    InputError
        If no number fits, or one is negative; the message gives those that would fit. If `cost` is of another model.

    Examples
    --------
    >>> import eplb
    >>> load = [[9.0, 3.0, 2.0, 2.0]]
    >>> for point in eplb.sweep(load, num_ranks=2, num_nodes=1, redundant=[0, 2]):
    ...     print(point.num_redundant, round(point.max_over_mean_mean, 3))
    0 1.375
    2 1.0
    """
    if strategy == "auto":
        raise InputError("strategy auto: one strategy plans every point, expected its name")
    planner, load = accepted_strategy(strategy), accepted_load(load)
    size = known_expert_bytes(expert_bytes, load.shape)
    asked, num_experts = tuple(redundant), load.num_experts
    for number in asked:
        if number < 0:
            raise InputError(f"redundant = {number}: expected >= 0")
    topology = Topology.for_experts(num_experts, num_ranks=num_ranks, num_nodes=num_nodes, num_redundant=(
        -num_experts % num_ranks if num_ranks > 0 else 0
    ))  # fmt: skip
    least, most = topology.num_slots - num_experts, (num_ranks - 1) * num_experts
    fit = [number for number in asked if number <= most and (number - least) % num_ranks == 0]
    left_out = sorted(set(asked) - set(fit))
    rule = f"{least} plus a multiple of {num_ranks}, at most {most}, as {num_experts} experts on {num_ranks} ranks ask"
    if not fit:
        raise InputError(f"redundant = {list(asked)}: none can be planned, expected {rule}")
    if left_out:
        _logger.warning("sweep: redundant = %s left out: expected %s", left_out, rule)
    first = Problem(
        load.without_empty_windows(),
        topology,
        dispatch=DispatchRule.named(dispatch),
        sources=sources,
    )
    batch = None if cost is None else cost.batch(load, topology)
    one_point = partial(_predicted_point, planner, first, size, cost, batch)

    def announce(_number: int, _point: SweepPoint) -> None:
        if on_point is not None:
            on_point()

    return tuple(executor.map(one_point, fit, announce))


def _predicted_point(  # noqa: PLR0913  # all that the points have in common, and the number
    strategy: Strategy,
    like: Problem,
    expert_bytes: float | None,
    cost: StepCost | None,
    batch: StepBatch | None,
    number: int,
) -> SweepPoint:
    point, placement = _point(strategy, like, number, expert_bytes)
    if cost is None or batch is None:
        return point
    step = cost.predict(placement, batch, like.dispatch)
    return dataclasses.replace(point, predicted_step_s=step.step_s)


def _point(
    strategy: Strategy, like: Problem, num_redundant: int, expert_bytes: float | None
) -> tuple[SweepPoint, Placement]:
    """The point of one number of redundant experts, and its plan; all else as in `like`."""
    load, topology = like.load, like.topology
    slots = (load.num_experts + num_redundant) // topology.num_ranks
    clock = WorkClock()
    made = plan_of(strategy, dataclasses.replace(like, topology=dataclasses.replace(topology, slots_per_rank=slots)))
    placement = placement_under(like.dispatch, made.placement, load)
    seconds = clock.seconds()
    judged = evaluate(placement, load, like.dispatch, sources=like.sources)
    point = SweepPoint(
        num_redundant,
        slots,
        slots * topology.num_ranks,
        float(mean_of_known(judged.max_over_mean)),
        worst_of_known(judged.max_over_mean_by_window),
        float(np.mean([layer.gap for layer in made.layers if layer.lower_bound > 0])),
        None if expert_bytes is None else load.num_layers * slots * expert_bytes,
        seconds,
    )
    return point, placement
