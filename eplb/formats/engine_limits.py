"""Knows what engines do with maps that they cannot hold, and refuses these; knows no file.

What a missing expert, a duplicate, an id too large, -1 and a number of slots that does not divide do to SGLang 0.5.23,
vLLM 0.32.0, vllm-ascend 0.23.0 and the configuration class of TensorRT-LLM 1.2.1 was tried on their own loaders, except
that vLLM's answer to slots that do not divide was read from its source. Everything on omni-infer was read from its
ExpertMapping and not run; uneven ranks follow from how each file is cut into ranks.
"""

from enum import StrEnum
from pathlib import Path

import numpy as np

from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.errors import FormatError
from eplb_traces import ModelShape


class Fault(StrEnum):
    """What can be wrong with a map that has the right form."""

    MISSING_EXPERT = "missing expert"
    DUPLICATE = "duplicate"
    ID_TOO_LARGE = "id too large"
    EMPTY_SLOT = "empty slot"
    INDIVISIBLE = "indivisible"
    UNEVEN_RANKS = "uneven ranks"


EFFECTS: dict[str, dict[Fault, str]] = {
    "sglang": {
        Fault.MISSING_EXPERT: "SGLang dies of a ZeroDivisionError",
        Fault.ID_TOO_LARGE: "SGLang dies of an IndexError",
        Fault.EMPTY_SLOT: "SGLang takes -1 for the last expert",
        Fault.INDIVISIBLE: "SGLang dies of a bare AssertionError",
        Fault.UNEVEN_RANKS: "SGLang cuts the list into equal parts, so slots land on other ranks",
    },
    "vllm": {
        Fault.MISSING_EXPERT: "vLLM accepts it, with no place for the expert's tokens",
        Fault.ID_TOO_LARGE: "vLLM refuses it",
        Fault.EMPTY_SLOT: "vLLM skips the slot, which the file has no word for",
        Fault.INDIVISIBLE: "vLLM accepts it until weights move",
        Fault.UNEVEN_RANKS: "vLLM cuts the list into equal parts, so slots land on other ranks",
    },
    "ascend": {
        Fault.MISSING_EXPERT: "vllm-ascend dies of a RuntimeError, or gives the last experts no place",
        Fault.DUPLICATE: "vllm-ascend keeps one of the two and hides the other",
        Fault.ID_TOO_LARGE: "vllm-ascend dies of an IndexError",
        Fault.EMPTY_SLOT: "vllm-ascend takes -1 for the last expert",
        Fault.INDIVISIBLE: "vllm-ascend dies of a RuntimeError",
        Fault.UNEVEN_RANKS: "vllm-ascend dies of a ValueError",
    },
    "trtllm": {
        Fault.MISSING_EXPERT: "TensorRT-LLM's configuration accepts it",
        Fault.ID_TOO_LARGE: "TensorRT-LLM's configuration accepts it",
        Fault.EMPTY_SLOT: "TensorRT-LLM's configuration accepts -1 as an id",
        Fault.INDIVISIBLE: "TensorRT-LLM refuses it with a ValueError",
        Fault.UNEVEN_RANKS: "TensorRT-LLM cuts the list into equal parts, so slots land on other ranks",
    },
    "omni": {
        Fault.MISSING_EXPERT: "omni-infer accepts it, with no place for the expert's tokens",
        Fault.DUPLICATE: "omni-infer has one bit for an expert on a rank and loses the second copy",
        Fault.ID_TOO_LARGE: "omni-infer refuses a pattern of another shape",
        Fault.UNEVEN_RANKS: "omni-infer sizes every rank by the layer's mean and the fuller rank overflows",
    },
    "deepseek": {
        Fault.EMPTY_SLOT: "DeepSeek's maps have no empty slots",
        Fault.UNEVEN_RANKS: "DeepSeek's slot j is on GPU j // (slots / GPUs), so slots land on other ranks",
    },
}


def check_no_empty_slots(engine: str, placement: Placement) -> None:
    """Refuse -1, the hole that only our native format and omni's pattern can say.

    This is also the check for equal redundancy in all layers: a rectangular map without holes has no other.
    """
    empty = placement.physical_to_logical_map == EMPTY_SLOT
    if empty.any():
        layer, slot = (int(i) for i in np.argwhere(empty)[0])
        rank = int(placement.topology.rank_of_slot[slot])
        raise FormatError(
            f"layer {layer}, rank {rank}, slot {slot} is empty (-1): {EFFECTS[engine][Fault.EMPTY_SLOT]}; "
            f"expected an expert in every slot, as many redundant ones in every layer"
        )


def check_equal_ranks(engine: str, placement: Placement) -> None:
    """Refuse ranks with different numbers of slots: no engine's flat list can say where a rank begins."""
    slots = placement.topology.rank_num_slots
    if not placement.topology.has_equal_slots:
        rank = int(np.argmax(slots != slots[0]))
        raise FormatError(
            f"rank {rank} has {slots[rank]} slots and rank 0 has {slots[0]}: {EFFECTS[engine][Fault.UNEVEN_RANKS]}; "
            "expected the same number on every rank"
        )


def check_no_duplicates(engine: str, placement: Placement) -> None:
    """Refuse two copies of an expert on a rank, for engines that lose one."""
    if placement.duplicate_slots.any():
        layer, slot = (int(i) for i in np.argwhere(placement.duplicate_slots)[0])
        rank = int(placement.topology.rank_of_slot[slot])
        expert = int(placement.physical_to_logical_map[layer, slot])
        raise FormatError(
            f"layer {layer}, rank {rank} holds expert {expert} twice, the second time in slot {slot}: "
            f"{EFFECTS[engine][Fault.DUPLICATE]}; expected at most one copy of an expert on a rank"
        )


def required_layer_ids(engine: str, shape: ModelShape) -> tuple[int, ...]:
    """Absolute ids of the MoE layers, for files that key layers by them.

    Raises
    ------
    FormatError
        If the shape does not say them.
    """
    if shape.moe_layer_ids is None:
        raise FormatError(
            f"{engine} files name layers by their index in the whole model, dense layers counted, and the plan does "
            "not say it: give the ids of the MoE layers (--moe-layers)"
        )
    return shape.moe_layer_ids


def check_suffix(engine: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse to write a file that its engine, or we ourselves, would not recognise by its name."""
    if path.suffix not in suffixes:
        raise FormatError(f"{path}: expected a name that ends in {' or '.join(suffixes)} for a file in format {engine}")
