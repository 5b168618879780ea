"""Sorts the choices that arrived into rows for the experts of a process and sums the results.

K choices per token   S slots of this process   H hidden
D copies of tokens that arrived   J choices per copy   M rows for the experts of this process
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import final

import torch
from torch import Tensor

from eplb.runtime.kernels.weighted_sum import fused_weighted_sum

_FUSED_TYPES = (torch.bfloat16, torch.float16, torch.float32)


@final
@dataclass(frozen=True)
class ExpertRows:
    """The rows of the experts of this process: where each is read from and where its result is added."""

    copy_of_row_M: Tensor
    """[M] int64 copy from which each row is read."""
    slot_of_row_M: Tensor
    """[M] int64 slot of each row, ascending."""
    rows_per_slot_S: Tensor
    """[S] int64 rows of each slot of this process; sums to M."""
    row_DJ: Tensor
    """[D, J] int64 row of each choice that arrived, -1 if its slot is on another process."""
    weight_DJ: Tensor
    """[D, J] float32 gate weights, as they arrived."""


def expert_rows(slot_DJ: Tensor, weight_DJ: Tensor, slots: range) -> tuple[ExpertRows, Tensor]:
    """Sort the choices that arrived by slot.

    Parameters
    ----------
    slot_DJ
        [D, J] int64 slots; -1 and slots of other processes are allowed.
    weight_DJ
        [D, J] float32.
    slots
        Slots of this process.

    Returns
    -------
    tuple
        The rows, and [M] int64 the rows in the order of (copy, choice).
    """
    local_DJ = (slot_DJ >= slots.start) & (slot_DJ < slots.stop)
    choice_M = local_DJ.reshape(-1).nonzero()[:, 0]
    slot_M = slot_DJ.reshape(-1)[choice_M]
    order_M = slot_M.argsort(stable=True)
    row_of_choice_M = torch.empty_like(order_M)
    row_of_choice_M[order_M] = torch.arange(order_M.numel(), device=order_M.device)
    row_DJ = slot_DJ.new_full(slot_DJ.shape, -1)
    row_DJ.view(-1)[choice_M] = row_of_choice_M
    rows = ExpertRows(
        copy_of_row_M=choice_M[order_M] // slot_DJ.shape[1],
        slot_of_row_M=slot_M[order_M],
        rows_per_slot_S=torch.bincount(slot_M - slots.start, minlength=len(slots)),
        row_DJ=row_DJ,
        weight_DJ=weight_DJ,
    )
    return rows, row_of_choice_M


def kept_rows(rows: ExpertRows, keep_M: Tensor, slots: range) -> ExpertRows:
    """The rows selected by `keep_M`, renumbered; choices of the other rows get -1."""
    new_row_M = torch.where(keep_M, keep_M.cumsum(0) - 1, -1)
    row_DJ = rows.row_DJ.clone()
    row_DJ[row_DJ >= 0] = new_row_M[row_DJ[row_DJ >= 0]]
    slot_of_row_M = rows.slot_of_row_M[keep_M]
    return replace(
        rows,
        copy_of_row_M=rows.copy_of_row_M[keep_M],
        slot_of_row_M=slot_of_row_M,
        rows_per_slot_S=torch.bincount(slot_of_row_M - slots.start, minlength=len(slots)),
        row_DJ=row_DJ,
    )


def packed_choices(slot_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """[N, 2, K] int32 slots and the bits of float32 weights, sent as one tensor; see `unpacked_choices`."""
    return torch.stack([slot_NK.to(torch.int32), weight_NK.view(torch.int32)], dim=1)


def unpacked_choices(packed_N2K: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] int64 slots and [N, K] float32 weights, from `packed_choices`."""
    return packed_N2K[:, 0].to(torch.int64), packed_N2K[:, 1].contiguous().view(torch.float32)


def weighted_sum(y_MH: Tensor, row_TJ: Tensor, weight_TJ: Tensor) -> Tensor:
    """Add rows to tokens in the order of their choices, in float32 (float64 for float64 rows).

    The order does not depend on where a row was computed; the reference and the backends in fixed order use this sum.

    Parameters
    ----------
    y_MH
        [M, H] rows.
    row_TJ
        [T, J] int64 row that each choice adds, -1 for none.
    weight_TJ
        [T, J] factor of that row.

    Returns
    -------
    Tensor
        [T, H], in the dtype of the rows.
    """
    total_TH = torch.zeros(
        (row_TJ.shape[0], y_MH.shape[1]),
        dtype=torch.float64 if y_MH.dtype == torch.float64 else torch.float32,
        device=y_MH.device,
    )
    if y_MH.shape[0]:
        for choice in range(row_TJ.shape[1]):
            row_T = row_TJ[:, choice]
            term_TH = y_MH[row_T.clamp(min=0)].to(total_TH.dtype) * weight_TJ[:, choice, None]
            total_TH += torch.where((row_T >= 0)[:, None], term_TH, 0)
    return total_TH.to(y_MH.dtype)


def fast_weighted_sum(y_MH: Tensor, row_TJ: Tensor, weight_TJ: Tensor) -> Tensor:
    """[T, H] what `weighted_sum` computes; on a GPU with Triton in one kernel, whose last bits may differ."""
    is_fused = y_MH.is_cuda and y_MH.dtype in _FUSED_TYPES and find_spec("triton") is not None
    add = fused_weighted_sum if is_fused else weighted_sum
    return add(y_MH.contiguous(), row_TJ, weight_TJ)
