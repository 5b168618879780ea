"""Computes the share of pairs of a token's experts that a placement keeps on one rank or node."""

import numpy as np
from numpy.typing import NDArray

from eplb.core.dispatch_rule import DispatchRule, slot_shares
from eplb.core.placement import Placement
from eplb.errors import InputError
from eplb_traces.coactivation.layer_coactivation import CoActivation, PairShare


def share_inside_ranks(
    placement: Placement, coactivation: CoActivation, dispatch: DispatchRule | str = DispatchRule.EVEN
) -> PairShare:
    """The share of pairs that need only one rank, in the layer of `coactivation`.

    A pair is two of the K choices of one token. Each choice goes to one replica of its expert; under even dispatch all
    replicas are equally likely, under weighted dispatch as likely as the placement says, and the two choices are drawn
    independently of each other. So a pair (i, j) shares a rank with the probability sum over ranks of p(i, r) p(j, r),
    where p(i, r) is the share of expert i's tokens that goes to rank r; without redundant experts that is 0 or 1. A
    runtime that considers all choices of a token, or prefers near replicas, keeps more pairs together than this.

    Parameters
    ----------
    placement
        Where the experts live.
    coactivation
        The pairs of one layer; the placement's layer of the same index is evaluated.
    dispatch
        A rule with fixed shares: see `dispatch_rule.slot_shares`.

    Returns
    -------
    PairShare
        `observed`, and `expected` by chance: if the same experts were chosen as often but independently of each other
        (`CoActivation.expected_pairs`). observed > expected: the placement co-locates experts that are chosen together
        more often than chance. Both are nan where no token made two choices.

    Raises
    ------
    InputError
        If the placement is for another model, or the rule has no fixed shares.
    """
    num_ranks = placement.topology.num_ranks
    share = _share_of_place(placement, coactivation, dispatch, np.arange(num_ranks))
    return coactivation.share_together(share @ share.T)


def share_inside_nodes(
    placement: Placement, coactivation: CoActivation, dispatch: DispatchRule | str = DispatchRule.EVEN
) -> PairShare:
    """The share of pairs that need only one node: as `share_inside_ranks`, with nodes for ranks."""
    share = _share_of_place(placement, coactivation, dispatch, placement.topology.node_of_rank)
    return coactivation.share_together(share @ share.T)


def _share_of_place(
    placement: Placement, coactivation: CoActivation, dispatch: DispatchRule | str, place_of_rank: NDArray[np.integer]
) -> NDArray[np.float64]:
    """[E, places] share of each expert's tokens that goes to each rank or node."""
    if coactivation.num_experts != placement.num_experts:
        raise InputError(f"pairs of {coactivation.num_experts} experts: the placement has {placement.num_experts}")
    if coactivation.layer >= placement.num_layers:
        raise InputError(f"pairs of layer {coactivation.layer}: the placement has {placement.num_layers} layers")
    share = np.zeros((placement.num_experts, int(place_of_rank.max()) + 1))
    phy2log = placement.physical_to_logical_map[coactivation.layer]
    occupied = phy2log >= 0
    place = place_of_rank[placement.topology.rank_of_slot]
    shares = slot_shares(placement, DispatchRule.named(dispatch))[coactivation.layer]
    np.add.at(share, (phy2log[occupied], place[occupied]), shares[occupied])
    return share
