"""Names the rules by which runtimes split a logical expert's tokens over its replicas."""

import numpy as np
from numpy.typing import NDArray

from eplb.core.named_enum import NamedEnum
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.errors import InputError


class DispatchRule(NamedEnum):
    """How an expert's tokens are split over its replicas: in general, and by each engine's own rule."""

    EVEN = "even"
    """The same share for every replica."""
    WEIGHTED = "weighted"
    """The shares that the placement carries in `replica_weights`."""
    ONLINE = "online"
    """Each batch anew by its own counts, as well as the placement allows: LPLB-class engines and our runtime."""
    LOCAL_FIRST = "local_first"
    """A replica on the token's own rank, else evenly over those on its node, else over all."""
    VLLM = "vllm"
    """vLLM: Knuth's hash of the token's index modulo the count."""
    SGLANG_STATIC = "sglang_static"
    """SGLang static: one replica per rank and expert: the nearest one, else by a seeded draw."""
    SGLANG_DYNAMIC = "sglang_dynamic"
    """SGLang dynamic with an all-to-all backend: the nearest replica, else uniformly random over all of them."""
    SGLANG_BY_ROW = "sglang_by_row"
    """SGLang dynamic without an all-to-all backend: the token's row in the batch modulo the count."""
    ASCEND = "ascend"
    """vllm-ascend: the rank's number modulo the count."""
    TRTLLM = "trtllm"
    """TensorRT-LLM: round robin by arrival, the start shifted by rank."""


EVEN_RULES = (DispatchRule.EVEN, DispatchRule.VLLM, DispatchRule.SGLANG_BY_ROW, DispatchRule.TRTLLM)
"""Rules under which the replicas of an expert expect the same share."""

FIXED_SLOT_RULES = (DispatchRule.SGLANG_STATIC, DispatchRule.ASCEND)
"""Rules under which a rank sends all its tokens for an expert to one slot."""


def slot_shares(placement: Placement, dispatch: DispatchRule) -> NDArray[np.float64]:
    """[L, P] share of its expert's tokens that each slot gets; 0 in empty slots.

    Only for rules whose shares depend neither on the batch nor on the token's own rank.

    Raises
    ------
    InputError
        For weighted dispatch of a placement without weights, or a rule that has no fixed shares.
    """
    if dispatch is DispatchRule.WEIGHTED:
        if placement.replica_weights is None:
            raise InputError("dispatch = weighted: the placement carries no replica_weights")
        return placement.replica_weights
    if dispatch not in EVEN_RULES:
        raise InputError(f"dispatch = {dispatch}: its shares depend on the batch or on where a token is")
    phy2log = placement.physical_to_logical_map
    shares = 1.0 / np.take_along_axis(placement.logical_replica_count, np.maximum(phy2log, 0), axis=1)
    return np.where(phy2log == EMPTY_SLOT, 0.0, shares)
