"""Fills the `ExpertWeights` of a rank from a checkpoint.

The rank's part of the placement decides which expert's tensors go to which slot::

    physical_to_logical_map[layer]   | 0 5 2 | 3 5 1 | 4 0 3 |     rank 1 of 3, 3 slots a rank
    slot_experts(..)[layer]                  | 3 5 1 |             local slot 1 gets expert 5's tensors

Only tensors of the rank's experts are read, each once even if two slots hold the expert. The layout of the checkpoint
is detected from its tensor names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.runtime.weights.checkpoint import (
    SCALE_SUFFIX,
    CheckpointError,
    CheckpointLayout,
    TensorSource,
    detect_layout,
)
from eplb.runtime.weights.expert_weights import DOWN, GATE_UP, ExpertWeights
from eplb.runtime.weights.quantization import Fp8Blocks
from eplb.runtime.weights.shards import Shard, shard_parts

_WHOLE = Shard()


def slot_experts(placement: Placement, rank: int) -> NDArray[np.int32]:
    """[L, S] logical expert of each local slot of a rank, -1 for an empty slot."""
    first, last = placement.topology.rank_first_slot[rank : rank + 2]
    return placement.physical_to_logical_map[:, first:last]


def load_experts(  # noqa: PLR0913  # one argument for each fact of the rank
    weights: ExpertWeights,
    source: TensorSource,
    experts: NDArray[np.int32],
    num_experts: int,
    *,
    layer_ids: Sequence[int],
    shard: Shard = _WHOLE,
) -> None:
    """Fill every slot of a rank.

    FP8 matrices are stored bit for bit, scales included, if the codec is FP8; otherwise they are decoded and encoded.

    Parameters
    ----------
    weights
        The weights of the rank, written in place.
    source
        The checkpoint.
    experts
        [L, S] expert of each slot, from `slot_experts`.
    num_experts
        E, logical experts of a layer.
    layer_ids
        [L] number of each layer in the checkpoint: `ModelShape.moe_layer_ids`.
    shard
        The part of each expert that is kept; `weights` have its intermediate size.

    Raises
    ------
    InputError
        If the experts cannot be cut into such shards.
    CheckpointError
        Naming the tensor that is missing, left over (of an expert that the model does not have) or of a wrong shape.
    """
    if (
        experts.shape != (weights.shape.num_layers, weights.shape.num_slots)
        or len(layer_ids) != weights.shape.num_layers
    ):
        raise CheckpointError(
            f"experts {experts.shape} and {len(layer_ids)} layer ids: "
            f"expected {(weights.shape.num_layers, weights.shape.num_slots)} as in the expert weights"
        )
    reader = _ExpertReader(source, detect_layout(source), weights, shard)
    reader.check_names(num_experts, layer_ids)
    for layer, layer_id in enumerate(layer_ids):
        for expert in np.unique(experts[layer][experts[layer] != EMPTY_SLOT]).tolist():
            parts = weights.in_layout(reader.parts(layer_id, expert))
            for slot in np.nonzero(experts[layer] == expert)[0].tolist():
                weights.write_parts(layer, slot, parts)


@final
@dataclass(frozen=True)
class _ExpertReader:
    """Reads one expert of a checkpoint as the parts that `ExpertWeights` stores."""

    source: TensorSource
    layout: CheckpointLayout
    weights: ExpertWeights
    shard: Shard

    def check_names(self, num_experts: int, layer_ids: Sequence[int]) -> None:
        """Refuse a checkpoint that lacks experts of these layers or has more than the model."""
        names = set(self.source.names())
        for layer in layer_ids:
            expected = {name for expert in range(num_experts) for name in self._names(layer, expert)}
            missing = sorted(expected - names, key=_by_number)
            if missing:
                raise CheckpointError(f"{self.source.place}: tensor {missing[0]} is missing ({len(missing)} in all)")
            scales = {f"{name}{SCALE_SUFFIX}" for name in expected if not self.layout.is_fused}
            prefix = self.layout.prefix.format(layer=layer)
            extra = sorted({n for n in names if n.startswith(prefix)} - expected - scales, key=_by_number)
            if extra:
                raise CheckpointError(
                    f"{self.source.place}: tensor {extra[0]} is left over, the model has {num_experts} experts a layer"
                )
            for name in expected if self.layout.is_fused else ():
                if self.source.length(name) != num_experts:
                    raise CheckpointError(
                        f"{self.source.place}: {name} holds {self.source.length(name)} experts: expected {num_experts}"
                    )

    def parts(self, layer: int, expert: int) -> dict[str, Tensor]:
        """The expert's parts, by their names in `ExpertWeights`."""
        inner = self.weights.shape.intermediate_size * self.shard.count
        parts = self._whole_parts(layer, expert, inner)
        return shard_parts(parts, self.shard, intermediate_size=inner, block=self.weights.codec.block)

    def _whole_parts(self, layer: int, expert: int, inner: int) -> dict[str, Tensor]:
        hidden = self.weights.shape.hidden_size
        if self.layout.is_fused:
            gate_up, down = self._names(layer, expert)
            both = self._shaped(gate_up, self.source.read_entry(gate_up, expert), (2 * inner, hidden))
            down_HI = self._shaped(down, self.source.read_entry(down, expert), (hidden, inner))
            return self._stored(GATE_UP, {"weight": both.reshape(2, inner, hidden)}) | self._stored(
                DOWN, {"weight": down_HI}
            )
        gate, up, down = self._names(layer, expert)
        gates, ups = self._matrix(gate, (inner, hidden)), self._matrix(up, (inner, hidden))
        if gates.keys() != ups.keys():
            raise CheckpointError(f"{self.source.place}: of {gate} and {up} only one has a scale")
        gate_up_parts = {part: torch.stack([gates[part], ups[part]]) for part in gates}
        return self._stored(GATE_UP, gate_up_parts) | self._stored(DOWN, self._matrix(down, (hidden, inner)))

    def _names(self, layer: int, expert: int) -> tuple[str, ...]:
        patterns = (self.layout.gate, self.layout.down) if self.layout.is_fused else (
            self.layout.gate, self.layout.up, self.layout.down,
        )  # fmt: skip
        return tuple(pattern.format(layer=layer, expert=expert) for pattern in patterns)

    def _matrix(self, name: str, shape: tuple[int, int]) -> dict[str, Tensor]:
        """A matrix as the checkpoint stores it: "weight", and "scale" if it is FP8."""
        weight = self._shaped(name, self.source.read(name), shape)
        scale_name = f"{name}{SCALE_SUFFIX}"
        is_fp8 = weight.dtype == torch.float8_e4m3fn
        if is_fp8 != (scale_name in self.source.names()):
            fault = "missing" if is_fp8 else "left over"
            raise CheckpointError(f"{self.source.place}: tensor {scale_name} is {fault}, {name} is {weight.dtype}")
        if not is_fp8:
            return {"weight": weight}
        blocks = Fp8Blocks().parts(*shape)["scale"].shape
        return {"weight": weight, "scale": self._shaped(scale_name, self.source.read(scale_name), blocks).float()}

    def _stored(self, name: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parts of a matrix in the format of `ExpertWeights`; unchanged if the formats are equal."""
        if "scale" in parts and not isinstance(self.weights.codec, Fp8Blocks):
            parts = {"weight": Fp8Blocks().decode(parts, torch.float32)}
        if "scale" not in parts:
            parts = self.weights.codec.encode(parts["weight"])
        return {f"{name}.{part}": tensor for part, tensor in parts.items()}

    def _shaped(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{self.source.place}: {name} has shape {tuple(tensor.shape)}: expected {shape}")
        return tensor


def _by_number(name: str) -> list[int | str]:
    """Sort key under which expert 10 comes after expert 9."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", name)]
