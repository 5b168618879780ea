"""Predicts the seconds of a rank's grouped expert FFN from the tokens of each of its slots.

A grouped matrix product cuts the rows of every expert into tiles, pads the last one, and runs the tiles in waves over
the multiprocessors. The seconds of a rank are linear in six counts of its slots::

    s  slots with rows            M  tile rows: sum over slots of ceil(rows / tile_rows)       R  rows
    W  waves of a product: ceil(M * ceil(columns / tile_columns) / tiles_at_once)

    seconds = fixed + (s expert + M tile + R row) H I + R (H + I) element
            + W(gate and up: 2 I columns) (wave + H depth) + W(down: H columns) (wave + I depth)

with hidden size H and intermediate size I. The constants belong to a GPU, a kernel and a type, not to a model: fitted
on some expert shapes they hold for others. A kernel that picks its tile by the mean rows of a slot has one set of
constants for each tile, a `TileRegime`.
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from eplb.core.arrays import Floats, Ints
from eplb.core.counts import check_count
from eplb.errors import InputError

CONSTANTS = ("fixed_s", "expert_s", "tile_s", "row_s", "element_s", "wave_s", "depth_s")
"""The fields of a regime that are fitted, in the order of `counts_of_slots`."""


@final
@dataclass(frozen=True, kw_only=True)
class TileRegime:
    """Tile of a kernel and the constants fitted for it, in seconds.

    Parameters
    ----------
    most_rows_per_slot
        The kernel uses this tile while the rows of the rank over its slots, rounded down, are at most this.
    tile_rows, tile_columns
        Rows and columns of the output that are computed together; for a cluster of tiles, those of the cluster.
    tiles_at_once
        Tiles in one wave.
    fixed_s
        Launches, once a layer.
    expert_s, tile_s, row_s
        For each slot with rows, each tile row and each row; times H * I.
    element_s
        For each row; times H + I.
    wave_s, depth_s
        For each wave; `depth_s` times the inner dimension of the product.

    Raises
    ------
    InputError
        For a number that is not finite or out of range.
    """

    most_rows_per_slot: float
    tile_rows: int
    tile_columns: int
    tiles_at_once: int
    fixed_s: float
    expert_s: float
    tile_s: float
    row_s: float
    element_s: float
    wave_s: float
    depth_s: float

    def __post_init__(self) -> None:
        for name in ("tile_rows", "tile_columns", "tiles_at_once"):
            check_count(name, getattr(self, name))
        for name in CONSTANTS:
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} = {getattr(self, name)}: expected finite and >= 0")
        if not self.most_rows_per_slot > 0:
            raise InputError(f"most_rows_per_slot = {self.most_rows_per_slot}: expected > 0")

    def bound_to(self, hidden: int, intermediate: int) -> tuple[float, ...]:
        """The row of `RankFfn.table` for one expert shape."""
        weights = float(hidden * intermediate)
        return (
            self.most_rows_per_slot,
            float(self.tile_rows),
            float(-(-2 * intermediate // self.tile_columns)),
            float(-(-hidden // self.tile_columns)),
            float(self.tiles_at_once),
            self.fixed_s,
            self.expert_s * weights,
            self.tile_s * weights,
            self.row_s * weights + self.element_s * (hidden + intermediate),
            self.wave_s + self.depth_s * hidden,
            self.wave_s + self.depth_s * intermediate,
        )


@final
@dataclass(frozen=True, kw_only=True)
class FitQuality:
    """How well the constants reproduce what they were fitted on."""

    num_points: int
    median_error: float
    """Of |predicted / measured - 1|."""
    p95_error: float
    shapes: tuple[str, ...]
    """Expert shapes that were measured: "7168x2048"."""


@final
@dataclass(frozen=True, kw_only=True)
class GroupedFfn:
    """The grouped FFN of one kernel and weight type on one GPU, for every expert shape.

    Parameters
    ----------
    kernel
        What executes it, for display.
    regimes
        Ascending in `most_rows_per_slot`, the last one unbounded.
    fit
        None for a formula.

    Raises
    ------
    InputError
        If the regimes are not ascending or the last one is bounded.
    """

    kernel: str
    regimes: tuple[TileRegime, ...]
    fit: FitQuality | None = None

    def __post_init__(self) -> None:
        bounds = [regime.most_rows_per_slot for regime in self.regimes]
        if not bounds or bounds[-1] != float("inf") or any(a >= b for a, b in pairwise(bounds)):
            raise InputError(f"most_rows_per_slot = {bounds}: expected ascending numbers, the last one unbounded")

    def for_expert(self, hidden: int, intermediate: int) -> "RankFfn":
        """The prediction for experts of one shape.

        Raises
        ------
        InputError
            If a size is below one.
        """
        for name, size in (("hidden size", hidden), ("intermediate size", intermediate)):
            check_count(name, size)
        return RankFfn(np.array([regime.bound_to(hidden, intermediate) for regime in self.regimes]))


@final
@dataclass(frozen=True, eq=False)
class RankFfn:
    """Seconds of the ranks of a layer, for one GPU, type and expert shape."""

    table: Floats
    """[regimes, 11] see `TileRegime.bound_to`; what a kernel of a planner takes."""

    def __post_init__(self) -> None:
        self.table.setflags(write=False)

    def seconds(self, slot_tokens: ArrayLike, rank_first_slot: Ints) -> Floats:
        """Seconds of every rank; 0 for a rank without a row.

        Parameters
        ----------
        slot_tokens
            [B, P] or [P] rows of each slot; fractions are allowed and count as they are.
        rank_first_slot
            [R + 1] first slot of each rank, then P.

        Returns
        -------
        NDArray
            [B, R] or [R]

        Raises
        ------
        InputError
            If the slots are not those of the ranks.
        """
        from eplb.cost.grouped_ffn_kernel import ranks_seconds

        tokens = np.ascontiguousarray(slot_tokens, dtype=np.float64)
        if tokens.ndim not in (1, 2) or tokens.shape[-1] != rank_first_slot[-1]:
            raise InputError(f"slot_tokens has shape {tokens.shape}: expected [batches, {rank_first_slot[-1]} slots]")
        seconds = np.empty((1 if tokens.ndim == 1 else len(tokens), len(rank_first_slot) - 1))
        ranks_seconds(tokens.reshape(len(seconds), -1), rank_first_slot, self.table, seconds)
        return seconds[0] if tokens.ndim == 1 else seconds


def counts_of_slots(regime: TileRegime, hidden: int, intermediate: int, slot_tokens: ArrayLike) -> Floats:
    """[7] what each of CONSTANTS is multiplied with for one rank: to fit them."""
    tokens = np.asarray(slot_tokens, dtype=np.float64)
    weights, rows = float(hidden * intermediate), float(tokens.sum())
    tile_rows = float(np.ceil(tokens / regime.tile_rows).sum())
    columns = np.array([2 * intermediate, hidden])
    waves = np.ceil(tile_rows * np.ceil(columns / regime.tile_columns) / regime.tiles_at_once)
    depth = float(waves @ np.array([hidden, intermediate]))
    used = np.count_nonzero(tokens) * weights
    return np.array(
        [1.0, used, tile_rows * weights, rows * weights, rows * (hidden + intermediate), waves.sum(), depth]
    )


def with_constants(regime: TileRegime, constants: Floats) -> TileRegime:
    """The same tile with other constants, in the order of CONSTANTS."""
    kept = {field.name: getattr(regime, field.name) for field in fields(regime) if field.name not in CONSTANTS}
    return TileRegime(**kept, **dict(zip(CONSTANTS, constants.tolist(), strict=True)))
