"""Lowers the busiest moments of many windows under a dispatch rule with fixed shares, from a given map.

Limits are those of `search`; the kernel is `windows_kernel`.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats, Map
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.placement import EMPTY_SLOT
from eplb.dispatch.replica_shares import ReplicaShares
from eplb.strategies.under_rule.search import Limits, freedom_fields, most_replicas_of, rank_fields


@final
@dataclass(frozen=True, kw_only=True)
class WindowSearch:
    """Parameters of the search.

    Parameters
    ----------
    tries_per_slot
        Steps tried a slot in each of the two descents.
    doublings
        The costs of the two descents are sums of powers 2 ** doublings of rank loads.
    """

    tries_per_slot: int = 200
    doublings: tuple[int, int] = (3, 4)

    def __call__(  # noqa: PLR0913  # a map, its rule and limits
        self,
        windows: Floats,
        phy2log: Map,
        shares: ReplicaShares,
        *,
        limits: Limits,
        seed: int,
        price: Floats | None = None,
    ) -> Map:
        """Search from a map.

        Parameters
        ----------
        windows
            [L, E, W] tokens scaled so that the mean rank has 1 in each window; W padded to a multiple of the lanes.
        phy2log
            [L, P] the map to start from; -1 is an empty slot.
        shares
            Rule, topology and sources.
        limits
            What the search may do.
        seed
            Of the random steps.
        price
            [L] what a replica that a rank fetches must take off its layer's cost, as a share; None: fetches are free.

        Returns
        -------
        NDArray
            [L, P]
        """
        from eplb.strategies.under_rule.windows_kernel import descend_windows

        topology, (num_layers, num_experts, num_windows) = shares.topology, windows.shape
        ids = np.where(phy2log == EMPTY_SLOT, np.int32(num_experts), phy2log)
        sizes = most_replicas_of(ids, num_experts, topology), self.tries_per_slot * topology.num_slots
        padded = np.concatenate([windows, np.zeros((num_layers, 1, num_windows))], axis=1)
        rule, ranks = shares.fields(sizes[0]), rank_fields(topology, limits)
        allowed, least, most, units = freedom_fields(limits, num_experts, topology)
        fixed = np.zeros(ids.shape, dtype=np.bool_) if limits.fixed is None else np.ascontiguousarray(limits.fixed)
        price = np.zeros(num_layers) if price is None else price

        def work(rows: slice) -> None:
            own = allowed if allowed.shape[0] == 1 else allowed[rows]
            descend_windows(
                padded[rows], rule, ranks, (own, least, most, units), fixed[rows], self.doublings, sizes, price[rows],
                seed, rows.start, ids[rows],
            )  # fmt: skip

        for_layer_chunks(work, num_layers)
        ids[ids == num_experts] = EMPTY_SLOT
        return ids
