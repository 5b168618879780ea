"""Faults that the verifier injects into a runtime, and the check that must detect each of them."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import final

import torch
from torch import Tensor

from eplb.errors import InputError, UnknownNameError
from eplb.runtime.exchange.expert_rows import ExpertRows, kept_rows
from eplb.runtime.exchange.protocol import Backend, ExchangeHandle, RoutingPlan, Splits, WireRows
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.state import ExchangeLayout
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.verification.probe_experts import ProbeExperts


class Fault(StrEnum):
    """The injected fault; applied on the last process only."""

    NONE = "none"
    STALE_MAP = "stale-map"
    STALE_EPOCH = "stale-epoch"
    WRONG_REPLICA = "wrong-replica"
    SWAP_WEIGHTS = "swap-weights"
    CORRUPT_WEIGHT = "corrupt-weight"
    DROP_ROW = "drop-row"
    DUPLICATE_ROW = "duplicate-row"
    SWAP_ROWS = "swap-rows"
    CORRUPT_ROW = "corrupt-row"
    NAN_PAD = "nan-pad"
    WRONG_WEIGHT = "wrong-weight"
    SILENT_DROP = "silent-drop"
    LOST_RECORD = "lost-record"
    TORN_MIGRATION = "torn-migration"

    @classmethod
    def named(cls, name: str) -> "Fault":
        """The fault of that name; UnknownNameError with the valid names otherwise."""
        try:
            return cls(name)
        except ValueError:
            raise UnknownNameError("fault", name, (fault for fault in cls if fault is not cls.NONE)) from None


CAUGHT_BY: dict[Fault, str] = {
    Fault.STALE_MAP: "maps",
    Fault.STALE_EPOCH: "maps",
    Fault.WRONG_REPLICA: "replicas",
    Fault.SWAP_WEIGHTS: "weights",
    Fault.CORRUPT_WEIGHT: "weights",
    Fault.DROP_ROW: "conservation",
    Fault.DUPLICATE_ROW: "conservation",
    Fault.SWAP_ROWS: "provenance",
    Fault.CORRUPT_ROW: "numerics",
    Fault.NAN_PAD: "poison",
    Fault.WRONG_WEIGHT: "numerics",
    Fault.SILENT_DROP: "drops",
    Fault.LOST_RECORD: "load",
    Fault.TORN_MIGRATION: "migration",
}
"""The check that must fail for each fault; other checks may fail too."""
_ROWS_TO_BREAK = {
    Fault.DROP_ROW: 2,  # the row that is lost, and one that is returned in its place
    Fault.DUPLICATE_ROW: 1,
    Fault.SWAP_ROWS: 2,
    Fault.CORRUPT_ROW: 1,
    Fault.NAN_PAD: 1,
}
"""Rows that a process needs for a fault."""


@final
@dataclass(frozen=True)
class FaultyBackend:
    """A correct backend with one fault."""

    inner: Backend
    fault: Fault
    group: RankGroup

    @property
    def name(self) -> str:
        """The name of the inner backend."""
        return self.inner.name

    def plan_exchange(self, routing: RoutingPlan) -> ExchangeHandle:
        """Plan the exchange; rows may be lost, duplicated or swapped, or a selection lost before it is counted.

        Raises
        ------
        InputError
            If there are too few rows to break, so that no check could find the fault.
        """
        if self.fault is Fault.SILENT_DROP:
            routing = replace(routing, slot_TK=_without_first(routing.slot_TK))
        if self.fault is Fault.WRONG_WEIGHT:
            routing = replace(routing, weight_TK=routing.weight_TK * 2)
        handle = self.inner.plan_exchange(routing)
        rows = handle.rows
        if rows.copy_of_row_M.numel() < (needed := _ROWS_TO_BREAK.get(self.fault, 0)):
            raise InputError(
                f"fault {self.fault}: process {self.group.process} has {rows.copy_of_row_M.numel()} rows, "
                f"expected at least {needed}: give more tokens"
            )
        match self.fault:
            case Fault.DROP_ROW:
                keep_M = torch.arange(rows.copy_of_row_M.numel(), device=rows.copy_of_row_M.device) > 0
                return _with_rows(handle, kept_rows(rows, keep_M, self.group.slots), shift=-1)
            case Fault.DUPLICATE_ROW:
                return _with_rows(handle, _first_row_twice(rows), shift=1)
            case Fault.SWAP_ROWS:
                row_DJ = rows.row_DJ
                if isinstance(handle.sent, ExchangeLayout):  # its dispatch reads the rows of the choices
                    row_DJ = torch.where(row_DJ >= 0, rows.copy_of_row_M.numel() - 1 - row_DJ, -1)
                swapped = replace(rows, copy_of_row_M=rows.copy_of_row_M.flip(0), row_DJ=row_DJ)
                return replace(handle, rows=swapped)
            case _:
                return handle

    def dispatch(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor:
        """Dispatch; floating-point rows may be corrupted."""
        x_MH = self.inner.dispatch(x_TH, handle)
        if x_MH.shape[0] and x_MH.is_floating_point():
            if self.fault is Fault.CORRUPT_ROW:
                x_MH[0] += 1
            if self.fault is Fault.NAN_PAD:
                x_MH[0] = self.group.allocate(x_MH.shape[1:], x_MH.dtype, x_MH.device)
        return x_MH

    def combine(self, y_MH: Tensor, handle: ExchangeHandle) -> Tensor:
        """Combine with the inner backend."""
        return self.inner.combine(y_MH, handle)

    def wire_rows(self, handle: ExchangeHandle) -> WireRows:
        """Rows sent by the inner backend."""
        return self.inner.wire_rows(handle)


def break_tables(fault: Fault, tables: PlacementTables, layer: int) -> None:
    """Make one layer's maps or epoch differ from those of the other processes."""
    if fault is Fault.STALE_MAP:
        tables.phy2log_LP[layer] = tables.phy2log_LP[layer].flip(0)
        tables.log2phy_LEX[layer] = torch.where(
            tables.log2phy_LEX[layer] >= 0, tables.topology.num_slots - 1 - tables.log2phy_LEX[layer], -1
        )
    if fault is Fault.STALE_EPOCH:
        tables.epoch_L[layer] -= 1


def break_weights(fault: Fault, experts: ProbeExperts) -> None:
    """Swap the weights of the first and the last slot, or change one value."""
    weight_SHH = experts.weight_SHH
    if fault is Fault.SWAP_WEIGHTS:
        weight_SHH[[0, -1]] = weight_SHH[[-1, 0]]
    if fault is Fault.CORRUPT_WEIGHT:
        weight_SHH[0, 0, 0] += 1


def break_choice(fault: Fault, slot_TK: Tensor, num_slots: int) -> Tensor:
    """Send the first selection to the slot after the right one."""
    if fault is not Fault.WRONG_REPLICA:
        return slot_TK
    broken_TK = slot_TK.clone()
    first = (broken_TK.view(-1) >= 0).nonzero()[:1, 0]
    broken_TK.view(-1)[first] = (broken_TK.view(-1)[first] + 1) % num_slots
    return broken_TK


def _without_first(slot_TK: Tensor) -> Tensor:
    masked_TK = slot_TK.clone()
    first = (masked_TK.view(-1) >= 0).nonzero()[:1, 0]
    masked_TK.view(-1)[first] = -1
    return masked_TK


def _first_row_twice(rows: ExpertRows) -> ExpertRows:
    rows_per_slot_S = rows.rows_per_slot_S.clone()
    rows_per_slot_S[(rows_per_slot_S > 0).to(torch.int8).argmax()] += 1
    return replace(
        rows,
        copy_of_row_M=torch.cat([rows.copy_of_row_M[:1], rows.copy_of_row_M]),
        slot_of_row_M=torch.cat([rows.slot_of_row_M[:1], rows.slot_of_row_M]),
        rows_per_slot_S=rows_per_slot_S,
        row_DJ=torch.where(rows.row_DJ >= 0, rows.row_DJ + 1, -1),
    )


def _with_rows(handle: ExchangeHandle, rows: ExpertRows, *, shift: int) -> ExchangeHandle:
    """The handle with other rows, renumbered by `shift` in the returned order too; a lost row is returned as row 0."""
    if not isinstance(handle.sent, Splits):
        return replace(handle, rows=rows)
    last = max(rows.copy_of_row_M.numel() - 1, 0)
    order_M = (handle.sent.return_order_M + shift).clamp(0, last)
    return replace(handle, rows=rows, sent=replace(handle.sent, return_order_M=order_M))
