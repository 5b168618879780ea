"""Computes the share of an expert's tokens that each of its replicas gets under a dispatch rule.

The share depends on the ranks that hold the replicas, in the order of their slots, and on the share of the tokens that
each rank sends. The replicas of one node are neighbours in that order.
"""

from typing import NamedTuple

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS, READ_FLOATS_2D, READ_INTS, READ_MAPS
from eplb_traces.jit import helper, njit

BY_COUNT, NODE_EVENLY, NODE_FIRST = 0, 1, 2


class ShareRule(NamedTuple):
    """A dispatch rule as kernels take it."""

    kind: int
    """BY_COUNT: shares are those of `by_count`. Otherwise a rank prefers its own replica, and a rank without one the
    replicas on its node: all of them alike (NODE_EVENLY), or the first one if the expert has others on another node
    (NODE_FIRST). The ranks left use all replicas alike."""
    by_count: Floats
    """[C + 1, C] shares of the first, second, ... of c replicas in row c; not used by rules that prefer near ones."""
    source: Floats
    """[R] share of the tokens that each rank sends."""
    node_source: Floats
    """[N] sum of `source` over the ranks of each node."""
    node_of_rank: Ints
    """[R]"""


SHARE_RULE = f"Tuple((int64, {READ_FLOATS_2D}, {READ_FLOATS}, {READ_FLOATS}, {READ_INTS}))"


@helper
def share_rule(fields: tuple[int, Floats, Floats, Floats, Ints]) -> ShareRule:
    """Name the fields of a rule that Python passed."""
    return ShareRule(fields[0], fields[1], fields[2], fields[3], fields[4])


@helper
def replica_shares(rule: ShareRule, ranks: Ints, shares: Floats) -> None:
    """Compute the share of each replica of one expert; the shares sum to 1. O(replicas).

    Parameters
    ----------
    rule
        The rule.
    ranks
        [c] ascending ranks of the replicas; a rank may be there twice.
    shares
        [c] out.
    """
    count = ranks.size
    if count == 1:
        shares[0] = 1.0
        return
    if rule.kind == BY_COUNT:
        shares[:] = rule.by_count[count, :count]
        return
    shares[:] = 0.0
    far, first = 1.0, 0
    while first < count:
        node, last, own = rule.node_of_rank[ranks[first]], first, 0.0
        while last < count and rule.node_of_rank[ranks[last]] == node:
            if last == first or ranks[last] != ranks[last - 1]:  # a rank uses its first replica
                shares[last] = rule.source[ranks[last]]
                own += rule.source[ranks[last]]
            last += 1
        rest = rule.node_source[node] - own
        if rule.kind == NODE_EVENLY:
            for i in range(first, last):
                shares[i] += rest / (last - first)
            far -= own + rest
        elif last - first < count:
            shares[first] += rest
            far -= own + rest
        else:
            far -= own
        first = last
    for i in range(count):
        shares[i] += max(far, 0.0) / count


@njit(f"void({SHARE_RULE}, {READ_MAPS}, {READ_INTS}, int64, float64[:, ::1])")
def shares_of_maps(
    rule_fields: tuple[int, Floats, Floats, Floats, Ints], phy2log: Map, rank_of_slot: Ints, num_experts: int,
    shares: Floats,
) -> None:  # fmt: skip
    """Compute the share of every slot of every layer.

    Parameters
    ----------
    rule_fields
        The fields of `ShareRule`.
    phy2log, rank_of_slot
        [L, P] expert of each slot, -1 for an empty one; [P].
    num_experts
        E.
    shares
        [L, P] out: share of its expert's tokens; 0 in empty slots.
    """
    rule = share_rule(rule_fields)
    first = np.empty(num_experts + 1, dtype=np.int64)
    slots, ranks = np.empty(phy2log.shape[1], dtype=np.int64), np.empty(phy2log.shape[1], dtype=np.int64)
    of_expert = np.empty(phy2log.shape[1])
    shares[:] = 0.0
    for layer in range(phy2log.shape[0]):
        first[:] = 0
        for expert in phy2log[layer]:
            if expert >= 0:
                first[expert + 1] += 1
        for expert in range(num_experts):
            first[expert + 1] += first[expert]
        at = first.copy()
        for slot in range(phy2log.shape[1]):
            expert = phy2log[layer, slot]
            if expert >= 0:
                slots[at[expert]], ranks[at[expert]] = slot, rank_of_slot[slot]
                at[expert] += 1
        for expert in range(num_experts):
            begin, end = first[expert], first[expert + 1]
            if begin < end:
                replica_shares(rule, ranks[begin:end], of_expert[begin:end])
                for i in range(begin, end):
                    shares[layer, slots[i]] = of_expert[i]
