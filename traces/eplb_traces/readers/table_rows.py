"""Reads the wide form of a table, one row for each layer (or each expert, where the header says so), as a load."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.files.limits import LARGEST_EXACT
from eplb_traces.readers.array_kinds import ArrayKind, certain_kind_of, is_square, kind_of, whole
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.table import Column, Table, counts, whole_numbers
from eplb_traces.readers.table_cells import Codes
from eplb_traces.readers.table_columns import Columns
from eplb_traces.readers.table_loads import Said, by_window, in_order, layer_ids, notes, reading_of_rows, sorted_codes

_REASONS = {
    ArrayKind.IDS: "are different in every row, as expert ids of tokens are",
    ArrayKind.PROBABILITIES: "add up to 1 in every row, as probabilities or shares do",
    ArrayKind.SCORES: "are fractions from 0 to 1, as scores or shares are",
    ArrayKind.WEIGHTS: "are small fractions, as the weights of a token's choices are",
    ArrayKind.PATTERN: "are 0 and 1 alone, as a placement pattern or a mask is",
    ArrayKind.PLACEMENT: "are the numbers from 0 on in every row, as a placement or a ranking of experts is",
    ArrayKind.REPLICAS: "are mostly 1 with equal sums of all rows, as numbers of replicas are",
    ArrayKind.SQUARE: "are a square, as expert transitions or co-activations are",
    ArrayKind.EXPERTS_FIRST: "look like {rows} experts in {columns} layers",
    ArrayKind.INDEX_FIRST: "begin with ascending small numbers, as if the first column were the layer",
    ArrayKind.PAIRS: "look like layer, expert, tokens without a header",
}
"""Of a table without a header, where kind is not counts."""


def read_rows(table: Table, columns: Columns, options: ReadOptions) -> Reading:
    """Read the wide form: rows are layers, in windows if a column says so or `options.window` allows it.

    Raises
    ------
    InputError
        Naming the cell that is wrong, or the layer that is there twice or missing.
    """
    rows = _gathered(table, columns)
    if not columns.is_named:
        _check_is_load(rows, options)
    names = table.names
    time = columns.window if columns.step is None else columns.step
    said = notes(table, columns) + _shares(rows.values)
    first, last = (columns.value_ids[i] for i in (0, -1))
    form = f"rows of layers, columns of experts {first} to {last}"
    if columns.layer is None:
        return reading_of_rows(rows.values[None], None, columns, options, Said(form, said))
    if names is not None:
        index = [names[i].strip() or "(no name)" for i in (time, columns.rank, columns.layer) if i is not None]
        form = f"wide form {', '.join(index)}, columns of experts {first} to {last}"
    order, ids = sorted_codes(rows.layers)
    load, more = _placed(table, columns, rows, options)
    load, labels = by_window(in_order(load, order, 1), rows.windows, columns, table.num_bytes)
    return reading_of_rows(load, ids, columns, options, Said(form, said + more, labels))


def read_experts(table: Table, columns: Columns, options: ReadOptions) -> Reading:
    """Read the transposed wide form: rows are experts, columns are layers.

    Raises
    ------
    InputError
        Naming the cell that is wrong, or if the experts are not 0 to E - 1, each once.
    """
    expert = columns.expert or 0
    read = [expert, *columns.values]
    parts, experts, row = [], [], 0
    for chunk in table.chunks(read):
        experts.append(whole_numbers(table, chunk[0], row, expert))
        parts.append(_matrix(table, chunk[1:], columns.values, row))
        row += len(chunk[0])
    if not row:
        raise InputError("the table has a header and no rows")
    ids = np.concatenate(experts)
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], np.arange(row)):
        at = int(np.argmax(ids[order] != np.arange(row)))
        raise InputError(f"rows are experts, and expert {at} is not there once: expected 0 to {row - 1}, each once")
    load = np.concatenate(parts)[order].T[None]
    form = f"transposed: rows of experts, columns of layers ({len(columns.values)})"
    return reading_of_rows(load, columns.value_ids, columns, options, Said(form, notes(table, columns)))


class _Rows(NamedTuple):
    """All rows of a wide table."""

    values: NDArray[np.float64]
    """[rows, E]"""
    window_of: NDArray[np.int64]
    """[rows] codes in `windows`; zeros where no column has windows."""
    layer_of: NDArray[np.int64]
    rank_of: NDArray[np.int64]
    windows: Codes
    layers: Codes
    ranks: Codes


def _gathered(table: Table, columns: Columns) -> _Rows:
    time = columns.window if columns.step is None else columns.step
    read = [i for i in (time, columns.layer, columns.rank) if i is not None]
    windows, layers, ranks = Codes(), Codes(), Codes()
    parts: list[tuple[NDArray[np.float64], ...]] = []
    index: list[tuple[NDArray[np.int64], ...]] = []
    row = 0
    for chunk in table.chunks([*read, *columns.values]):
        column = dict(zip(read, chunk, strict=False))
        none = np.zeros(len(chunk[0]), dtype=np.int64)
        window = none if time is None else windows.of(whole_numbers(table, column[time], row, time))
        layer = none
        if columns.layer is not None:
            layer = layers.of(layer_ids(table, column[columns.layer], row, columns.layer))
        rank = none if columns.rank is None else ranks.of(column[columns.rank])
        parts.append((_matrix(table, chunk[len(read) :], columns.values, row),))
        index.append((window, layer, rank))
        row += len(none)
    if not row:
        raise InputError("the file has a header and no rows")
    axes = [np.concatenate(axis) for axis in zip(*index, strict=True)]
    return _Rows(np.concatenate([values for (values,) in parts]), axes[0], axes[1], axes[2], windows, layers, ranks)


def _matrix(table: Table, cells: list[Column], columns: tuple[int, ...], row: int) -> NDArray[np.float64]:
    """[rows, columns] of a chunk."""
    if cells[0].size and all(of.ndim == 1 and of.dtype.kind in "iuf" for of in cells):
        block = np.stack(cells, axis=1)
        if block.min() >= 0 and block.max() < LARGEST_EXACT:
            return block.astype(np.float64, copy=False)
    matrix = np.empty((len(cells[0]), len(cells)))
    for i, (column, values) in enumerate(zip(columns, cells, strict=True)):
        matrix[:, i] = counts(table, values, row, column)
    return matrix


def _placed(
    table: Table, columns: Columns, rows: _Rows, options: ReadOptions
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """[windows, layers, E] in the order of the codes, ranks summed."""
    num_layers, num_ranks = len(rows.layers.values), max(1, len(rows.ranks.values))
    window_of = rows.window_of
    more: tuple[str, ...] = ()
    num_windows = max(1, len(rows.windows.values))
    flat = (window_of * num_layers + rows.layer_of) * num_ranks + rows.rank_of
    times = np.bincount(flat, minlength=num_windows * num_layers * num_ranks)
    if (times > 1).any() and not rows.windows.values:
        window_of, more = _repetitions(table, columns, rows, options)
        num_windows = int(window_of.max()) + 1
        flat = (window_of * num_layers + rows.layer_of) * num_ranks + rows.rank_of
        times = np.bincount(flat, minlength=num_windows * num_layers * num_ranks)
    if (times != 1).any():
        raise _incomplete(table, columns, rows, flat, times)
    if (np.diff(flat) == 1).all():
        in_place = rows.values
    else:
        in_place = np.empty_like(rows.values)
        in_place[flat] = rows.values
    load = in_place.reshape(num_windows, num_layers, num_ranks, -1)
    return (load[:, :, 0] if num_ranks == 1 else load.sum(axis=2)), more


def _repetitions(
    table: Table, columns: Columns, rows: _Rows, options: ReadOptions
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """[rows] how often the layer of a row was there before, divided by the steps of a window."""
    if options.window is None:
        first_rows = np.unique(rows.layer_of * max(1, len(rows.ranks.values)) + rows.rank_of, return_index=True)[1]
        row = int(np.setdiff1d(np.arange(len(rows.layer_of)), first_rows)[0])
        layer = rows.layers.values[rows.layer_of[row]]
        raise InputError(
            f"{table.place(row, columns.layer or 0)}: layer {layer} is there twice; if every repetition is a window, "
            "give window = 1 (--window 1)"
        )
    if options.window != 1:
        raise InputError(f"window = {options.window} (--window): layers repeat without a step, expected 1")
    key = rows.layer_of * max(1, len(rows.ranks.values)) + rows.rank_of
    order = np.argsort(key, kind="stable")
    sizes = np.bincount(key)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    window = np.empty_like(order)
    window[order] = np.arange(len(order)) - starts
    return window, ("repeated layers are windows",)


def _incomplete(
    table: Table, columns: Columns, rows: _Rows, flat: NDArray[np.int64], times: NDArray[np.int64]
) -> InputError:
    """The error for the first layer that a window, or rank, has twice or not at all."""
    num_layers, num_ranks = len(rows.layers.values), max(1, len(rows.ranks.values))
    cell = int(np.argmax(times != 1))
    window, layer = divmod(cell // num_ranks, num_layers)
    at = f"window {rows.windows.values[window] if rows.windows.values else window}, " if len(times) > num_layers else ""
    if rows.ranks.values:
        at += f"rank {rows.ranks.values[cell % num_ranks]}, "
    name = f"{at}layer {rows.layers.values[layer]}"
    if times[cell] == 0:
        return InputError(f"{name} has no row: expected a row for every layer in every window and of every rank")
    second = int(np.flatnonzero(flat == cell)[1])
    return InputError(f"{table.place(second, columns.layer or 0)}: {name} is there twice")


def _shares(values: NDArray[np.float64]) -> tuple[str, ...]:
    is_share = values.shape[1] > 1 and np.allclose(values.sum(axis=1), 1.0, rtol=0, atol=1e-3)
    return ("every row sums to 1: shares of the tokens, not tokens",) if is_share else ()


def _check_is_load(rows: _Rows, options: ReadOptions) -> None:
    """Refuse rows of numbers alone that are likely something else than counts; some of them even if E is given."""
    values = rows.values
    num_rows, num_columns = values.shape
    is_told = options.num_experts == num_columns
    kind = certain_kind_of(whole(values)) if is_told else kind_of(whole(values))
    if is_told and is_square(values) and not options.says_layers:
        raise InputError(
            f"{num_rows} rows of {num_columns} numbers {_REASONS[ArrayKind.SQUARE]}: if these are counts, give "
            "moe_layer_ids (--moe-layers)"
        )
    if num_columns == 1 and not is_told:
        reason = "have no second expert"
    elif kind in _REASONS:
        reason = _REASONS[kind].format(rows=num_rows, columns=num_columns)
    else:
        return
    told = "" if is_told else f", or give num_experts (--num-experts {num_columns})"
    raise InputError(
        f"{num_rows} rows of {num_columns} numbers {reason}: name the columns in a header{told} if these are counts, a "
        "row for each layer"
    )
