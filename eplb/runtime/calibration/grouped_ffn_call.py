"""Builds calls of a rank's grouped FFN with random weights, for timing: only shapes and rows matter.

bf16   `ExpertWeights.forward`, what the runtime executes (`torch.nn.functional.grouped_mm`)
fp8    e4m3 rows and weights with one scale a row (`torch._scaled_grouped_mm`), the rows quantized before as an FP8
       dispatch delivers them; the runtime's own FP8 weights are decoded to bf16 instead and are not what engines run

S slots   H hidden   I intermediate   R rows
"""

from collections.abc import Callable, Sequence
from typing import Protocol, final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from eplb.errors import InputError, UnknownNameError
from eplb.runtime.weights.expert_weights import ExpertWeights, ExpertWeightsShape

KERNELS = {"bf16": "torch.nn.functional.grouped_mm", "fp8": "torch._scaled_grouped_mm, one scale a row"}
"""What is timed for each type of weights."""

_FP8_MAX = 448.0
_SPREAD = 0.02


class FfnCalls(Protocol):
    """The grouped FFN of a rank with a fixed number of slots."""

    def call(self, slot_tokens: Sequence[int]) -> Callable[[], object]:
        """A call that applies the expert of each slot to so many rows, on the device alone.

        All calls read the same rows.
        """
        ...


def make_calls(dtype: str, *, num_slots: int, hidden: int, intermediate: int, device: torch.device) -> FfnCalls:
    """The calls for weights of a type.

    Raises
    ------
    UnknownNameError
        For a type without a kernel here.
    InputError
        For fp8 where there is no GPU that multiplies it.
    """
    if dtype not in KERNELS:
        raise UnknownNameError("type of weights", dtype, KERNELS)
    if dtype == "bf16":
        return _Bf16Calls(num_slots, hidden, intermediate, device)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise InputError(f"dtype = fp8 on {device}: expected a GPU of compute capability 8.9 or later")
    return _Fp8Calls(num_slots, hidden, intermediate, device)


@final
class _Bf16Calls:
    def __init__(self, num_slots: int, hidden: int, intermediate: int, device: torch.device) -> None:
        shape = ExpertWeightsShape(
            num_layers=1, num_slots=num_slots, hidden_size=hidden, intermediate_size=intermediate
        )
        self._weights = ExpertWeights(shape, device=device)
        for part in self._weights.layer_parts(0).values():
            part.normal_(0, _SPREAD)
        self._x_RH = torch.empty((0, hidden), dtype=torch.bfloat16, device=device)

    def call(self, slot_tokens: Sequence[int]) -> Callable[[], object]:
        weights, num_rows = self._weights, sum(slot_tokens)
        if len(self._x_RH) < num_rows:
            self._x_RH = torch.randn((num_rows, weights.shape.hidden_size), dtype=torch.bfloat16, device=weights.device)
        x_RH = self._x_RH[:num_rows]
        rows_S = torch.tensor(slot_tokens, device=weights.device)
        return lambda: weights.forward(0, x_RH, rows_S)


@final
class _Fp8Calls:
    def __init__(self, num_slots: int, hidden: int, intermediate: int, device: torch.device) -> None:
        self._hidden, self._device = hidden, device
        self._gate_up_SJH = _random_fp8((num_slots, 2 * intermediate, hidden), device)
        self._down_SHI = _random_fp8((num_slots, hidden, intermediate), device)
        self._gate_up_scale_SJ = torch.full((num_slots, 2 * intermediate), _SPREAD, device=device)
        self._down_scale_SH = torch.full((num_slots, hidden), _SPREAD, device=device)
        self._x_RH = _random_fp8((0, hidden), device)

    def call(self, slot_tokens: Sequence[int]) -> Callable[[], object]:
        num_rows = sum(slot_tokens)
        if len(self._x_RH) < num_rows:
            self._x_RH = _random_fp8((num_rows, self._hidden), self._device)
        x_RH = self._x_RH[:num_rows]
        scale_R = torch.full((num_rows,), _SPREAD, device=self._device)
        rows_S = torch.tensor(slot_tokens, device=self._device)
        return lambda: self._forward(x_RH, scale_R, rows_S)

    def _forward(self, x_RH: torch.Tensor, scale_R: torch.Tensor, rows_S: torch.Tensor) -> torch.Tensor:
        last_row = rows_S.cumsum(0).to(torch.int32)
        gate_RI, up_RI = _product(x_RH, self._gate_up_SJH, scale_R, self._gate_up_scale_SJ, last_row).chunk(2, dim=-1)
        inner_RI = F.silu(gate_RI) * up_RI
        inner_scale_R = inner_RI.abs().amax(dim=1).float().clamp(min=1e-12) / _FP8_MAX
        inner_fp8_RI = (inner_RI / inner_scale_R[:, None]).to(torch.float8_e4m3fn)
        return _product(inner_fp8_RI, self._down_SHI, inner_scale_R, self._down_scale_SH, last_row)


def _product(
    x: torch.Tensor, weights: torch.Tensor, x_scale: torch.Tensor, scale: torch.Tensor, last_row: torch.Tensor
) -> torch.Tensor:
    product: torch.Tensor = torch._scaled_grouped_mm(
        x, weights.transpose(1, 2), x_scale, scale, offs=last_row, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return product


def _random_fp8(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=device).to(torch.float8_e4m3fn)
