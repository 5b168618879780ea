"""Converts recorded counts of any rank layout to tokens per logical expert."""

from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.core.placement import Placement
from eplb.errors import InputError, UnknownNameError
from eplb_traces import expert_load


class CountsOf(StrEnum):
    """What the last axis of recorded counts means."""

    EXPERTS = "experts"
    """Logical experts: [.., L, E]; axes before, such as source ranks, are summed."""
    SLOTS = "slots"
    """Slots of all ranks: [.., L, P]; axes before are summed."""
    LOCAL_SLOTS = "local_slots"
    """Each rank's own slots, rank by rank: [R, L, S], all ranks with S slots."""

    @classmethod
    def named(cls, name: "str | CountsOf") -> "CountsOf":
        """The member of that name; UnknownNameError with the list if there is none."""
        try:
            return cls(name)
        except ValueError:
            raise UnknownNameError("counts", name, [kind.value for kind in cls]) from None


def logical_counts(counts: ArrayLike, of: CountsOf, placement: Placement) -> NDArray[np.float64]:
    """[L, E] tokens routed to each logical expert in one step.

    Parameters
    ----------
    counts
        numpy, or anything that becomes it, such as a torch tensor on the CPU.
    of
        What they count.
    placement
        The map in force while they were counted.

    Raises
    ------
    InputError
        For a shape that does not fit `of`, NaN, infinite or negative counts, or tokens on an empty slot.
    """
    array = np.asarray(counts, dtype=np.float64)
    layers, experts = placement.num_layers, placement.num_experts
    topology = placement.topology
    if of is CountsOf.LOCAL_SLOTS:
        array = _rank_major(array, placement)
    width = experts if of is CountsOf.EXPERTS else topology.num_slots
    if array.ndim < 2 or array.shape[-2:] != (layers, width):
        raise InputError(f"counts of {of} have shape {array.shape}: expected [.., {layers}, {width}]")
    summed: NDArray[np.float64] = array.reshape(-1, layers, width).sum(axis=0)
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise InputError(f"counts of {of}: expected all finite and >= 0")
    if of is CountsOf.EXPERTS:
        return summed
    return expert_load.logical_counts(summed, placement.physical_to_logical_map, experts)


def _rank_major(array: NDArray[np.float64], placement: Placement) -> NDArray[np.float64]:
    """[L, P] of [R, L, S]."""
    topology = placement.topology
    expected = (topology.num_ranks, placement.num_layers, topology.num_slots // topology.num_ranks)
    if len(set(topology.rank_num_slots.tolist())) > 1:
        raise InputError(f"counts of local_slots: ranks have {topology.rank_num_slots} slots, expected equally many")
    if array.shape != expected:
        raise InputError(f"counts of local_slots have shape {array.shape}: expected {expected}")
    return array.transpose(1, 0, 2).reshape(placement.num_layers, topology.num_slots)
