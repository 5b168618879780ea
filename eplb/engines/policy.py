"""Plans a new map from an engine's load and live map; shared by the replacements for all engines."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.counts import check_max_moves
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule
from eplb.core.migration import keep_slots, rename_ranks
from eplb.core.placement import Placement
from eplb.core.problem import GroupMode, Problem
from eplb.core.topology import Topology
from eplb.dispatch.replica_shares import FIXED_SHARE_RULES
from eplb.engines.live_map import adopt_live_map, cut_or_padded
from eplb.errors import InputError
from eplb.evaluation.metrics import busiest_rank_time, evaluate
from eplb.planning.planner import plan
from eplb.strategies import find_strategy
from eplb.strategies.baselines.deepseek import deepseek_maps
from eplb.strategies.incremental.incremental import Incremental
from eplb_traces import ExpertLoad

_Number = TypeVar("_Number", int, float)
_Default = TypeVar("_Default")

INCREMENTAL = "incremental"
DEEPSEEK = "deepseek"
GREEDY = "greedy"
SCENARIO = "scenario"
WITHIN = 1e-9  # relative tolerance of the trigger: rounding of sums over a rank's slots
MOST_WINDOWS = 16  # an engine's history is summed into at most this many; planning time is proportional
_VARIABLE = "EPLB_POLICY_"


class PolicyInputError(InputError, AssertionError):
    """Arguments for which the engine's own algorithm fails an assertion; callers may catch AssertionError."""


@final
@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """How a replacement for an engine's planner plans.

    Parameters
    ----------
    strategy
        "incremental" starts from the live map; without one it plans with `scenario` (several steps) or `greedy`. Any
        other name of `eplb.strategies` replans layers above the trigger from scratch; "deepseek", the engines' own
        algorithm, replans all layers at every call.
    target
        Max/mean at which "incremental" stops moving experts in a layer, unless the lower bound is higher.
    trigger
        Max/mean above which a layer is changed; at least `target`. The difference of the two is the hysteresis. Without
        `max_moves`, a layer that stays more than this factor above a plan from scratch gets that plan.
    max_moves
        Largest number of replicas that ranks fetch in one call, over all layers; None: as many as the target requires.
        Only for "incremental" with free groups: other plans are from scratch.
    group_mode
        "free": no restriction. "pinned": each expert group is on one node, if the nodes divide the groups, as in the
        engines' hierarchical algorithms; layers above the trigger are then replanned from scratch.
    dispatch
        The rule by which the engine splits an expert's tokens over its replicas. None: vllm-ascend's own in its policy;
        even in the others. SGLang's depends on the flags of the server and has to be given.

    Raises
    ------
    InputError
        For an unknown name, a number out of range, or a setting that the strategy or group mode would ignore.
    """

    strategy: str = INCREMENTAL
    target: float = 1.05
    trigger: float = 1.05
    max_moves: int | None = None
    group_mode: GroupMode = GroupMode.FREE
    dispatch: DispatchRule | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "group_mode", GroupMode.named(self.group_mode))
        if self.dispatch is not None:
            object.__setattr__(self, "dispatch", DispatchRule.named(self.dispatch))
        if self.strategy != INCREMENTAL:
            find_strategy(self.strategy)
        if not 1 <= self.target <= self.trigger < float("inf"):
            raise InputError(f"target = {self.target}, trigger = {self.trigger}: expected 1 <= target <= trigger")
        check_max_moves(self.max_moves)
        self._check_ignored()
        if self.rule not in FIXED_SHARE_RULES:
            raise InputError(
                f"dispatch = {self.rule}: expected a rule under which the map alone decides the shares: "
                f"{', '.join(FIXED_SHARE_RULES)}"
            )

    def _check_ignored(self) -> None:
        if self.group_mode is GroupMode.PRICED:
            raise InputError("group_mode = priced: no engine's call has a price, expected free or pinned")
        if self.max_moves is not None and (self.strategy, self.group_mode) != (INCREMENTAL, GroupMode.FREE):
            raise InputError(
                f"max_moves = {self.max_moves}: strategy {self.strategy} in group mode {self.group_mode} plans layers "
                f"from nothing, expected strategy {INCREMENTAL} in group mode free"
            )

    @property
    def rule(self) -> DispatchRule:
        """The dispatch rule; even unless given."""
        return DispatchRule.EVEN if self.dispatch is None else self.dispatch


def settings_from_environment(environment: Mapping[str, str] = os.environ) -> PolicySettings:
    """Settings from EPLB_POLICY_STRATEGY, _TARGET, _TRIGGER, _MAX_MOVES, _GROUP_MODE, _DISPATCH, or their defaults.

    If only _TARGET is set, the trigger equals the target.

    Raises
    ------
    InputError
        Naming the variable that is not a number, or the setting that is out of range.
    """
    known = PolicySettings()
    target = _number(environment, "TARGET", float, known.target)
    dispatch = environment.get(f"{_VARIABLE}DISPATCH")
    return PolicySettings(
        strategy=environment.get(f"{_VARIABLE}STRATEGY", known.strategy),
        target=target,
        trigger=_number(environment, "TRIGGER", float, target),
        max_moves=_number(environment, "MAX_MOVES", int, known.max_moves),
        group_mode=GroupMode.named(environment.get(f"{_VARIABLE}GROUP_MODE", known.group_mode)),
        dispatch=None if dispatch is None else DispatchRule.named(dispatch),
    )


def _number(
    environment: Mapping[str, str], name: str, kind: Callable[[str], _Number], default: _Default
) -> _Number | _Default:
    text = environment.get(f"{_VARIABLE}{name}")
    try:
        return default if text is None else kind(text)
    except ValueError:
        raise InputError(f"{_VARIABLE}{name} = {text!r}: expected a number") from None


def check_counts(num_experts: int, num_replicas: int, num_ranks: int) -> None:
    """Check what every engine's algorithm asserts.

    Raises
    ------
    PolicyInputError
        If the ranks do not divide the slots, or there are fewer slots than experts.
    """
    if num_ranks < 1:
        raise PolicyInputError(f"num_ranks = {num_ranks}: expected >= 1")
    if num_replicas % num_ranks:
        raise PolicyInputError(f"num_replicas = {num_replicas}: expected a multiple of num_ranks = {num_ranks}")
    if num_replicas < num_experts:
        raise PolicyInputError(f"num_replicas = {num_replicas}: expected at least {num_experts} experts")


def call_topology(num_replicas: int, *, num_nodes: int, num_ranks: int) -> Topology:
    """The topology of an engine's call; if the nodes do not divide the ranks, one node, as in the engines."""
    nodes = num_nodes if num_nodes >= 1 and num_ranks % num_nodes == 0 else 1
    return Topology(nodes, num_ranks // nodes, num_replicas // num_ranks)


def new_map(
    history: Floats, topology: Topology, settings: PolicySettings, *, num_groups: int = 1, live: Ints | None = None
) -> Map:
    """Plan for an engine.

    A layer without load is not changed; without a live map its experts get equal numbers of replicas. Experts that stay
    on a rank keep their slots. No rank holds an expert twice, unless a rank has more slots than experts that it may
    hold: then the engines' own algorithm plans.

    Parameters
    ----------
    history
        [W, L, E] tokens of each window; a window without tokens is allowed only if it is the only one.
    topology
        Nodes, ranks and slots; all ranks have equally many slots.
    settings
        How to plan.
    num_groups
        Expert groups, used if pinned; 1 if the model has none or the nodes do not divide them.
    live
        [L, any] the engine's live map; None at the start.

    Returns
    -------
    NDArray
        [L, P] expert of each slot.

    Raises
    ------
    PolicyInputError
        For pinned groups under a dispatch rule that is not even.
    """
    total = history.sum(axis=0)
    pinned = settings.group_mode is GroupMode.PINNED and num_groups > 1 and num_groups % topology.num_nodes == 0
    mode = GroupMode.PINNED if pinned else GroupMode.FREE
    if pinned and settings.rule not in EVEN_RULES:
        raise PolicyInputError(f"group_mode = pinned: expected an even dispatch rule, got {settings.rule}")
    most_distinct = total.shape[1] // topology.num_nodes if pinned else total.shape[1]
    if settings.strategy == DEEPSEEK or topology.rank_num_slots[0] > most_distinct:
        return _published(total, topology, num_groups=num_groups, live=live)
    adopted = None if live is None else adopt_live_map(live, total, topology)
    if live is None or adopted is None:
        return _fresh(history, topology, settings, num_groups=num_groups, mode=mode)
    if settings.rule in EVEN_RULES:
        result = _replanned(history, adopted, topology, settings, num_groups=num_groups, mode=mode)
    else:
        result = _replanned_under_rule(history, adopted, topology, settings)
    keep_live_slots(cut_or_padded(live, topology.num_slots), result, num_ranks=topology.num_ranks)
    return result


def warm_up(settings: PolicySettings) -> None:
    """Load or compile the kernels of the planner, so that the engine's first call is fast."""
    history, topology = np.array([[[8.0, 4.0, 2.0, 1.0]], [[1.0, 2.0, 4.0, 8.0]]]), Topology(1, 2, 3)
    for windows in (history, history[:1]):
        live = new_map(windows, topology, settings)
        new_map(history[1:], topology, settings, live=live.astype(np.int64))


def _replanned(  # noqa: PLR0913  # the inputs of a replan
    history: Floats, adopted: Map, topology: Topology, settings: PolicySettings, *, num_groups: int, mode: GroupMode
) -> Map:
    """Change layers above the trigger; with few moved replicas if groups are free and the strategy is incremental."""
    total, result = history.sum(axis=0), adopted.copy()
    if settings.strategy == INCREMENTAL and mode is GroupMode.FREE:
        result = _improved(total, adopted, topology, settings)
        if settings.max_moves is not None:
            return result
    rows = _over(total, result, topology, settings.trigger)
    if mode is GroupMode.PINNED:
        rows |= ~_groups_pinned(adopted, total.shape[1], num_groups, topology)
    if rows.any():
        seen = total[None, rows] if settings.strategy == INCREMENTAL else history[:, rows]
        fresh = _fresh(seen, topology, settings, num_groups=num_groups, mode=mode)
        block = topology.ranks_per_node if mode is GroupMode.PINNED else topology.num_ranks
        before, after = (Placement(phy2log, total.shape[1], topology) for phy2log in (adopted[rows], fresh))
        fresh = rename_ranks(before, after, ranks_per_block=block).physical_to_logical_map
        worse = busiest_rank_time(total[rows], result[rows], topology) > (
            busiest_rank_time(total[rows], fresh, topology) * settings.trigger * (1 + WITHIN)
        )
        if mode is GroupMode.PINNED:
            worse |= ~_groups_pinned(adopted[rows], total.shape[1], num_groups, topology)
        result[rows] = np.where(worse[:, None], fresh, result[rows])
    return result


def _replanned_under_rule(history: Floats, adopted: Map, topology: Topology, settings: PolicySettings) -> Map:
    """Change layers above the trigger; ranks keep their numbers, which decide the shares of the replicas."""
    total, result = history.sum(axis=0), adopted.copy()
    before = busiest_over_mean(total, adopted, topology, settings.rule)
    rows = before > settings.trigger * (1 + WITHIN)
    if settings.rule is DispatchRule.SGLANG_STATIC:
        rows[:] = rows.any()  # the draw of a layer depends on the layers before it
    if not rows.any():
        return result
    if settings.strategy == INCREMENTAL:
        start = Placement(adopted[rows], total.shape[1], topology)
        improve = Incremental(previous=start, target=settings.target, max_moves=settings.max_moves)
        problem = Problem(ExpertLoad(total[rows]), topology, dispatch=settings.rule)
        made = improve(problem).placement.physical_to_logical_map
    else:
        made = _fresh(history[:, rows], topology, settings, num_groups=1, mode=GroupMode.FREE)
    result[rows] = made
    if settings.rule is not DispatchRule.SGLANG_STATIC:
        no_better = busiest_over_mean(total, result, topology, settings.rule) >= before * (1 - WITHIN)
        result[no_better] = adopted[no_better]
    return result


def busiest_over_mean(total: Floats, phy2log: Map, topology: Topology, rule: DispatchRule) -> Floats:
    """[L] busiest over mean rank of a map under a rule; NaN for a layer without load."""
    placement = Placement(np.ascontiguousarray(phy2log, dtype=np.int32), total.shape[1], topology)
    return evaluate(placement, ExpertLoad(total), rule).max_over_mean_of_total


def _improved(total: Floats, live: Map, topology: Topology, settings: PolicySettings) -> Map:
    """Improve layers above the trigger to the target, with few moved replicas."""
    result, rows = live.copy(), _over(total, live, topology, settings.trigger)
    if rows.any():
        start = Placement(live[rows], total.shape[1], topology)
        improve = Incremental(previous=start, target=settings.target, max_moves=settings.max_moves)
        result[rows] = improve(Problem(ExpertLoad(total[rows]), topology)).placement.physical_to_logical_map
    return result


def _over(total: Floats, phy2log: Map, topology: Topology, trigger: float) -> NDArray[np.bool_]:
    """[L] whether the busiest rank is above the trigger."""
    mean = total.sum(axis=1) / topology.num_ranks
    return np.asarray(busiest_rank_time(total, phy2log, topology) > mean * trigger * (1 + WITHIN))


def _fresh(history: Floats, topology: Topology, settings: PolicySettings, *, num_groups: int, mode: GroupMode) -> Map:
    """Plan without a live map; a layer without load is planned for equal loads."""
    load = ExpertLoad(np.where(np.asarray(history.any(axis=(0, 2)))[:, None], history, 1.0))
    strategy = settings.strategy
    if strategy == INCREMENTAL:
        strategy = SCENARIO if load.num_windows > 1 else GREEDY
    groups = num_groups if mode is GroupMode.PINNED else 1
    made = plan(load, topology, strategy, groups=groups, group_mode=mode, dispatch=settings.rule)
    return made.placement.physical_to_logical_map.copy()


def _published(total: Floats, topology: Topology, *, num_groups: int, live: Ints | None) -> Map:
    """Plan with the engines' own algorithm; experts that stay on a rank keep their slots."""
    hierarchical = num_groups % topology.num_nodes == 0
    phy2log, _, _ = deepseek_maps(
        total,
        topology.num_slots,
        num_groups=num_groups if hierarchical else 1,
        num_nodes=topology.num_nodes if hierarchical else 1,
        num_ranks=topology.num_ranks,
    )
    result = phy2log.astype(np.int32)
    if live is not None and live.shape == result.shape:
        keep_live_slots(live, result, num_ranks=topology.num_ranks)
    return result


def keep_live_slots(live: Ints | Map, phy2log: Map, *, num_ranks: int) -> None:
    """Reorder the slots of every rank in place so that experts that it had stay where they were."""
    first_slot = np.arange(num_ranks + 1, dtype=np.int64) * (phy2log.shape[1] // num_ranks)
    keep_slots(np.ascontiguousarray(live, dtype=np.int32), phy2log, first_slot)


def _groups_pinned(phy2log: Map, num_experts: int, num_groups: int, topology: Topology) -> NDArray[np.bool_]:
    """[L] whether every expert group is on one node."""
    group = phy2log // (num_experts // num_groups)
    node = topology.node_of_rank[topology.rank_of_slot]
    on_node = np.zeros((phy2log.shape[0], num_groups, topology.num_nodes), dtype=np.bool_)
    on_node[np.arange(phy2log.shape[0])[:, None], group, node] = True
    return np.asarray((on_node.sum(axis=2) <= 1).all(axis=1))
