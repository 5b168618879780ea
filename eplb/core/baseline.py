"""Places experts in order of their ids, without redundancy: the baseline that plans are compared with."""

from typing import Final

import numpy as np

from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.topology import Topology

EXPERTS_IN_ORDER: Final = "experts in order"
"""Name of the baseline."""


def experts_in_order(num_layers: int, num_experts: int, topology: Topology) -> Placement:
    """Experts in order of their ids, as engines start without a plan and without redundant experts.

    Each rank gets E / R experts; its other slots are empty, so no expert has two replicas. If E / R is not an integer
    or exceeds the slots of a rank, ids fill all slots in order and start again at 0. The strategy `linear` differs: it
    fills redundant slots with replicas, which moves most experts to other ranks.
    """
    num_ranks = topology.num_ranks
    per_rank = num_experts // num_ranks
    if num_experts % num_ranks or topology.rank_num_slots.min() < per_rank:
        row = np.arange(topology.num_slots) % num_experts
    else:
        row = np.full(topology.num_slots, EMPTY_SLOT)
        slot = topology.rank_first_slot[:-1, None] + np.arange(per_rank)
        row[slot] = np.arange(num_experts).reshape(num_ranks, per_rank)
    return Placement(np.tile(row, (num_layers, 1)), num_experts, topology)
