"""Places experts on ranks in a fixed order, for the strategies that ignore the load."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from eplb.core.topology import Topology
from eplb.errors import InfeasibleError

RankExperts = list[int]
"""The experts of a rank."""


def place_in_turn(
    ranks: Sequence[RankExperts], choices: Iterable[tuple[int, Sequence[int]]], topology: Topology
) -> None:
    """Place each expert on the first rank of its own list that has a free slot and does not hold it, in place.

    Parameters
    ----------
    ranks
        [R] experts of each rank so far.
    choices
        Pairs of an expert and the ranks to try, most wanted first.
    topology
        Gives the slots of each rank.

    Raises
    ------
    InfeasibleError
        If an expert can be placed neither so nor by an exchange with another rank.
    """
    num_slots = topology.rank_num_slots.tolist()
    for expert, wanted in choices:
        for rank in wanted:
            if len(ranks[rank]) < num_slots[rank] and expert not in ranks[rank]:
                ranks[rank].append(expert)
                break
        else:
            _place_by_exchange(ranks, expert, num_slots)


def _place_by_exchange(ranks: Sequence[RankExperts], expert: int, num_slots: Sequence[int]) -> None:
    """Every rank with a free slot holds the expert: a full rank takes it and gives another expert to a free slot."""
    free = next(experts for experts, slots in zip(ranks, num_slots, strict=True) if len(experts) < slots)
    for experts in ranks:
        if expert in experts:
            continue
        for i, other in enumerate(experts):
            if other not in free:
                free.append(other)
                experts[i] = expert
                return
    raise InfeasibleError(f"expert {expert} cannot be kept on different ranks: slots are too unequal")


def map_of_ranks(ranks: Sequence[RankExperts], num_layers: int) -> NDArray[np.int32]:
    """[L, P] the same experts on the ranks in every layer."""
    row = np.array([expert for experts in ranks for expert in experts], dtype=np.int32)
    return np.tile(row, (num_layers, 1))
