"""Changes a live placement: which layers move, and whether the gain exceeds the transfer time."""

import dataclasses
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.arguments.accepted import LoadLike, PlacementLike, accepted_load, accepted_placement
from eplb.core.arrays import Floats, Map
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.expert_bytes import known_expert_bytes
from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.problem import Plan, Problem, checked_sources
from eplb.core.topology import Topology
from eplb.dispatch.optimal_shares import weighted_placement
from eplb.errors import InputError
from eplb.strategies.certify import certified_plan
from eplb.strategies.incremental.incremental import Incremental, busiest_rank
from eplb.strategies.under_rule.objective import busiest_under_rule, is_even
from eplb_traces.display import fields_html, short_repr
from eplb_traces.jit import WorkClock


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Horizon:
    """The value of a better balance until the next rebalance. A layer is moved only if it exceeds the transfer time.

    The gain of a layer, in seconds, is `token_s` times `num_loads` times the tokens by which its busiest rank falls:
    ranks wait for the busiest one in every layer. The cost is `transfer_share` times the seconds of its batches.

    Parameters
    ----------
    token_s
        Seconds that one token takes at one expert of one layer on a rank of mean speed. Measure it: the time of a
        layer's expert computation over the tokens of its busiest rank.
    num_loads
        How many times the given load is served before the next rebalance.
    transfer_share
        Part of the transfer time in which serving waits: 1 for a blocking migration, less for one in the background.

    Raises
    ------
    InputError
        If a number is not finite and >= 0.
    """

    token_s: float
    num_loads: float = 1.0
    transfer_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("token_s", "num_loads", "transfer_share"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} = {getattr(self, name)}: expected finite and >= 0")

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return fields_html(self)

    def gain_s(self, fall: Floats) -> Floats:
        """[L] seconds saved if the busiest rank of each layer falls by so many tokens, [L]."""
        return fall * self.token_s * self.num_loads

    def price_s(self, migration: Migration) -> Floats:
        """[L] seconds that the transfers of each layer cost."""
        return migration.transfer_s_by_layer * self.transfer_share

    def pays(self, migration: Migration, fall: Floats) -> NDArray[np.bool_]:
        """[L] layers that move and gain more than their transfer costs; a layer that gains as much stays as it is."""
        return (migration.moved_copies_by_layer > 0) & (self.gain_s(fall) > self.price_s(migration))


def rebalance(  # noqa: PLR0913  # everything that a replan can depend on, by keyword
    previous: PlacementLike,
    load: LoadLike,
    *,
    target: float = 1.05,
    max_moves: int | None = None,
    horizon: Horizon | None = None,
    topology: Topology | None = None,
    expert_bytes: float | None = None,
    dispatch: str = DispatchRule.EVEN,
    sources: Sequence[float] | None = None,
    seed: int = 0,
) -> Plan:
    """Improve a live placement while moving few replicas.

    Parameters
    ----------
    previous
        The live placement, its plan, or the path of its file.
    load
        The load to serve from now on, in any form that `plan` takes; windows are summed.
    target
        Every layer is to have at most this times its lower bound on the busiest rank. The bound is the mean rank load
        unless no placement reaches it, so the target is on max/mean wherever that is possible. Layers that meet the
        target are not changed; a load that has not changed moves nothing.
    max_moves
        Most replicas that ranks may fetch from others, over all layers. Where the target takes more, they are spent
        where each lowers the busiest ranks most.
    horizon
        The value of a better balance; layers whose gain is below their transfer cost stay as they are. By default the
        target alone decides.
    topology
        The topology, if bandwidths or speeds differ from those of `previous`; ranks and slots must not differ.
    expert_bytes
        Bytes of one expert of one layer; None: those of the recording, or unknown.
    dispatch, sources
        As in `plan`. With "weighted" the plan carries the shares that are best for the load.
    seed
        Kept in the plan; the search is deterministic.

    Returns
    -------
    Plan
        With `migration`, and with the changes in `notes`. No rank holds a duplicate that it did not hold before;
        experts that stay on a rank keep their slots.

    Raises
    ------
    InputError
        If placement, load and topology do not fit together, or a number is out of range.

    Examples
    --------
    >>> import eplb
    >>> topology = eplb.Topology(num_nodes=1, ranks_per_node=2, slots_per_rank=3)
    >>> live = eplb.plan([[9.0, 3.0, 2.0, 2.0]], topology)
    >>> later = [[2.0, 3.0, 2.0, 9.0]]
    >>> plan = eplb.rebalance(live, later)
    >>> plan.migration.moved_copies
    1
    >>> eplb.evaluate(plan, later)
    Evaluation(1 window of 1 layer, even dispatch, max/mean 1.0000, worst 1.0000)
    """
    clock = WorkClock()
    load = accepted_load(load)
    previous = accepted_placement(previous, load.shape, "previous")
    topology = previous.topology if topology is None else topology
    rates = None if sources is None else checked_sources(sources, topology)
    problem = Problem(load, topology, dispatch=DispatchRule.named(dispatch), sources=rates)
    made = Incremental(previous=previous, target=target, max_moves=max_moves)(problem, seed=seed)
    before = Placement(previous.physical_to_logical_map, previous.num_experts, topology)
    size = known_expert_bytes(expert_bytes, load.shape)
    if horizon is not None and size is None:
        raise InputError("horizon: the cost of a move is unknown, expected expert_bytes")
    made = dataclasses.replace(made, migration=Migration.between(before, made.placement, size))
    if horizon is not None:
        made = _only_what_pays(made, problem, horizon)
    if problem.dispatch is DispatchRule.WEIGHTED:
        made = dataclasses.replace(made, placement=weighted_placement(made.placement, load))
    return dataclasses.replace(made, seconds=clock.seconds())


def _only_what_pays(made: Plan, problem: Problem, horizon: Horizon) -> Plan:
    """Put layers back that do not pay; see `Horizon.pays`."""
    migration = made.migration
    if migration is None or not migration.moved_copies:
        return made
    old, new = migration.before.physical_to_logical_map, made.placement.physical_to_logical_map
    fall = _busiest(problem, old) - _busiest(problem, new)
    gain_s, price_s = horizon.gain_s(fall), horizon.price_s(migration)
    moves = migration.moved_copies_by_layer > 0
    back = moves & ~horizon.pays(migration, fall)
    if not back.any():
        note = f"moving takes {price_s.sum():.3g} s and saves {gain_s.sum():.3g} s over the horizon"
        return dataclasses.replace(made, notes=(*made.notes, note))
    notes = (
        f"incremental: {migration.moved_copies_by_layer[~back].sum()} copies moved for {(moves & ~back).sum()} layers",
        f"{back.sum()} layers over the target stay as they are: moving them would take {price_s[back].sum():.3g} s and "
        f"save {gain_s[back].sum():.3g} s over the horizon",
    )
    phy2log = np.where(back[:, None], old, new)
    kept = certified_plan(
        problem,
        phy2log,
        strategy=made.strategy,
        objective=_busiest(problem, phy2log),
        seed=made.seed,
        notes=notes,
    )
    return dataclasses.replace(
        kept, migration=Migration.between(migration.before, kept.placement, migration.expert_bytes)
    )


def _busiest(problem: Problem, phy2log: Map) -> Floats:
    """[L] tokens on the busiest rank under the problem's dispatch rule, over its relative speed."""
    load, topology = problem.load.total, problem.topology
    if is_even(problem.dispatch):
        return busiest_rank(load, phy2log, topology)
    return busiest_under_rule(problem, Placement(phy2log, load.shape[1], topology))
