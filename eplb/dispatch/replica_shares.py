"""Gives solvers the share of its expert's tokens that each replica gets under a dispatch rule.

It is computed apart from `engine_rules`, which evaluates placements: a test compares the two for every rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.dispatch_rule import EVEN_RULES, DispatchRule
from eplb.core.topology import Topology
from eplb.errors import InputError

NEAREST_RULES = (DispatchRule.LOCAL_FIRST, DispatchRule.SGLANG_STATIC, DispatchRule.SGLANG_DYNAMIC)
"""Rules whose shares depend on the ranks of the replicas."""
FIXED_SHARE_RULES = (*EVEN_RULES, *NEAREST_RULES, DispatchRule.ASCEND)
"""Rules under which a placement alone decides the share of each replica."""


def source_shares(topology: Topology, sources: Sequence[float] | None) -> Floats:
    """[R] share of the tokens that each rank sends; all alike for None."""
    num_ranks = topology.num_ranks
    return np.full(num_ranks, 1 / num_ranks) if sources is None else np.array(sources, dtype=np.float64)


@final
@dataclass(frozen=True, eq=False)
class ReplicaShares:
    """The shares of replicas under one rule on one topology.

    Parameters
    ----------
    rule
        One of `FIXED_SHARE_RULES`. For `sglang_static` the shares are the expectation over its seeded draw.
    topology
        Ranks and nodes.
    sources
        [R] share of the tokens that each rank sends; None: all alike.

    Raises
    ------
    InputError
        For a rule without fixed shares.
    """

    rule: DispatchRule
    topology: Topology
    sources: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.rule not in FIXED_SHARE_RULES:
            raise InputError(f"dispatch = {self.rule}: the placement alone does not decide the shares of its replicas")

    @property
    def is_even(self) -> bool:
        """Whether the replicas of an expert get the same share wherever they are."""
        return self.rule in EVEN_RULES

    def fields(self, most_replicas: int) -> tuple[int, Floats, Floats, Floats, Ints]:
        """The fields of the kernel's `ShareRule`, for experts with up to so many replicas."""
        from eplb.dispatch.replica_shares_kernel import BY_COUNT, NODE_EVENLY, NODE_FIRST

        topology = self.topology
        source = source_shares(topology, self.sources)
        node_source = np.zeros(topology.num_nodes)
        np.add.at(node_source, topology.node_of_rank, source)
        by_count: Floats = np.zeros((1, 1))
        kind = NODE_EVENLY if self.rule is DispatchRule.LOCAL_FIRST else NODE_FIRST
        if self.rule not in NEAREST_RULES:
            kind, by_count = BY_COUNT, np.zeros((most_replicas + 1, most_replicas))
            for count in range(1, most_replicas + 1):
                turn = np.arange(topology.num_ranks) % count
                dealt = np.bincount(turn, weights=source, minlength=count)
                by_count[count, :count] = 1 / count if self.is_even else dealt
        for array in (by_count, source, node_source):
            array.setflags(write=False)
        return kind, by_count, source, node_source, topology.node_of_rank

    def of_slots(self, phy2log: Map, num_experts: int) -> Floats:
        """[L, P] share of its expert's tokens that each slot of the maps [L, P] gets; 0 in empty slots (-1)."""
        from eplb.dispatch.replica_shares_kernel import shares_of_maps

        shares = np.empty(phy2log.shape)
        phy2log = np.ascontiguousarray(phy2log)
        shares_of_maps(self.fields(phy2log.shape[1]), phy2log, self.topology.rank_of_slot, num_experts, shares)
        return shares
