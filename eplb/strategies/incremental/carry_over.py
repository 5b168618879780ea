"""Starts from a live placement on a topology with other ranks or slots, with few replicas fetched.

Replicas on ranks that stay are kept as far as there are slots; experts without a replica, then redundant replicas, fill
the empty slots. Every filled slot is a fetch, whichever expert it gets, so the search of `incremental` then exchanges
and replaces what is fetched anyway: to the tightest limit that it reaches with hardly any more fetches.
"""

import numpy as np

from eplb.bounds.lower_bounds import lower_bounds
from eplb.core.arrays import Floats, Ints, Map
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.topology import Topology
from eplb.strategies.incremental.incremental import (
    AT_LIMIT,
    OVER_PRICE_FACTORS,
    Candidates,
    Held,
    busiest_rank,
    reduce_overload,
)

LIMITS = (1.001, 1.002, 1.005, 1.01, 1.02, 1.03, 1.05, 1.1)  # tried from the tightest on, over the lower bound


def carried_over(load: Floats, held: Held, topology: Topology) -> Map:
    """[L, P] the replicas that stay, and experts in the slots that are left.

    Some experts lack a replica where there are more without one than empty slots; then no slot is empty.

    Parameters
    ----------
    load
        [L, E] tokens.
    held
        What the ranks of `topology` have.
    topology
        The new topology; no rank has more slots than there are experts.
    """
    from eplb.strategies.incremental.carry_over_kernel import carry_over

    scaled, new = _scaled(load, topology), np.empty((load.shape[0], topology.num_slots), np.int32)
    scale = 1 / topology.relative_speed

    def work(rows: slice) -> None:
        carry_over(
            scaled[rows], held.phy2log[rows], held.first_slot, topology.rank_first_slot, topology.rank_of_slot, scale,
            new[rows],
        )  # fmt: skip

    for_layer_chunks(work, load.shape[0])
    return new


def evened(load: Floats, start: Map, held: Held, topology: Topology, *, extra: float) -> Map:
    """[L, P] the start with its busiest ranks lowered, for at most the share `extra` of its fetches more.

    Parameters
    ----------
    load
        [L, E] tokens.
    start
        [L, P] every expert has a replica, no slot is empty.
    held
        What the ranks have and need not fetch.
    """
    fetched = num_fetched(start, held, topology, load.shape[1])
    best = Candidates(start.copy(), fetched.copy(), busiest_rank(load, start, topology))
    allowed = np.floor(fetched * (1 + extra) + AT_LIMIT).astype(np.int64)
    bound = lower_bounds(load, topology).value
    for slack in LIMITS:
        is_over = (best.busiest > bound * slack * (1 + AT_LIMIT)) & (bound > 0)
        rows = np.nonzero(is_over)[0]
        if not rows.size:
            break
        found = reduce_overload(
            load[rows], best.phy2log[rows], bound[rows] * slack, topology, factors=OVER_PRICE_FACTORS,
            searches=OVER_PRICE_FACTORS.size, held=Held(held.phy2log[rows], held.first_slot),
        )  # fmt: skip
        better = (found.num_fetched <= allowed[rows]) & (found.busiest < best.busiest[rows])
        best.overwrite(is_over, found, better)
    return best.phy2log


def num_fetched(phy2log: Map, held: Held, topology: Topology, num_experts: int) -> Ints:
    """[L] pairs of rank and expert of a map without empty slots that the ranks do not have."""
    pairs_of_layer = topology.num_ranks * (num_experts + 1)
    base = np.arange(phy2log.shape[0])[:, None] * pairs_of_layer
    rank_of_held = np.repeat(np.arange(topology.num_ranks), np.diff(held.first_slot))
    had = base + rank_of_held * (num_experts + 1) + np.where(held.phy2log < 0, num_experts, held.phy2log)
    lacking = np.setdiff1d(base + topology.rank_of_slot * (num_experts + 1) + phy2log, had)
    return np.bincount(lacking // pairs_of_layer, minlength=phy2log.shape[0])


def _scaled(load: Floats, topology: Topology) -> Floats:
    """[L, E] scaled to mean rank load 1; a layer without load is taken as even."""
    even = np.where(load.any(axis=1, keepdims=True), load, 1.0)
    scaled: Floats = np.ascontiguousarray(even * (topology.num_ranks / even.sum(axis=1, keepdims=True)))
    return scaled
