"""Check whether any rank of a placement holds an expert twice."""

import numpy as np

from eplb.core.arrays import Ints, Map
from eplb.core.kernel_helpers import READ_INTS, READ_MAPS
from eplb_traces.jit import njit


@njit(f"boolean({READ_MAPS}, {READ_INTS}, int64)")
def has_duplicates(phy2log: Map, first_slot: Ints, num_experts: int) -> bool:
    """Whether two slots of a rank hold the same expert in some layer; empty slots hold none. O(L P).

    Parameters
    ----------
    phy2log
        [L, P] experts, -1 in empty slots.
    first_slot
        [R + 1] first slot of each rank, then P.
    num_experts
        E.
    """
    num_ranks = first_slot.size - 1
    last_holder = np.full(num_experts, -1, dtype=np.int64)  # layer * R + rank that held the expert last
    for layer in range(phy2log.shape[0]):
        for rank in range(num_ranks):
            for slot in range(first_slot[rank], first_slot[rank + 1]):
                expert = phy2log[layer, slot]
                if expert < 0:
                    continue
                if last_holder[expert] == layer * num_ranks + rank:
                    return True
                last_holder[expert] = layer * num_ranks + rank
    return False
