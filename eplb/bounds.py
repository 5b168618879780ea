"""Knows how low the busiest rank of a layer can possibly go, with a proof each; knows no solver and no placement.

All bounds are in tokens on the busiest rank, divided by its relative speed where ranks differ. T is the busiest rank's
load, w_e an expert's load, c_e its copies, W the layer's load, R ranks, P slots, s the fewest slots a rank has.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.plan import BindingBound
from eplb.topology import Topology


@final
@dataclass(frozen=True, eq=False)
class LowerBounds:
    """The best bound of each layer and which one it is."""

    value: NDArray[np.float64]
    """[L] tokens on the busiest rank that no placement can go below."""
    binding: tuple[BindingBound, ...]
    """[L] the largest of the bounds; ties to the simplest one."""


def lower_bounds(load: NDArray[np.float64], topology: Topology, *, full_and_distinct: bool = True) -> LowerBounds:
    """Bound every layer under even dispatch.

    Parameters
    ----------
    load
        [L, E] tokens.
    topology
        The machine.
    full_and_distinct
        Whether to bound only placements that fill every slot and hold no expert twice on a rank, as our solvers make
        and engines ask. Other placements can beat `full_slot_bound`, so it is then left out.
    """
    candidates = [mean_bound(load, topology), replication_bound(load, topology)]
    if full_and_distinct:
        candidates.append(full_slot_bound(load, topology, candidates[1]))
    stacked = np.stack(candidates)
    # A later bound binds only where it is truly larger: rounding must not name it.
    names = list(BindingBound)
    best = stacked[0].copy()
    which = np.zeros(load.shape[0], dtype=np.int64)
    for i in range(1, len(candidates)):
        larger = stacked[i] > best * (1 + 1e-12)
        best[larger] = stacked[i][larger]
        which[larger] = i
    return LowerBounds(best, tuple(names[i] for i in which))


def mean_bound(load: NDArray[np.float64], topology: Topology) -> NDArray[np.float64]:
    """[L] the mean rank load.

    Proof. The ranks carry W together; with speeds v_r of mean 1, T >= (load of r) / v_r for every r, and summing
    T v_r >= load of r over ranks gives T R >= W. It holds under every dispatch rule.
    """
    return load.sum(axis=1) / topology.num_ranks


def replication_bound(load: NDArray[np.float64], topology: Topology) -> NDArray[np.float64]:
    """[L] the least load that the most loaded copy can have, with P copies and at most R of an expert.

    Proof. Every copy lies on one rank, so T times the fastest relative speed is at least the largest copy, under even
    dispatch max_e w_e / c_e. With sum_e c_e <= P and c_e <= R this is at least the smallest t that satisfies
    sum_e max(1, ceil(w_e / t)) <= P and ceil(w_e / t) <= R. A placement with more than R copies of an expert has
    two on some rank and by the pigeonhole principle ceil(c_e / R) w_e / c_e >= w_e / R there: counting it as R copies
    changes nothing in the proof. Splitting an expert unevenly only raises its largest share, so the bound holds under
    every fixed split as well.
    """
    from eplb.kernels.replication_bound import smallest_largest_copy

    bound = np.empty(load.shape[0])
    smallest_largest_copy(np.ascontiguousarray(load), topology.num_slots, topology.num_ranks, bound)
    return bound / topology.relative_speed.max()


def full_slot_bound(
    load: NDArray[np.float64], topology: Topology, replication: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[L] the largest copy plus the least that can share its rank, for full ranks without an expert twice.

    Proof. The rank with the largest copy, which `replication` bounds, holds at least s - 1 copies of other, different
    experts. A copy of e carries at least w_e / c with c = min(R, P - E + 1), the most copies an expert can have when
    every other expert keeps one. So T is at least the largest copy plus the sum of the s - 1 smallest w_e / c over
    experts; the expert of the largest copy may be among these s - 1, so the s - 1 smallest of all bound them below.
    """
    num_experts = load.shape[1]
    most_copies = min(topology.num_ranks, topology.num_slots - num_experts + 1)
    num_others = int(topology.rank_num_slots.min()) - 1
    if num_others == 0:
        return replication
    smallest = np.partition(load, num_others - 1, axis=1)[:, :num_others].sum(axis=1) / most_copies
    return replication + smallest / topology.relative_speed.max()
