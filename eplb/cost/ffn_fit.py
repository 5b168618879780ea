"""Fits the constants of a grouped FFN to measurements.

Least squares on relative errors, constants >= 0. Every expert shape counts the same however often it was measured, and
a few rounds of reweighting keep single outliers (a clock that dips, an interrupt) from moving the fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb.cost.grouped_ffn import (
    CONSTANTS,
    FitQuality,
    GroupedFfn,
    TileRegime,
    counts_of_slots,
    with_constants,
)
from eplb.errors import InputError

_ROUNDS = 8
_SMALL_ERROR = 0.02  # errors below this weigh alike


@final
@dataclass(frozen=True)
class FfnMeasurement:
    """One timed call of a rank's grouped FFN."""

    hidden: int
    intermediate: int
    slot_tokens: tuple[int, ...]
    """Rows of each slot of the rank."""
    seconds: float

    @property
    def shape(self) -> str:
        """The expert shape: "7168x2048"."""
        return f"{self.hidden}x{self.intermediate}"

    @property
    def rows_per_slot(self) -> int:
        """Mean rows of a slot, rounded down, as kernels choose their tile by."""
        return sum(self.slot_tokens) // len(self.slot_tokens)


@final
@dataclass(frozen=True)
class Tile:
    """A tile that a kernel may use: see the fields of `TileRegime`."""

    most_rows_per_slot: float
    rows: int
    columns: int
    at_once: int

    def regime(self) -> TileRegime:
        """The regime of the tile, all constants 0."""
        return TileRegime(
            most_rows_per_slot=self.most_rows_per_slot,
            tile_rows=self.rows,
            tile_columns=self.columns,
            tiles_at_once=self.at_once,
            **dict.fromkeys(CONSTANTS, 0.0),
        )


def fit_best(
    kernel: str, measured: Sequence[FfnMeasurement], candidates: Mapping[str, Sequence[Tile]]
) -> tuple[str, GroupedFfn]:
    """Fit each candidate's tiles and return the name and the fit of the one with the smallest median error.

    Raises
    ------
    InputError
        Without a candidate, or if a candidate is left without measurements in one of its regimes.
    """
    fits = {name: fit(kernel, measured, tiles) for name, tiles in candidates.items()}
    if not fits:
        raise InputError("tiles: expected at least one candidate")

    def error(name: str) -> float:
        quality = fits[name].fit
        return float("inf") if quality is None else quality.median_error

    best = min(fits, key=error)
    return best, fits[best]


def fit(kernel: str, measured: Sequence[FfnMeasurement], tiles: Sequence[Tile]) -> GroupedFfn:
    """Fit the constants of each regime to the measurements that fall into it.

    Parameters
    ----------
    kernel
        What was measured, for display.
    measured
        Measurements of any expert shapes.
    tiles
        The kernel's tiles, ascending in `most_rows_per_slot`.

    Raises
    ------
    InputError
        If a regime has no measurement.
    """
    regimes, least = [], -1.0
    for tile in tiles:
        inside = [one for one in measured if least < one.rows_per_slot <= tile.most_rows_per_slot]
        if not inside:
            raise InputError(f"rows per slot {least:g} to {tile.most_rows_per_slot:g}: expected a measurement there")
        regimes.append(_fit_regime(tile.regime(), inside))
        least = tile.most_rows_per_slot
    ffn = GroupedFfn(kernel=kernel, regimes=tuple(regimes))
    errors = relative_errors(ffn, measured)
    quality = FitQuality(
        num_points=len(measured),
        median_error=float(np.median(errors)),
        p95_error=float(np.percentile(errors, 95)),
        shapes=tuple(sorted({one.shape for one in measured})),
    )
    return GroupedFfn(kernel=kernel, regimes=ffn.regimes, fit=quality)


def relative_errors(ffn: GroupedFfn, measured: Sequence[FfnMeasurement]) -> Floats:
    """|predicted / measured - 1| of each measurement."""
    errors = []
    for one in measured:
        slots = np.array([0, len(one.slot_tokens)], dtype=np.int64)
        (predicted,) = ffn.for_expert(one.hidden, one.intermediate).seconds(one.slot_tokens, slots).tolist()
        errors.append(abs(predicted / one.seconds - 1))
    return np.array(errors)


def _fit_regime(regime: TileRegime, measured: Sequence[FfnMeasurement]) -> TileRegime:
    from scipy.optimize import nnls

    seconds = np.array([one.seconds for one in measured])
    counts = np.stack([counts_of_slots(regime, one.hidden, one.intermediate, one.slot_tokens) for one in measured])
    shapes, index = np.unique([one.shape for one in measured], return_inverse=True)
    share = 1.0 / np.bincount(index, minlength=len(shapes))[index]
    scale = counts.max(axis=0).clip(min=1e-300)  # the columns differ by many orders of magnitude
    relative = counts / scale / seconds[:, None]
    weight = np.ones(len(measured))
    found = np.zeros(len(CONSTANTS))
    for _ in range(_ROUNDS):
        root = np.sqrt(weight * share)
        found, _ = nnls(relative * root[:, None], root)
        weight = 1.0 / np.maximum(np.abs(relative @ found - 1), _SMALL_ERROR)
    return with_constants(regime, found / scale)
