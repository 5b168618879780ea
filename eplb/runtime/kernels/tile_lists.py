"""Launches the kernel that divides the slots' rows into tiles.

S slots   R rows, of which those past the last slot's end are unused
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class TileHeights:
    """Rows of a tile in each list; 0 for a list that is not used.

    Parameters
    ----------
    big
        A power of two.
    tail
        Rows that the last big tile may take in addition.
    medium, small
        Heights for remainders.
    """

    big: int
    tail: int = 0
    medium: int = 0
    small: int = 0

    def of_lists(self) -> tuple[tuple[int, int], ...]:
        """Height of each list as (main part, added part); (0, 0) for a list without tiles."""
        return (
            (self.big, 0),
            (self.big, self.tail) if self.tail else (0, 0),
            (self.medium, 0),
            (self.small, 0),
        )


@final
@dataclass(frozen=True)
class TileLists:
    """Four lists of tiles on the device."""

    heights: TileHeights
    tiles: Tensor
    """[4, capacity, 4] int32 (slot, first row, end of the slot's rows, unused)."""
    counts: Tensor
    """[4] int32 number of tiles of each list."""


def make_tile_lists(ends_S: Tensor, num_rows: int, heights: TileHeights) -> TileLists:
    """Divide the rows into tiles without waiting for the device.

    Parameters
    ----------
    ends_S
        [S] int32 end of each slot's rows, ascending, at most `num_rows`.
    num_rows
        R.
    heights
        Heights of the tiles.
    """
    from eplb.runtime.kernels.tile_lists_kernel import tile_lists_kernel

    num_slots = ends_S.shape[0]
    capacity = num_rows // heights.big + num_slots
    tiles = torch.empty((4, capacity, 4), dtype=torch.int32, device=ends_S.device)
    counts = torch.empty(4, dtype=torch.int32, device=ends_S.device)
    padded = 1 << max(num_slots - 1, 1).bit_length()
    tile_lists_kernel[(1,)](
        ends_S, tiles, counts, num_slots, capacity,
        SLOTS=padded, BIG=heights.big, TAIL=heights.tail, MEDIUM=heights.medium, SMALL=heights.small,
    )  # fmt: skip
    return TileLists(heights, tiles, counts)
