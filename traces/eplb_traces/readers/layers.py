"""Decides which rows of a file are MoE layers, and which ids they have; nothing is lost and nothing invented."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.files.limits import MOST_LAYERS
from eplb_traces.model_shape import id_ranges
from eplb_traces.readers.dialect import ReadOptions

_LARGEST_PERIOD = 8  # MoE layers every second to every eighth layer; no published model has them further apart
_FEWEST_REGULAR = 3  # dense layers in a regular pattern: two alone always look regular


class MoeRows(NamedTuple):
    """The rows of a file that are MoE layers."""

    rows: NDArray[np.int64]
    """[L] positions in the file, in the order of the layers."""
    moe_layer_ids: tuple[int, ...] | None
    """[L] absolute ids; None where neither file nor caller says them."""
    num_hidden_layers: int | None
    notes: tuple[str, ...]


def moe_rows(silent: NDArray[np.bool_], row_ids: Sequence[int] | None, options: ReadOptions) -> MoeRows:
    """Choose the rows that are MoE layers.

    A row without a token is a dense layer where it stands at the front, or where such rows, or the others, follow a
    regular pattern. Any other is a hole in a broken recording, unless the caller names the MoE layers.

    Parameters
    ----------
    silent
        [rows] whether a row has no token in any window.
    row_ids
        [rows] absolute layer ids, ascending, where the file gives them; None where rows are only counted.
    options
        The caller's `moe_layer_ids` and `num_hidden_layers`.

    Raises
    ------
    InputError
        If no row has a token, a row is a hole, or the caller's ids do not fit the rows.
    """
    num_rows, told = len(silent), options.moe_layer_ids
    if row_ids is not None and max(row_ids) >= MOST_LAYERS:
        raise InputError(f"layer {max(row_ids)}: expected an id below {MOST_LAYERS}")
    if silent.all():
        raise InputError(f"every count is zero: an empty recording ({num_rows} layers)")
    if told is not None:
        return _told_rows(silent, row_ids, tuple(told), options.num_hidden_layers)
    if not silent.any():
        return _all_rows(num_rows, row_ids, options.num_hidden_layers)
    ids = tuple(range(num_rows)) if row_ids is None else tuple(row_ids)
    hidden = options.num_hidden_layers
    if row_ids is None and hidden not in (None, num_rows):
        raise InputError(
            f"the file has {num_rows} rows, {int(silent.sum())} of them without a token, and the model {hidden} "
            "hidden layers: give moe_layer_ids (--moe-layers), one id for each row"
        )
    named_ids = np.array(ids)
    pattern = _dense_pattern(silent)
    if pattern is None:
        quiet, loaded = (id_ranges(named_ids[rows].tolist()) for rows in (silent, ~silent))
        raise InputError(
            f"layers {quiet} have no token and {loaded} have: a broken recording, or dense layers; give moe_layer_ids "
            "(--moe-layers) to say which layers have experts"
        )
    rows = np.flatnonzero(~silent)
    note = f"layers {id_ranges(named_ids[silent].tolist())} have no token and count as dense ({pattern})"
    hidden = hidden or (num_rows if row_ids is None else None)
    return MoeRows(rows, tuple(int(i) for i in named_ids[rows]), hidden, (note,))


def hidden_layer_rows(silent: NDArray[np.bool_], options: ReadOptions) -> MoeRows:
    """As `moe_rows`, for formats with a row for every layer of the model: without dense layers, row i is layer i."""
    found = moe_rows(silent, None, options)
    if found.moe_layer_ids is None and options.num_hidden_layers is None:
        ids = tuple(range(len(silent)))
        return found._replace(moe_layer_ids=ids, num_hidden_layers=len(ids))
    return found


def _all_rows(num_rows: int, row_ids: Sequence[int] | None, hidden: int | None) -> MoeRows:
    if hidden is not None and hidden < num_rows:
        raise InputError(f"num_hidden_layers = {hidden}: the file has {num_rows} layers")
    ids = None if row_ids is None else tuple(int(i) for i in row_ids)
    if ids is None and hidden == num_rows:
        ids = tuple(range(num_rows))
    if ids is not None and hidden is not None and ids[-1] >= hidden:
        raise InputError(f"num_hidden_layers = {hidden}: the file has a layer {ids[-1]}")
    notes: tuple[str, ...] = ()
    if ids is not None and ids[-1] - ids[0] + 1 != num_rows:
        notes = (f"layers are {id_ranges(ids)}: the ids between are not in the file",)
    return MoeRows(np.arange(num_rows), ids, hidden, notes)


def _told_rows(
    silent: NDArray[np.bool_], row_ids: Sequence[int] | None, told: tuple[int, ...], hidden: int | None
) -> MoeRows:
    num_rows = len(silent)
    if row_ids is None and len(told) == num_rows:
        return MoeRows(np.arange(num_rows), told, hidden, ())
    if row_ids is None and (told[-1] >= num_rows or hidden not in (None, num_rows)):
        raise InputError(
            f"moe_layer_ids = {id_ranges(told)}, {len(told)} layers: the file has {num_rows} rows, expected one for "
            "each MoE layer or one for each hidden layer"
        )
    row_of = {int(layer): row for row, layer in enumerate(range(num_rows) if row_ids is None else row_ids)}
    missing = [layer for layer in told if layer not in row_of]
    if missing:
        raise InputError(
            f"moe_layer_ids = {id_ranges(told)}: the file has no layer {missing[0]}, it has {id_ranges(sorted(row_of))}"
        )
    rows = np.array([row_of[layer] for layer in told])
    left_out = np.setdiff1d(np.arange(num_rows), rows)
    loaded = left_out[~silent[left_out]]
    if loaded.size:
        layer = next(layer for layer, row in row_of.items() if row == loaded[0])
        raise InputError(f"moe_layer_ids = {id_ranges(told)}: layer {layer}, not among them, has tokens in the file")
    return MoeRows(rows, told, hidden or (num_rows if row_ids is None else None), ())


def _dense_pattern(silent: NDArray[np.bool_]) -> str | None:
    """Why the silent rows can be dense layers; None if they look like holes."""
    active = np.flatnonzero(~silent)
    num_silent = int(silent.sum())
    if active[0] == num_silent and num_silent <= active.size:
        return "the first layers of the model"
    if min(active.size, num_silent) > 1 and _is_regular(active, silent.size):
        return f"one layer in {active[1] - active[0]} has experts"
    gaps = np.flatnonzero(silent)
    if num_silent >= _FEWEST_REGULAR and _is_regular(gaps, silent.size):
        return f"one layer in {gaps[1] - gaps[0]} is dense"
    return None


def _is_regular(rows: NDArray[np.int64], num_rows: int) -> bool:
    """Whether rows follow each other at one distance over the whole model."""
    period = int(rows[1] - rows[0])
    even = bool((np.diff(rows) == period).all())
    return even and 2 <= period <= _LARGEST_PERIOD and rows[0] < period and rows[-1] + period >= num_rows
