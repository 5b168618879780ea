"""Knows how to deal experts to ranks like cards, for the strategies that look at no load."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from eplb.core.topology import Topology
from eplb.errors import InfeasibleError

Hand = list[int]


def deal(hands: Sequence[Hand], cards: Iterable[tuple[int, Sequence[int]]], topology: Topology) -> None:
    """Give each expert to the first rank of its own list that has a free slot and does not hold it, in place.

    Parameters
    ----------
    hands
        [R] experts that each rank holds so far.
    cards
        Pairs of an expert and the ranks to try, most wanted first.
    topology
        Says how many slots each rank has.

    Raises
    ------
    InfeasibleError
        If an expert can be placed neither so nor by an exchange with another rank.
    """
    room = topology.rank_num_slots.tolist()
    for expert, ranks in cards:
        for rank in ranks:
            if len(hands[rank]) < room[rank] and expert not in hands[rank]:
                hands[rank].append(expert)
                break
        else:
            _deal_by_exchange(hands, expert, room)


def _deal_by_exchange(hands: Sequence[Hand], expert: int, room: Sequence[int]) -> None:
    """Every rank with a free slot holds the expert: a full rank takes it and gives another expert away."""
    free = next(rank for rank, hand in enumerate(hands) if len(hand) < room[rank])
    for hand in hands:
        if expert in hand:
            continue
        for i, other in enumerate(hand):
            if other not in hands[free]:
                hands[free].append(other)
                hand[i] = expert
                return
    raise InfeasibleError(f"expert {expert} cannot be kept on different ranks: slots are too unequal")


def map_of_hands(hands: Sequence[Hand], num_layers: int) -> NDArray[np.int32]:
    """[L, P] the same hands in every layer."""
    row = np.array([expert for hand in hands for expert in hand], dtype=np.int32)
    return np.tile(row, (num_layers, 1))
