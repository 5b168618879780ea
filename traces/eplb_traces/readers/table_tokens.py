"""Reads the token form of a table, one row for each token and layer with the experts of the choice, as a trace."""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers.dialect import Reading, ReadOptions, required_num_experts
from eplb_traces.readers.layers import moe_rows
from eplb_traces.readers.table import Column, Table, bad_cell, whole_numbers
from eplb_traces.readers.table_cells import Codes
from eplb_traces.readers.table_columns import Columns
from eplb_traces.readers.table_loads import layer_ids, notes, sorted_codes
from eplb_traces.routing_trace import RoutingTrace, TokenBatch

_TOKENS_PER_BATCH = 1 << 15
_MOST_DIGITS = 10


def read_tokens(table: Table, columns: Columns, options: ReadOptions) -> Reading:
    """Read the token form; every token must have one row in every layer.

    A token is known by its request, step and number, as far as there are such columns. Without a column of steps, a
    token's step is its place in its request.

    Raises
    ------
    InputError
        Naming the cell that is wrong, or the token and layer that are there twice or missing; without num_experts.
    """
    num_experts = required_num_experts(options)
    rows = _gathered(table, columns)
    kept, used = _without_ignored(rows.ids, options)
    order, ids = sorted_codes(rows.layers)
    row_of = _row_of_each(table, columns, rows)[:, order]
    found = None if columns.are_positions and ids == tuple(range(len(ids))) else ids
    layers = moe_rows(np.zeros(len(ids), dtype=np.bool_), found, options)
    shape = ModelShape(
        len(layers.rows),
        num_experts,
        kept.shape[1],
        moe_layer_ids=layers.moe_layer_ids,
        num_hidden_layers=layers.num_hidden_layers,
    )
    first = row_of[:, 0]
    request = rows.request[first]
    step = rows.step[first] if columns.step is not None else _place_in_request(request)
    row_of = row_of[:, layers.rows]
    narrow = _narrowed(kept, num_experts)
    batches = []
    for start in range(0, len(first), _TOKENS_PER_BATCH):
        tokens = slice(start, start + _TOKENS_PER_BATCH)
        batches.append(TokenBatch(shape, narrow[row_of[tokens]], step[tokens], request[tokens]))
    header = table.names or ()
    named = (columns.request, columns.step, columns.token, columns.layer)
    form = f"token form {', '.join(header[i].strip() for i in named if i is not None)}, {kept.shape[1]} choices"
    said = notes(table, columns) + layers.notes
    return Reading(content=RoutingTrace(shape, batches, len(first)), form=form, notes=said, used=used)


class _Choices(NamedTuple):
    """All rows of the token form."""

    ids: NDArray[np.int64]
    """[rows, K]"""
    token_of: NDArray[np.int64]
    """[rows] the token, numbered as they appear."""
    layer_of: NDArray[np.int64]
    step: NDArray[np.int64]
    """[rows] zeros where no column has it."""
    request: NDArray[np.int64]
    layers: Codes


def _gathered(table: Table, columns: Columns) -> _Choices:
    layer, token = columns.layer or 0, columns.token or 0
    keys = [i for i in (columns.step, columns.request) if i is not None]
    read = [token, layer, *keys]
    layers, requests, tokens = Codes(), Codes(), Codes()
    parts: list[tuple[NDArray[np.int64], ...]] = []
    row = 0
    for chunk in table.chunks([*read, *columns.values]):
        column = dict(zip(read, chunk, strict=False))
        none = np.zeros(len(chunk[0]), dtype=np.int64)
        step = none if columns.step is None else whole_numbers(table, column[columns.step], row, columns.step)
        request = none if columns.request is None else requests.of(column[columns.request])
        ids = _ids(table, chunk[len(read) :], columns.values, row)
        if parts and ids.shape[1] != parts[0][0].shape[1]:
            raise InputError(
                f"{table.place(row, columns.values[0])} has {ids.shape[1]} ids: expected {parts[0][0].shape[1]}"
            )
        layer_of = layers.of(layer_ids(table, column[layer], row, layer))
        parts.append((ids, tokens.of(column[token]), layer_of, step, request))
        row += len(none)
    if not row:
        raise InputError("the table has a header and no rows")
    ids, number, layer_of, step, request = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Choices(ids, _tokens(step, request, number), layer_of, step, request, layers)


def _tokens(step: NDArray[np.int64], request: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
    """[rows] one number for each step, request and number of a token."""
    token = number
    for key in (request, step):
        token = Codes().of(token * (int(key.max()) + 1) + key)
    return token


def _ids(table: Table, cells: list[Column], columns: tuple[int, ...], row: int) -> NDArray[np.int64]:
    """[rows, K] of K columns of ids, or of one with lists or texts of ids."""
    if len(cells) > 1 or cells[0].dtype.kind in "iuf":
        matrix = [whole_numbers(table, of, row, i) for i, of in zip(columns, cells, strict=True) if of.ndim == 1]
        if len(matrix) == len(cells):
            return np.stack(matrix, axis=1)
        if cells[0].dtype.kind not in "iu" or (cells[0] < 0).any():
            raise InputError(f"{table.place(row, columns[0])}: expected lists of ids >= 0")
        return cells[0].astype(np.int64)
    rows: list[list[int]] = []
    for i, text in enumerate(cells[0].tolist()):
        parts = re.split(r"[\s,;|]+", str(text).strip().strip("[](){}").strip())
        if not all(part.isdecimal() and len(part) < _MOST_DIGITS for part in parts) or (
            rows and len(parts) != len(rows[0])
        ):
            expected = f"{len(rows[0])} ids" if rows else "ids"
            raise bad_cell(table, row + i, columns[0], text, f"{expected} >= 0 between spaces")
        rows.append([int(part) for part in parts])
    return np.array(rows, dtype=np.int64)


def _row_of_each(table: Table, columns: Columns, rows: _Choices) -> NDArray[np.int64]:
    """[tokens, layers] the row of each token and layer."""
    num_layers = len(rows.layers.values)
    flat = rows.token_of * num_layers + rows.layer_of
    num_tokens = int(rows.token_of.max()) + 1
    row_of = np.full(num_tokens * num_layers, -1)
    row_of[flat] = np.arange(len(flat))
    repeated = row_of[flat] != np.arange(len(flat))
    if repeated.any():
        row = int(row_of[flat[np.argmax(repeated)]])
        layer = rows.layers.values[rows.layer_of[row]]
        raise InputError(
            f"{table.place(row, columns.token or 0)}: this token has layer {layer} twice; expected one number for each "
            "token of a step and request, not ids of the vocabulary"
        )
    if (row_of < 0).any():
        token, layer_code = divmod(int(np.argmax(row_of < 0)), num_layers)
        first = int(np.argmax(rows.token_of == token))
        raise InputError(
            f"{table.place(first, columns.token or 0)}: it has no row for layer {rows.layers.values[layer_code]}"
        )
    return row_of.reshape(num_tokens, num_layers)


def _narrowed(ids: NDArray[np.int64], num_experts: int) -> NDArray[np.uint16]:
    """[rows, K] as a batch has them.

    Raises
    ------
    InputError
        For the first id of no expert.
    """
    wrong = ids >= num_experts
    if wrong.any():
        row, k = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(f"row {row}, choice {k} = {ids[row, k]}: expected 0 <= id < num_experts = {num_experts}")
    return ids.astype(np.uint16)


def _place_in_request(request: NDArray[np.int64]) -> NDArray[np.int64]:
    """[tokens] how many tokens of the same request come before."""
    order = np.argsort(request, kind="stable")
    sizes = np.bincount(request)
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place


def _without_ignored(ids: NDArray[np.int64], options: ReadOptions) -> tuple[NDArray[np.int64], frozenset[str]]:
    """[rows, K] without the ignored choices; every row must lose as many."""
    used = set()
    if options.ignore_columns:
        if max(options.ignore_columns) >= ids.shape[1]:
            raise InputError(f"ignore_columns = {list(options.ignore_columns)}: a token has {ids.shape[1]} choices")
        ids = np.delete(ids, list(set(options.ignore_columns)), axis=1)
        used.add("ignore_columns")
    ignored = np.isin(ids, options.ignore_ids)
    if ignored.any():
        used.add("ignore_ids")
        lost = ignored.sum(axis=1)
        if (lost != lost[0]).any():
            row = int(np.argmax(lost != lost[0]))
            raise InputError(
                f"row {row}: {lost[row]} of its ids are ignored, {lost[0]} of row 0: expected as many in every row"
            )
        ids = ids[~ignored].reshape(len(ids), -1)
    if not ids.shape[1]:
        raise InputError("every choice is ignored")
    return ids, frozenset(used)
