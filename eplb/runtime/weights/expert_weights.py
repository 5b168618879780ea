"""Stores the weights of one rank's experts and applies them to rows.

Shape suffixes: S local slots, H hidden size, I intermediate size of an expert, R rows that arrived at this rank. Rows
are sorted by slot; unused rows may follow::

    x_RH           | rows of slot 0 | rows of slot 1 | (slot 2: none) | rows of slot 3 | unused |
    rows_per_slot  |       5        |       3        |       0        |       7        |

An expert is a SwiGLU FFN: ``down @ (silu(gate @ x) * (up @ x))``. Each stored part of a layer is one tensor with slots
as first dimension, so the address of a slot never changes::

    gate_up.weight   [S, 2, I, H]   gate of slot 0, up of slot 0, gate of slot 1, ..
    down.weight      [S, H, I]      (and .scale parts if the codec has them)

With `GateUpLayout.INTERLEAVED` the rows of gate and up alternate by eights, as a kernel that applies SwiGLU in
registers reads them; whatever copies slots copies them as they are::

    gate_up.weight   [S, I / 8, 2, 8, H]   8 rows of gate, 8 of up, 8 of gate, ..
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from eplb.core.counts import check_count
from eplb.core.named_enum import NamedEnum
from eplb.errors import InputError
from eplb.runtime.weights.fingerprint import combined, fingerprint
from eplb.runtime.weights.quantization import Dense, WeightCodec

GATE_UP = "gate_up"
DOWN = "down"
INTERLEAVE = 8
"""Rows of gate, then of up, that alternate in `GateUpLayout.INTERLEAVED`."""
_ALIGNMENT_BYTES = 16
_HAS_GROUPED_MM = "grouped_mm" in vars(F)  # torch 2.10 and later


@final
@dataclass(frozen=True, kw_only=True)
class ExpertWeightsShape:
    """Number of layers, slots of this rank, hidden size and intermediate size of an expert."""

    num_layers: int
    num_slots: int
    hidden_size: int
    intermediate_size: int

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_slots", "hidden_size", "intermediate_size"):
            check_count(name, getattr(self, name))


class GateUpLayout(NamedEnum):
    """Order of the rows of gate and up in memory."""

    SPLIT = "split"
    INTERLEAVED = "interleaved"


@final
class ExpertWeights:
    """The expert weights of one rank: every slot of every layer.

    Parameters
    ----------
    shape
        Sizes.
    codec
        How weights are stored; the default stores them in `compute_dtype`.
    compute_dtype
        Type of the rows and of the arithmetic.
    device
        Where the weights live.
    layout
        Order of gate and up; interleaved weights are dense, and I is a multiple of 8.

    Raises
    ------
    InputError
        If the codec or the sizes do not allow the layout.
    """

    def __init__(
        self,
        shape: ExpertWeightsShape,
        codec: WeightCodec | None = None,
        *,
        compute_dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        layout: GateUpLayout = GateUpLayout.SPLIT,
    ) -> None:
        self.shape = shape
        self.codec: WeightCodec = Dense(compute_dtype) if codec is None else codec
        self.layout = layout
        if layout is GateUpLayout.INTERLEAVED and (
            not isinstance(self.codec, Dense) or shape.intermediate_size % INTERLEAVE
        ):
            raise InputError(
                f"layout interleaved with {self.codec.name} weights and intermediate_size = {shape.intermediate_size}: "
                f"expected dense weights and a multiple of {INTERLEAVE}"
            )
        self.compute_dtype = compute_dtype
        self.device = torch.device(device)
        self._layers = [self._empty_layer() for _ in range(shape.num_layers)]

    def _empty_layer(self) -> dict[str, Tensor]:
        num_slots, hidden, inner = self.shape.num_slots, self.shape.hidden_size, self.shape.intermediate_size
        layer: dict[str, Tensor] = {}
        for name, lead, rows, columns in (
            (GATE_UP, (num_slots, 2), inner, hidden),
            (DOWN, (num_slots,), hidden, inner),
        ):
            for part, spec in self.codec.parts(rows, columns).items():
                shape = (*lead, *spec.shape)
                if name == GATE_UP and self.layout is GateUpLayout.INTERLEAVED:
                    shape = (num_slots, inner // INTERLEAVE, 2, INTERLEAVE, hidden)
                layer[f"{name}.{part}"] = torch.zeros(shape, dtype=spec.dtype, device=self.device)
        return layer

    def layer_parts(self, layer: int) -> Mapping[str, Tensor]:
        """Live memory of a layer: {part name: [S, ...]}. The addresses never change."""
        return self._layers[layer]

    def slot_parts(self, layer: int, slot: int) -> dict[str, Tensor]:
        """Live memory of one slot: {part name: contiguous view}."""
        self._check_place(layer, slot)
        return {name: part[slot] for name, part in self._layers[layer].items()}

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert as stored, scales included; a migration moves this many per replica."""
        return sum(part[0].numel() * part.element_size() for part in self._layers[0].values())

    def write_dense(self, layer: int, slot: int, gate_up_2IH: Tensor, down_HI: Tensor) -> None:
        """Store an expert's dense matrices in a slot, through the codec.

        Raises
        ------
        InputError
            If a matrix has another shape than `shape` prescribes.
        """
        hidden, inner = self.shape.hidden_size, self.shape.intermediate_size
        for name, matrix, expected in (
            (GATE_UP, gate_up_2IH, (2, inner, hidden)),
            (DOWN, down_HI, (hidden, inner)),
        ):
            if tuple(matrix.shape) != expected:
                raise InputError(f"{name} has shape {tuple(matrix.shape)}: expected {expected}")
            stored = self.codec.encode(matrix.to(self.device))
            parts = {f"{name}.{part}": tensor for part, tensor in stored.items()}
            self.write_parts(layer, slot, self.in_layout(parts))

    def in_layout(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An expert's parts as the codec encodes them, gate and up in the order of the layout."""
        if self.layout is GateUpLayout.SPLIT:
            return dict(parts)
        return {name: interleaved(tensor) if name.startswith(GATE_UP) else tensor for name, tensor in parts.items()}

    def write_parts(self, layer: int, slot: int, parts: Mapping[str, Tensor]) -> None:
        """Store parts bit for bit; parts that are not named keep their values.

        Raises
        ------
        InputError
            If there is no such part, or its shape or type differs.
        """
        live = self.slot_parts(layer, slot)
        for name, tensor in parts.items():
            if name not in live:
                raise InputError(f"part {name!r}: expected one of {', '.join(live)}")
            if tensor.shape != live[name].shape or tensor.dtype != live[name].dtype:
                raise InputError(
                    f"{name} is {tensor.dtype} {tuple(tensor.shape)}: "
                    f"expected {live[name].dtype} {tuple(live[name].shape)}"
                )
            live[name].copy_(tensor)

    def dense(self, layer: int, slot: int) -> tuple[Tensor, Tensor]:
        """The matrices of a slot in the compute type: gate and up [2, I, H], down [H, I]."""
        parts = self.slot_parts(layer, slot)
        return self._decoded(parts, GATE_UP), self._decoded(parts, DOWN)

    def fingerprints(self, layer: int, slot: int) -> dict[str, int]:
        """64 bits of each part of a slot, unsigned."""
        parts = self.slot_parts(layer, slot)
        return {name: combined({name: fingerprint(part)}) for name, part in parts.items()}

    def fingerprint(self, layer: int, slot: int) -> int:
        """64 bits of all parts of a slot, unsigned: equal for replicas, different for different experts."""
        return combined({name: fingerprint(part) for name, part in self.slot_parts(layer, slot).items()})

    def forward(self, layer: int, x_RH: Tensor, rows_per_slot: Tensor) -> Tensor:
        """Apply to each row the expert of its slot.

        Parameters
        ----------
        layer
            Layer.
        x_RH
            Rows in the compute type, sorted by local slot; unused rows may follow.
        rows_per_slot
            [S] integers, rows of each slot.

        Returns
        -------
        Tensor
            y_RH, rows in the same order; zeros where a row was unused.

        Raises
        ------
        InputError
            For rows of another type or width. Counts are not checked: that would synchronise with the device.
        """
        if x_RH.dtype != self.compute_dtype or x_RH.shape[-1] != self.shape.hidden_size:
            raise InputError(
                f"rows are {x_RH.dtype} of width {x_RH.shape[-1]}: "
                f"expected {self.compute_dtype} of width {self.shape.hidden_size}"
            )
        if rows_per_slot.shape != (self.shape.num_slots,):
            raise InputError(
                f"rows_per_slot has shape {tuple(rows_per_slot.shape)}: expected ({self.shape.num_slots},)"
            )
        if x_RH.shape[0] == 0:
            return torch.zeros_like(x_RH)
        return (
            self._grouped(layer, x_RH, rows_per_slot)
            if self.has_grouped_path
            else self.looped(layer, x_RH, rows_per_slot)
        )

    @property
    def has_grouped_path(self) -> bool:
        """Whether `grouped_mm` exists and supports the type and widths; otherwise slots are processed in a loop.

        The CUDA kernel supports bf16 only; all strides must be multiples of 16 bytes.
        """
        types = {"cuda": (torch.bfloat16,), "cpu": (torch.bfloat16, torch.float16, torch.float32)}
        widths = (self.shape.hidden_size, self.shape.intermediate_size)
        aligned = all(width * self.compute_dtype.itemsize % _ALIGNMENT_BYTES == 0 for width in widths)
        return _HAS_GROUPED_MM and self.compute_dtype in types.get(self.device.type, ()) and aligned

    def _grouped(self, layer: int, x_RH: Tensor, rows_per_slot: Tensor) -> Tensor:
        """All slots in one call, without synchronising with the device."""
        last_row = rows_per_slot.cumsum(0).to(torch.int32)  # grouped_mm requires int32
        parts = self._layers[layer]
        gate_up_SJH = self._decoded(parts, GATE_UP).flatten(1, 2)  # J = 2 I
        down_SHI = self._decoded(parts, DOWN)
        gate_RI, up_RI = F.grouped_mm(x_RH.contiguous(), gate_up_SJH.transpose(1, 2), offs=last_row).chunk(2, dim=-1)
        y_RH = F.grouped_mm(F.silu(gate_RI) * up_RI, down_SHI.transpose(1, 2), offs=last_row)
        # Rows past the last offset are uninitialised memory.
        used_R1 = torch.arange(x_RH.shape[0], device=x_RH.device).unsqueeze(1) < last_row[-1]
        return torch.where(used_R1, y_RH, 0)

    def looped(self, layer: int, x_RH: Tensor, rows_per_slot: Tensor) -> Tensor:
        """`forward` slot by slot; copies the counts to the host."""
        y_RH = torch.zeros_like(x_RH)
        first = 0
        for slot, num_rows in enumerate(rows_per_slot.tolist()):
            if num_rows:
                gate_up_2IH, down_HI = self.dense(layer, slot)
                rows = slice(first, first + num_rows)
                gate_RI, up_RI = F.linear(x_RH[rows], gate_up_2IH.flatten(0, 1)).chunk(2, dim=-1)
                y_RH[rows] = F.linear(F.silu(gate_RI) * up_RI, down_HI)
                first += num_rows
        return y_RH

    def _decoded(self, parts: Mapping[str, Tensor], name: str) -> Tensor:
        """The matrix `name` of a slot, or of all slots of a layer."""
        own = {part.removeprefix(f"{name}."): tensor for part, tensor in parts.items() if part.startswith(f"{name}.")}
        matrix = self.codec.decode(own, self.compute_dtype)
        return split(matrix) if name == GATE_UP and self.layout is GateUpLayout.INTERLEAVED else matrix

    def _check_place(self, layer: int, slot: int) -> None:
        for word, index, size in (("layer", layer, self.shape.num_layers), ("slot", slot, self.shape.num_slots)):
            if not 0 <= index < size:
                raise InputError(f"{word} = {index}: expected 0 <= {word} < {size}")


def interleaved(gate_up_2IH: Tensor) -> Tensor:
    """[.., I / 8, 2, 8, H] from gate and up [.., 2, I, H]."""
    *lead, _, inner, hidden = gate_up_2IH.shape
    return gate_up_2IH.reshape(*lead, 2, inner // INTERLEAVE, INTERLEAVE, hidden).transpose(-4, -3).contiguous()


def split(interleaved_i28H: Tensor) -> Tensor:
    """[.., 2, I, H] from interleaved gate and up: the inverse of `interleaved`."""
    return interleaved_i28H.transpose(-4, -3).flatten(-3, -2)
