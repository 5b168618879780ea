"""Computes lower bounds on the busiest rank of a layer, each with a proof. Depends on no solver and no placement.

A bound is used only under the dispatch rules that it is proven for: see `PROVEN_FOR`. All bounds are in tokens on the
busiest rank, divided by its relative speed where ranks differ. T is the busiest rank's load, w_e an expert's load, c_e
its replicas, W the layer's load, R ranks, P slots, s the fewest slots a rank has. A layer without load has the bound 0.
"""

from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.load_range import check_counts
from eplb.core.problem import BindingBound
from eplb.core.topology import Topology
from eplb_traces import ExpertLoad

MOST_SLOTS_FOR_CO_RESIDENCY = 8
"""With more slots a rank many small replicas lie beside a large one, and the mean binds long before."""
CO_RESIDENCY_TOLERANCE = 5e-5
"""Relative width at which the search for the largest refuted load ends."""
MOST_GROUPS_TO_PARTITION = 8
"""With more groups the ways to share them out over nodes are not enumerated."""
PAIR_MIXTURE_TOLERANCE = 2e-3
"""Relative gap that is small enough not to look for a better mixture of thresholds."""

PROVEN_FOR: MappingProxyType[BindingBound, tuple[DispatchRule, ...]] = MappingProxyType({
    BindingBound.MEAN: tuple(DispatchRule),
    BindingBound.REPLICATION: tuple(DispatchRule),
    BindingBound.FULL_SLOT: EVEN_RULES,
    BindingBound.CO_RESIDENCY: EVEN_RULES,
    BindingBound.PAIR_MIXTURE: EVEN_RULES,
})  # fmt: skip
"""The dispatch rules that each bound is proven for. Bounds for even rules alone need every replica of an expert with c
of them to carry w_e / c: elsewhere a replica may carry less, so that little lies beside a large one."""


@final
@dataclass(frozen=True, eq=False)
class LowerBounds:
    """The best bound of each layer and which one it is."""

    value: Floats
    """[L] tokens on the busiest rank that no placement can go below."""
    binding: tuple[BindingBound, ...]
    """[L] the largest of the bounds; ties to the simplest one."""


def lower_bounds(
    load: Floats,
    topology: Topology,
    *,
    rule: DispatchRule = DispatchRule.EVEN,
    full_and_distinct: bool = True,
    reached: Floats | None = None,
) -> LowerBounds:
    """Bound every layer under a dispatch rule by the bounds that are proven for it.

    Parameters
    ----------
    load
        [L, E] tokens.
    topology
        Ranks, slots and speeds.
    rule
        How the tokens of an expert are split over its replicas.
    full_and_distinct
        Whether to bound only placements that fill every slot and hold no expert twice on a rank, as our solvers make
        and engines require. Other placements can beat the bounds that count what shares a rank; these are left out.
    reached
        [L] a load of the busiest rank that some such placement reaches. Where given, a search for a bound ends there,
        and the slow `pair_mixture_bound` is tried on layers still further from their bound than
        `PAIR_MIXTURE_TOLERANCE`.

    Raises
    ------
    InputError
        For a count out of range, see `load_range`.
    """
    check_counts(load, "load[layer {}, expert {}]")
    even = full_and_distinct and rule in PROVEN_FOR[BindingBound.FULL_SLOT]
    found: list[tuple[BindingBound, Floats]] = [
        (BindingBound.MEAN, mean_bound(load, topology)),
        (BindingBound.REPLICATION, replication_bound(load, topology, distinct=even)),
    ]
    if even:
        found.append((BindingBound.FULL_SLOT, full_slot_bound(load, topology, found[1][1])))
        best = np.maximum(found[0][1], found[2][1])
        found.append((BindingBound.CO_RESIDENCY, co_residency_bound(load, topology, best, reached)))
        if reached is not None:
            found.append((BindingBound.PAIR_MIXTURE, pair_mixture_bound(load, topology, found[-1][1], reached)))
    # A later bound binds only where it is truly larger: rounding must not name it.
    best = found[0][1].copy()
    which = np.zeros(load.shape[0], dtype=np.int64)
    for i in range(1, len(found)):
        larger = found[i][1] > best * (1 + 1e-12)
        best[larger] = found[i][1][larger]
        which[larger] = i
    return LowerBounds(best, tuple(found[i][0] for i in which))


def mean_bound(load: Floats, topology: Topology) -> Floats:
    """[L] the mean rank load.

    Proof. The ranks carry W together; with speeds v_r of mean 1, T >= (load of r) / v_r for every r, and summing
    T v_r >= load of r over ranks gives T R >= W. It holds under every dispatch rule.
    """
    return load.sum(axis=1) / topology.num_ranks


def replication_bound(load: Floats, topology: Topology, *, distinct: bool = False) -> Floats:
    """[L] the least load that the most loaded replica can have, with P replicas and at most R of an expert.

    Let v_1 >= v_2 >= ... be the speeds. The bound is the smallest t such that counts c_e with sum P exist for which
    every expert can be carried within t: w_e <= t V(c_e), with the capacity V(c) below. It is found by bisection.

    Proof. An expert with c replicas lies on at most min(c, R) ranks, which take at most T (v_1 + ... + v_c) together:
    V(c) = v_1 + ... + v_c. This holds under every dispatch rule, even or not, and for replicas that share a rank. Under
    even dispatch with no expert twice on a rank (`distinct`) each replica carries w_e / c, and the slowest of its c
    ranks has at most the speed v_c, so that w_e <= T c v_c: V(c) = max over b <= c of b v_b, as more replicas than
    needed may be held idle in the proof. With equal speeds both are c.
    """
    from eplb.bounds.replication_kernel import smallest_largest_replica, smallest_largest_share

    bound = np.empty(load.shape[0])
    load = np.ascontiguousarray(load)
    if topology.rank_speed is None:
        smallest_largest_replica(load, topology.num_slots, topology.num_ranks, bound)
        return bound
    speed = np.sort(topology.relative_speed)[::-1]
    num_copies = np.arange(1, speed.size + 1)
    capacity = np.maximum.accumulate(speed * num_copies) if distinct else np.cumsum(speed)
    smallest_largest_share(load, topology.num_slots, capacity, bound)
    return bound


def full_slot_bound(load: Floats, topology: Topology, replication: Floats) -> Floats:
    """[L] the largest replica plus the least that can share its rank, for full ranks without an expert twice.

    Proof. The rank with the largest replica, which `replication` bounds, holds at least s - 1 replicas of other,
    different experts. Under an even rule a replica of e carries at least w_e / c with c = min(R, P - E + 1), the most
    replicas an expert can have when every other expert keeps one. So T is at least the largest replica plus the sum of
    the s - 1 smallest w_e / c over experts; the expert of the largest replica may be among these s - 1, so the s - 1
    smallest of all bound them below.
    """
    num_experts = load.shape[1]
    most_copies = min(topology.num_ranks, topology.num_slots - num_experts + 1)
    num_others = int(topology.rank_num_slots.min()) - 1
    if num_others == 0:
        return replication
    smallest = np.partition(load, num_others - 1, axis=1)[:, :num_others].sum(axis=1) / most_copies
    return replication + smallest / topology.relative_speed.max()


def co_residency_bound(load: Floats, topology: Topology, known: Floats, reached: Floats | None = None) -> Floats:
    """[L] the largest T that is refuted by counting the small replicas that large ones need beside them.

    At least `known`, at most what is `reached`. For equally fast ranks whose slots, s at most, are all taken; elsewhere
    `known` is returned.

    Proof, for even rules. A rank with fewer slots gets empty slots up to s: replicas of size 0, which change no load.
    Suppose T is kept. Then c_e >= ceil(w_e / T), and P less the sum of these is the number of free replicas. Give every
    replica of size x, empty slots among them, a potential u(x), such that no s replicas with sum <= T have a positive
    sum of potentials: then all potentials sum to at most 0, and T is refuted if every choice of counts makes the sum
    positive.
    Two families, for a threshold t > T / 2, so that a rank holds at most one large replica (x >= t):

    - counting, s = 2: u = 1 from t on, -1 up to T - t, else 0. The replica beside a large one is at most T - t.
    - summing, any b: u = x - T + (s - 1) b from t on, -max(0, b - x) below. On a rank with a large replica the sum is
      at most x - T + the sum of min(b, y) over the others y, hence at most the rank's load less T.

    The least sum over counts is itself bounded by Lagrange: for any price of a replica, the sum over experts of the
    least of c u(w_e / c) + price (c - ceil(w_e / T)), less the price of all free replicas. Whatever threshold, b and
    price the search picks, a positive value refutes T. The mean bound is the family u = x - T / s.
    """
    most_slots = int(topology.rank_num_slots.max())
    if topology.rank_speed is not None or not 2 <= most_slots <= MOST_SLOTS_FOR_CO_RESIDENCY:
        return known
    from eplb.bounds.co_residency_kernel import largest_infeasible

    load = np.ascontiguousarray(load)
    upper = np.full_like(known, np.inf) if reached is None else reached
    bound = np.empty_like(known)

    def work(layers: slice) -> None:
        sizes, tolerance = (topology.num_ranks, topology.num_slots, most_slots), CO_RESIDENCY_TOLERANCE
        largest_infeasible(load[layers], *sizes, known[layers], upper[layers], tolerance, bound[layers])

    for_layer_chunks(work, load.shape[0])
    return bound


def pair_mixture_bound(load: Floats, topology: Topology, known: Floats, reached: Floats) -> Floats:
    """[L] as `co_residency_bound`, refuting with many thresholds at once; for equally fast ranks with two slots or one.

    Proof, for even rules. The potentials of the counting family for several thresholds t, added with weights >= 0,
    again have no positive sum on any pair with sum <= T: each of them has none. Strong duality says that the best
    weights and price give the linear relaxation of choosing counts with a fractional mixture for each expert;
    multiplicative weights come near to it in a few dozen steps.

    Parameters
    ----------
    load, topology
        As in `lower_bounds`.
    known
        [L] a bound.
    reached
        [L] what a placement reaches; layers within `PAIR_MIXTURE_TOLERANCE` of `known` keep it.
    """
    if topology.rank_speed is not None or topology.rank_num_slots.max() != 2:
        return known
    from eplb.bounds.pair_mixture_kernel import largest_refuted

    load = np.ascontiguousarray(load)
    bound = np.empty_like(known)

    def work(layers: slice) -> None:
        largest_refuted(
            load[layers], topology.num_ranks, topology.num_slots, known[layers], reached[layers],
            PAIR_MIXTURE_TOLERANCE, bound[layers],
        )  # fmt: skip

    for_layer_chunks(work, load.shape[0])
    return bound


def scenario_bound(
    load: ExpertLoad,
    topology: Topology,
    *,
    rule: DispatchRule = DispatchRule.EVEN,
    full_and_distinct: bool = True,
) -> Floats:
    """[L] the least mean over windows, by their weights, of busiest over mean rank that one plan can have.

    Mean here is the load over the number of ranks; a window without load counts as 1.

    Proof. One placement has to serve every window, and in none of them its busiest rank is below that window's bound.
    """
    num_windows, num_layers, _ = load.tokens.shape
    rows = load.tokens.reshape(num_windows * num_layers, -1)
    bound = lower_bounds(rows, topology, rule=rule, full_and_distinct=full_and_distinct).value
    mean = rows.sum(axis=1) / topology.num_ranks
    ratio = np.where(mean > 0, bound / np.where(mean > 0, mean, 1.0), 1.0)
    return np.average(ratio.reshape(num_windows, num_layers), axis=0, weights=load.weights)


@final
@dataclass(frozen=True, eq=False)
class PinnedBounds:
    """Bounds where every expert group lives on one node, and what that costs."""

    value: Floats
    """[L] tokens on the busiest rank that no placement with pinned groups can go below."""
    free: Floats
    """[L] the same where any expert may lie on any node."""

    @property
    def price_of_locality(self) -> Floats:
        """[L] relative distance of the two: what pinning is proven to cost, apart from any solver's gap."""
        return np.where(self.free > 0, self.value / np.where(self.free > 0, self.free, 1.0) - 1, 0.0)


def pinned_bounds(
    load: Floats, topology: Topology, num_groups: int, *, rule: DispatchRule = DispatchRule.EVEN
) -> PinnedBounds:
    """Bound every layer when each group is on one node and each node has equally many.

    Proof. A node with a set of groups is a topology of its own: `lower_bounds` holds with the experts of these groups,
    and the layer is at least its worst node. Up to `MOST_GROUPS_TO_PARTITION` groups, the least worst node over all
    ways to share the groups out is found by dynamic programming over sets. With more groups or unequal nodes only the
    node with the heaviest group is bounded: beside it lie at least the lightest others, and the node's ranks carry
    their mean.

    Parameters
    ----------
    load, topology, rule
        As in `lower_bounds`.
    num_groups
        Groups of equally many experts in order of their ids; a multiple of the nodes.
    """
    num_layers, num_experts = load.shape
    num_nodes = topology.num_nodes
    per_node = num_groups // num_nodes
    free = lower_bounds(load, topology, rule=rule).value
    group_load = np.sort(load.reshape(num_layers, num_groups, -1).sum(axis=2), axis=1)
    heaviest = (group_load[:, -1] + group_load[:, : per_node - 1].sum(axis=1)) / topology.node_speed.max()
    value = np.maximum(free, heaviest)
    node = _one_of_equal_nodes(topology)
    if num_groups > MOST_GROUPS_TO_PARTITION or node is None:
        return PinnedBounds(value, free)
    by_group = load.reshape(num_layers, num_groups, num_experts // num_groups)
    bound_of = {
        sum(1 << group for group in chosen): lower_bounds(
            by_group[:, chosen].reshape(num_layers, -1), node, rule=rule
        ).value
        for chosen in combinations(range(num_groups), per_node)
    }
    return PinnedBounds(np.maximum(value, _least_worst_node(bound_of, num_groups)), free)


def _one_of_equal_nodes(topology: Topology) -> Topology | None:
    """A topology of one node, as each of them is; None if nodes differ in ranks, slots or speeds."""
    if not topology.has_equal_nodes:
        return None
    slots = topology.rank_num_slots.reshape(topology.num_nodes, -1)
    speeds = topology.relative_speed.reshape(topology.num_nodes, -1)
    if (slots != slots[0]).any() or (speeds != speeds[0]).any():
        return None
    return Topology(1, slots.shape[1], slots[0].tolist(), speeds[0].tolist())


def _least_worst_node(bound_of: dict[int, Floats], num_groups: int) -> Floats:
    """[L] least over partitions of the groups into sets of the table of the largest bound of a set.

    O(sets of groups x sets of the table): the lowest group that is left goes with every set that holds it.
    """
    best: dict[int, Floats] = {0: np.zeros_like(next(iter(bound_of.values())))}
    everything = (1 << num_groups) - 1
    open_sets = [0]
    for placed in open_sets:  # grows while it is walked: each set of groups once, smaller ones first
        lowest = ~placed & (placed + 1)
        for chosen, bound in bound_of.items():
            if not chosen & lowest or chosen & placed:
                continue
            worst = np.maximum(best[placed], bound)
            union = placed | chosen
            if union not in best:
                open_sets.append(union)
                best[union] = worst
            else:
                best[union] = np.minimum(best[union], worst)
    return best[everything]
