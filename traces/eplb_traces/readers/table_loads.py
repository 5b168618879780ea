"""Reads the long form of a table, one row for each pair of layer and expert, as a load."""

from collections.abc import Mapping
from itertools import permutations
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.limits import MOST_LAYERS, check_size, most_numbers
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.layers import moe_rows
from eplb_traces.readers.table import Column, Table, bad_cell, counts, whole_numbers
from eplb_traces.readers.table_cells import Cells, Codes, Pairs
from eplb_traces.readers.table_columns import Columns, layer_number, required

_SURE = 0.01


def read_pairs(table: Table, columns: Columns, options: ReadOptions) -> Reading:
    """Read the long form; without a column of windows it is one window, and ranks are summed.

    Raises
    ------
    InputError
        Naming the cell that is wrong or the pair that is there twice; or if E is not certain.
    """
    pairs = _Pairs(table, columns, options)
    row = 0
    for chunk in table.chunks(pairs.columns):
        pairs.add(dict(zip(pairs.columns, chunk, strict=True)), row)
        row += len(chunk[0])
    return pairs.reading()


@final
class _Pairs:
    """Rows of the long form, summed chunk by chunk."""

    def __init__(self, table: Table, columns: Columns, options: ReadOptions) -> None:
        self._table, self._meaning, self._options = table, columns, options
        self._layer, self._expert, self._tokens = (required(i) for i in (columns.layer, columns.expert, columns.tokens))
        self._time = columns.window if columns.step is None else columns.step
        optional = [i for i in (self._time, columns.rank) if i is not None]
        self.columns = [*optional, self._layer, self._expert, self._tokens]
        self._cells = Cells(table.num_bytes)
        self._shows_zeros = self._uses_ids = False

    def add(self, column: Mapping[int, Column], row: int) -> None:
        """Enter a chunk whose first row is `row`."""
        table, time, rank = self._table, self._time, self._meaning.rank
        experts = whole_numbers(table, column[self._expert], row, self._expert)
        amount = counts(table, column[self._tokens], row, self._tokens)
        layers = layer_ids(table, column[self._layer], row, self._layer)
        windows = None if time is None else whole_numbers(table, column[time], row, time)
        pairs = Pairs(windows, layers, None if rank is None else column[rank], experts, amount)
        rows: NDArray[np.int64] | None = None
        if self._options.ignore_ids:
            rows = np.flatnonzero(~np.isin(experts, self._options.ignore_ids))
            self._uses_ids = self._uses_ids or len(rows) < len(amount)
            pairs = pairs.select(rows)

        def repeated(index: int) -> InputError:
            place = table.place(row + (index if rows is None else int(rows[index])), self._expert)
            pair = f"layer {pairs.layer[index]}, expert {pairs.expert[index]}"
            return InputError(f"{place}: {pair} is there twice{_hint(self._meaning)}")

        self._cells.add(pairs, repeated)
        self._shows_zeros = self._shows_zeros or not pairs.tokens.all()

    def reading(self) -> Reading:
        """The load of all rows."""
        if not len(self._cells.layers):
            raise InputError("the table has a header and no rows")
        load, seen = self._cells.counts()
        is_complete = self._shows_zeros and bool(seen.all())
        holes = _holes(seen) if self._shows_zeros and not is_complete else ()
        num_experts, why = _num_experts(load.shape[2], is_complete, _chance_of_silence(load), self._options)
        if num_experts > load.shape[2]:
            check_size((*load.shape[:2], num_experts), self._table.num_bytes, "num_experts (--num-experts) as given")
            load = np.pad(load, ((0, 0), (0, 0), (0, num_experts - load.shape[2])))
        order, ids = sorted_codes(self._cells.layers)
        load = in_order(load, order, 1)
        load, labels = by_window(load, self._cells.windows, self._meaning, self._table.num_bytes)
        header = self._table.names or ()
        form = f"long form {', '.join(header[i].strip() for i in self.columns)}{why}"
        said = Said(form, notes(self._table, self._meaning) + holes, labels, self._uses_ids)
        return reading_of_rows(load, ids, self._meaning, self._options, said)


class Said(NamedTuple):
    """What is told about a load beside its counts."""

    form: str
    notes: tuple[str, ...]
    labels: tuple[str, ...] = ()
    """[windows] names, or none."""
    uses_ids: bool = False
    """`ignore_ids` had an effect."""


def reading_of_rows(
    load: NDArray[np.float64], ids: tuple[int, ...] | None, columns: Columns, options: ReadOptions, said: Said
) -> Reading:
    """Choose the MoE layers of a load [windows, rows, experts], and leave out the columns that are no experts.

    Parameters
    ----------
    load
        Counts, rows in the order of the layers.
    ids
        [rows] what the layer column has; None where there is no such column.
    columns
        The meaning of the columns.
    options
        The caller's.
    said
        Form, notes and labels.
    """
    if columns.are_positions and ids == tuple(range(load.shape[1])):
        ids = None
    used: set[str] = {"ignore_ids"} if said.uses_ids else set()
    if options.ignore_columns:
        load, used = _without_columns(load, options.ignore_columns), used | {"ignore_columns"}
    silent = _silent(load)
    layers = moe_rows(np.zeros_like(silent) if columns.are_moe_layers else silent, ids, options)
    shape = ModelShape(
        len(layers.rows),
        load.shape[2],
        moe_layer_ids=layers.moe_layer_ids,
        num_hidden_layers=layers.num_hidden_layers,
    )
    load = load if len(layers.rows) == load.shape[1] else load[:, layers.rows]
    load.setflags(write=False)  # the load keeps the array
    content = ExpertLoad(load, labels=said.labels or None, shape=shape)
    return Reading(content=content, form=said.form, notes=said.notes + layers.notes, used=frozenset(used))


def _silent(load: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[layers] whether a layer has no token in any window."""
    silent = ~load[0].any(axis=1)
    return np.asarray(~load.any(axis=(0, 2))) if silent.any() else np.asarray(silent)


def _holes(seen: NDArray[np.bool_]) -> tuple[str, ...]:
    """A note on the pairs [windows, layers, experts] without a row in a file that has rows of zeros.

    Raises
    ------
    InputError
        If they are the end of the file, whichever of its columns varies fastest: it was cut off.
    """
    num_seen = int(seen.sum())
    for axes in permutations(range(3)):
        if seen.transpose(axes).ravel()[:num_seen].all():
            raise InputError(
                f"the last {seen.size - num_seen} of {seen.size} pairs have no row, and pairs without tokens have one: "
                "the file is cut off"
            )
    return (f"{seen.size - num_seen} of {seen.size} pairs have no row and count as 0, though others have a row of 0",)


def layer_ids(table: Table, cells: Column, first_row: int, column: int) -> NDArray[np.int64]:
    """[rows] layer ids of numbers or names of layers."""
    if cells.dtype.kind in "iuf":
        ids = whole_numbers(table, cells, first_row, column)
        if ids.size and ids.max() >= MOST_LAYERS:
            index = int(np.argmax(ids))
            raise bad_cell(table, first_row + index, column, cells[index], f"a layer below {MOST_LAYERS}")
        return ids
    import pandas

    local, names = pandas.factorize(cells)
    numbers = [layer_number(name) if isinstance(name, str) else None for name in names.tolist()]
    is_wrong = np.array([number is None or number >= MOST_LAYERS for number in numbers], dtype=np.bool_)
    if is_wrong.any() or (local < 0).any():
        index = int(np.argmax((local < 0) | is_wrong[local]))
        raise bad_cell(table, first_row + index, column, cells[index], "a layer: 3, layer_3 or model.layers.3")
    return np.array(numbers, dtype=np.int64)[local]


def notes(table: Table, columns: Columns) -> tuple[str, ...]:
    """What was left out or summed."""
    out = columns.left_out
    found = (*table.notes, *((f"column{'s' * (len(out) > 1)} {', '.join(out)} left out",) if out else ()))
    header = table.names or ()
    return found if columns.rank is None else (*found, f"summed over {header[columns.rank].strip()}")


def sorted_codes(codes: Codes) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """[values] the codes in the order of the numbers that they stand for, and these numbers."""
    values = np.array([int(value) for value in codes.values], dtype=np.int64)
    order = np.argsort(values)
    return order, tuple(values[order].tolist())


def in_order(load: NDArray[np.float64], order: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
    """The entries of an axis in another order; a copy only where it is another."""
    return load if np.array_equal(order, np.arange(load.shape[axis])) else np.take(load, order, axis=axis)


def _chance_of_silence(load: NDArray[np.float64]) -> float:
    """How likely an expert has no token in any layer, by the share of the pairs that have none."""
    silent = ~load.any(axis=0)
    return float(silent.mean() ** load.shape[1])


def _num_experts(found: int, is_complete: bool, chance_of_silence: float, options: ReadOptions) -> tuple[int, str]:
    """E, and how it is known: as told, by rows with zeros, or, where no expert is likely silent, by the largest id."""
    told = options.num_experts
    if told is not None:
        if found > told:
            raise InputError(f"the file has an expert {found - 1}: num_experts = {told}")
        return told, ""
    if is_complete:
        return found, ""
    if (found & (found - 1) == 0 or found % 32 == 0) and chance_of_silence < _SURE:
        return found, f" ({found} experts by the largest id)"
    raise InputError(
        f"the largest expert id is {found - 1} and pairs without tokens have no row, so the model may have more than "
        f"{found} experts: give num_experts (--num-experts)"
    )


def by_window(
    load: NDArray[np.float64], codes: Codes, columns: Columns, num_bytes: int
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Windows in order; windows are numbered from 0 and one without a row is empty, steps need not be."""
    if not codes.values:
        return load, ()
    order, values = sorted_codes(codes)
    if columns.step is not None:
        return in_order(load, order, 0), tuple(f"step {value}" for value in values)
    num_windows = values[-1] + 1
    if len(values) == num_windows:  # different numbers from 0 on
        return in_order(load, order, 0), ()
    if num_windows * load[0].size > most_numbers(num_bytes):
        raise InputError(f"window = {values[-1]}: windows are numbered from 0; name the column step if these are steps")
    spread = np.zeros((num_windows, *load.shape[1:]))
    spread[list(values)] = load[order]
    return spread, ()


def _without_columns(load: NDArray[np.float64], ignored: tuple[int, ...]) -> NDArray[np.float64]:
    wrong = [column for column in ignored if not 0 <= column < load.shape[2]]
    if wrong or len(set(ignored)) >= load.shape[2]:
        raise InputError(
            f"ignore_columns (--ignore-columns) = {wrong or list(ignored)}: the file has {load.shape[2]} experts"
        )
    return np.delete(load, list(set(ignored)), axis=2)


def _hint(columns: Columns) -> str:
    if columns.left_out and columns.window is None and columns.step is None and columns.rank is None:
        return (
            f"; column {', '.join(columns.left_out)} was left out: name it window or step if rows are to be windows, "
            "rank if they are to be summed"
        )
    return ""
