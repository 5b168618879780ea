"""Checks a plan for the defects that an engine's file or loader cannot hold, before the file is written."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias

import numpy as np

from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.errors import FormatError, InputError
from eplb_traces import ModelShape, model_shape


class MapDefect(StrEnum):
    """What can be wrong with a map that has the right form."""

    MISSING_EXPERT = "missing expert"
    DUPLICATE = "duplicate"
    ID_TOO_LARGE = "id too large"
    EMPTY_SLOT = "empty slot"
    INDIVISIBLE = "indivisible"
    UNEVEN_RANKS = "uneven ranks"


Consequences: TypeAlias = Mapping[MapDefect, str]
"""What an engine does with a map that has a defect; a defect that it loads without loss is not in it."""


def check_no_empty_slots(consequences: Consequences, placement: Placement) -> None:
    """Refuse empty slots (-1), which only the native format and omni-infer's pattern can hold.

    This is also the check for equal redundancy in all layers: a rectangular map without empty slots has no other.
    """
    empty = placement.physical_to_logical_map == EMPTY_SLOT
    if empty.any():
        layer, slot = (int(i) for i in np.argwhere(empty)[0])
        rank = int(placement.topology.rank_of_slot[slot])
        raise FormatError(
            f"layer {layer}, rank {rank}, slot {slot} is empty (-1): {consequences[MapDefect.EMPTY_SLOT]}; "
            f"expected an expert in every slot, as many redundant ones in every layer"
        )


def check_equal_ranks(consequences: Consequences, placement: Placement) -> None:
    """Refuse ranks with different numbers of slots: an engine's flat list does not hold where a rank begins."""
    slots = placement.topology.rank_num_slots
    if not placement.topology.has_equal_slots:
        rank = int(np.argmax(slots != slots[0]))
        raise FormatError(
            f"rank {rank} has {slots[rank]} slots and rank 0 has {slots[0]}: {consequences[MapDefect.UNEVEN_RANKS]}; "
            "expected the same number on every rank"
        )


def check_no_duplicates(consequences: Consequences, placement: Placement) -> None:
    """Refuse two replicas of an expert on a rank, for engines that lose one."""
    if placement.duplicate_slots.any():
        layer, slot = (int(i) for i in np.argwhere(placement.duplicate_slots)[0])
        rank = int(placement.topology.rank_of_slot[slot])
        expert = int(placement.physical_to_logical_map[layer, slot])
        raise FormatError(
            f"layer {layer}, rank {rank} holds expert {expert} twice, the second time in slot {slot}: "
            f"{consequences[MapDefect.DUPLICATE]}; expected at most one replica of an expert on a rank"
        )


def required_layer_ids(format_name: str, shape: ModelShape) -> tuple[int, ...]:
    """Absolute ids of the MoE layers, for files whose keys they are.

    Raises
    ------
    FormatError
        If the shape does not have them.
    """
    try:
        return model_shape.required_layer_ids(format_name, shape)
    except InputError as error:
        raise FormatError(str(error)) from error
