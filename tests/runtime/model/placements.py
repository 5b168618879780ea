"""Random placements with replicas, the same on all processes."""

import numpy as np

from eplb.core.placement import Placement
from eplb.core.topology import Topology


def placements(num_layers, num_experts, num_ranks=4):
    """Two placements of the same experts on the same slots."""
    slots = -(-(num_experts + 3) // num_ranks)
    rng = np.random.default_rng(num_experts)
    found = []
    for _ in range(2):
        extra = [rng.choice(num_experts, num_ranks * slots - num_experts) for _ in range(num_layers)]
        rows = [rng.permutation(np.concatenate([np.arange(num_experts), more])) for more in extra]
        found.append(Placement(np.stack(rows), num_experts, Topology(1, num_ranks, slots)))
    return found
