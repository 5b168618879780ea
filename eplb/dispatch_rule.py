"""Knows how a runtime splits a logical expert's tokens over its replicas; knows no loads and no metrics."""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from eplb.errors import InputError, UnknownNameError
from eplb.placement import EMPTY_SLOT, Placement


class DispatchRule(StrEnum):
    """How an expert's tokens are split over its replicas."""

    EVEN = "even"
    """The same share for every replica."""
    WEIGHTED = "weighted"
    """The shares that the placement carries in `replica_weights`."""
    ONLINE = "online"
    """Each batch anew by its own counts, as well as the placement allows: LPLB-class engines and our runtime."""

    @classmethod
    def named(cls, name: str) -> "DispatchRule":
        """The rule of that name; UnknownNameError with the list if there is none."""
        try:
            return cls(name)
        except ValueError:
            raise UnknownNameError("dispatch rule", name, cls) from None


def slot_shares(placement: Placement, dispatch: DispatchRule) -> NDArray[np.float64]:
    """[L, P] share of its expert's tokens that each slot gets; 0 in empty slots.

    Raises
    ------
    InputError
        For weighted dispatch of a placement without weights.
    """
    if dispatch is DispatchRule.WEIGHTED:
        if placement.replica_weights is None:
            raise InputError("dispatch = weighted: the placement carries no replica_weights")
        return placement.replica_weights
    phy2log = placement.physical_to_logical_map
    shares = 1.0 / np.take_along_axis(placement.logical_replica_count, np.maximum(phy2log, 0), axis=1)
    return np.where(phy2log == EMPTY_SLOT, 0.0, shares)
