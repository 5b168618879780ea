"""Defines the interface of the experts that a process executes."""

from typing import Protocol

from torch import Tensor


class SlotExperts(Protocol):
    """The experts in the slots of this process."""

    def forward(self, layer: int, x_RH: Tensor, rows_per_slot: Tensor) -> Tensor:
        """Apply each slot's expert to its rows.

        Parameters
        ----------
        layer
            The layer.
        x_RH
            [M, H] rows sorted by local slot.
        rows_per_slot
            [S] rows of each slot; sums to M.

        Returns
        -------
        Tensor
            [M, H] in the same order.
        """
        ...
