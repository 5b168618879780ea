"""Converts a placement to the tensors of each engine: names, types, shapes, padding.

Shapes: L MoE layers, H all layers of the model, E logical experts, P slots, R ranks, X maximum replica count.

| engine   | phy2log      | log2phy            | logcnt | layers | from                                  |
|----------|--------------|--------------------|--------|--------|---------------------------------------|
| deepseek | int64 [L, P] | int64 [L, E, X]    | int64  | MoE    | `rebalance_experts`, DeepSeek@d52c72d |
| vllm     | int64 [L, P] | int64 [L, E, 1024] | int64  | MoE    | `EplbState`, vLLM 0.33                |
| sglang   | int64 [H, P] | int64 [H, E, P]    | int64  | all    | `ExpertLocationMetadata`, 0.5.23      |
| ascend   | int32 [L, P] | int32 [L, E]       | int32  | MoE    | `init_eplb_config`, 0.23.0            |

All are padded with -1. In every engine `expert_map` is int32 [layers, E]: the rank's local slot or -1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement, PlacementMaps
from eplb.dispatch.engine_rules import rank_slot_map
from eplb.errors import InputError, MissingExtraError, UnknownNameError
from eplb_traces import ModelShape

if TYPE_CHECKING:
    import torch

VLLM_COLUMNS: Final = 1024
"""vLLM's 1 + MAX_EXPERT_REDUNDANCY."""

Rows = NDArray[np.int32] | NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class EngineTensors:
    """The maps of all layers in the form of an engine; see the table of the module."""

    physical_to_logical_map: "torch.Tensor"
    logical_to_physical_map: "torch.Tensor"
    logical_replica_count: "torch.Tensor"
    expert_map: "torch.Tensor"


@dataclass(frozen=True, eq=False)
class PlacementOfRank:
    """A placement for one rank; shapes as in the table."""

    placement: Placement
    shape: ModelShape
    layer_ids: tuple[int, ...]
    """[L] absolute index of each MoE layer."""
    ep_rank: int
    maps: PlacementMaps
    expert_map: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class _Arrays:
    """The tensors as arrays, log2phy not yet padded to `num_columns`."""

    phy2log: Rows
    log2phy: Rows
    logcnt: Rows
    expert_map: NDArray[np.int32]
    num_columns: int


def engine_tensors(of_rank: PlacementOfRank, engine: str) -> EngineTensors:
    """The tensors of an engine, on the CPU.

    Raises
    ------
    UnknownNameError
        For a name that is not in the table.
    InputError
        For a placement that the engine cannot represent: too many replicas, or dense layers at unknown positions.
    MissingExtraError
        If torch is not installed.
    """
    if engine not in _ARRAYS_OF:
        raise UnknownNameError("engine", engine, _ARRAYS_OF)
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("making an engine's tensors", "runtime") from error
    arrays = _ARRAYS_OF[engine](of_rank)
    log2phy = torch.from_numpy(arrays.log2phy.copy())
    if log2phy.dim() == 3 and arrays.num_columns > log2phy.shape[2]:
        padded = torch.full((*log2phy.shape[:2], arrays.num_columns), -1, dtype=log2phy.dtype)
        padded[:, :, : log2phy.shape[2]] = log2phy
        log2phy = padded
    return EngineTensors(
        torch.from_numpy(arrays.phy2log.copy()),
        log2phy,
        torch.from_numpy(arrays.logcnt.copy()),
        torch.from_numpy(arrays.expert_map.copy()),
    )


def _deepseek(of_rank: PlacementOfRank) -> _Arrays:
    phy2log, log2phy, logcnt = of_rank.maps
    return _Arrays(phy2log, log2phy, logcnt, of_rank.expert_map, log2phy.shape[2])


def _vllm(of_rank: PlacementOfRank) -> _Arrays:
    phy2log, log2phy, logcnt = of_rank.maps
    if log2phy.shape[2] > VLLM_COLUMNS:
        raise InputError(f"an expert has {log2phy.shape[2]} replicas: expected at most {VLLM_COLUMNS} for vLLM")
    return _Arrays(phy2log, log2phy, logcnt, of_rank.expert_map, VLLM_COLUMNS)


def _sglang(of_rank: PlacementOfRank) -> _Arrays:
    """One row for every layer of the model; rows of dense layers are never read and repeat the first MoE layer."""
    shape = of_rank.shape
    num_hidden = shape.num_layers if shape.num_hidden_layers is None else shape.num_hidden_layers
    if num_hidden != shape.num_layers and shape.moe_layer_ids is None:
        raise InputError(
            f"sglang has a row for each of {num_hidden} layers, and which {shape.num_layers} of them have experts is "
            "unknown: give model_shape with moe_layer_ids"
        )
    if max(of_rank.layer_ids) >= num_hidden:
        raise InputError(
            f"sglang has a row for every layer, dense ones too, and the last MoE layer is {max(of_rank.layer_ids)}: "
            "give model_shape with num_hidden_layers"
        )
    row_of_layer = np.zeros(num_hidden, dtype=np.int64)
    row_of_layer[list(of_rank.layer_ids)] = np.arange(shape.num_layers)
    phy2log, log2phy, logcnt = (part[row_of_layer] for part in of_rank.maps)
    return _Arrays(phy2log, log2phy, logcnt, of_rank.expert_map[row_of_layer], phy2log.shape[1])


def _ascend(of_rank: PlacementOfRank) -> _Arrays:
    """A rank sends all its tokens of an expert to one replica, so log2phy has one column."""
    placement = of_rank.placement
    if placement.duplicate_slots.any():
        layer, slot = (int(i) for i in np.argwhere(placement.duplicate_slots)[0])
        raise InputError(f"layer {layer}, slot {slot} duplicates an expert of its rank: vllm-ascend would not use it")
    one_replica = rank_slot_map(placement, DispatchRule.ASCEND)[:, of_rank.ep_rank]
    return _Arrays(
        placement.physical_to_logical_map, one_replica, placement.logical_replica_count, of_rank.expert_map, 0
    )


_ARRAYS_OF: Final[dict[str, Callable[[PlacementOfRank], _Arrays]]] = {
    "deepseek": _deepseek,
    "vllm": _vllm,
    "sglang": _sglang,
    "ascend": _ascend,
}
