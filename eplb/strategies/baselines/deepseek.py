"""DeepSeek's EPLB as published, under our contract: the policy of vLLM, SGLang and others, to compare with and to keep.

Source: deepseek-ai/EPLB@d52c72d. Pinned groups give its hierarchical policy, free groups the global one. It may put two
replicas of an expert on one rank; `duplicate_slots` of the placement shows them.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.problem import GroupMode, Plan, Problem
from eplb.errors import InputError
from eplb.strategies.certify import certified_plan

Singles = NDArray[np.float32]
ORDINARY_EXPONENT = 64
"""Layers whose largest load is between 2 ** -64 and 2 ** 64 are cast as they are."""


@final
@dataclass(frozen=True, kw_only=True)
class DeepSeek:
    """The published algorithm; it has no parameters."""

    name: ClassVar[str] = "deepseek"
    summary: ClassVar[str] = "DeepSeek's EPLB slot by slot: global, or hierarchical with pinned groups"

    def __call__(self, problem: Problem, *, seed: int = 0) -> Plan:
        """Plan for the summed load, in single precision as published."""
        topology = problem.topology
        if not topology.has_equal_slots:
            raise InputError("slots_per_rank: deepseek plans only for ranks with equally many slots")
        pinned = problem.group_mode is GroupMode.PINNED
        if pinned and not topology.has_equal_nodes:
            raise InputError(f"nodes of {topology.ranks_per_node} ranks: deepseek pins groups only to equal nodes")
        phy2log, _, _ = deepseek_maps(
            problem.load.total,
            topology.num_slots,
            num_groups=problem.num_groups if pinned else 1,
            num_nodes=topology.num_nodes if pinned else 1,
            num_ranks=topology.num_ranks,
        )
        return certified_plan(problem, phy2log.astype(np.int32), strategy=self.name, seed=seed)


def deepseek_maps(
    weight: NDArray[np.float64], num_slots: int, *, num_groups: int, num_nodes: int, num_ranks: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Run the published algorithm.

    Returns
    -------
    tuple
        phy2log [L, P], which replica of its expert each slot is [L, P], and logcnt [L, E].
    """
    from eplb.strategies.baselines.deepseek_kernel import rebalance_layers

    single = _single_precision(weight)
    num_layers, num_experts = single.shape
    phy2log = np.empty((num_layers, num_slots), dtype=np.int64)
    replica = np.empty((num_layers, num_slots), dtype=np.int64)
    logcnt = np.empty((num_layers, num_experts), dtype=np.int64)

    def work(layers: slice) -> None:
        rebalance_layers(
            single[layers], num_groups, num_nodes, num_ranks, phy2log[layers], replica[layers], logcnt[layers]
        )

    for_layer_chunks(work, num_layers)
    return phy2log, replica, logcnt


def _single_precision(weight: Floats) -> Singles:
    """[L, E] loads as single precision; layers whose largest is far from 1 are scaled by a power of two.

    The scale changes no result that single precision can compute unscaled, and keeps the others from overflow to
    infinity and from vanishing.
    """
    largest = weight.max(axis=1, keepdims=True)
    _, exponent = np.frexp(largest)
    scaled = np.where(np.abs(exponent) > ORDINARY_EXPONENT, np.ldexp(weight, -exponent), weight)
    return np.ascontiguousarray(scaled, dtype=np.float32)
