"""Converts a load to a table of (window, layer, expert, tokens) and back, for eplb's Parquet files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.limits import check_size
from eplb_traces.model_shape import ModelShape

LONG_FORM_COLUMNS = ("window", "layer", "expert", "tokens")
_INDEX_COLUMNS = LONG_FORM_COLUMNS[:3]


@final
@dataclass(frozen=True)
class LoadFrame:
    """The size, weights and labels of a load, which the rows of the table do not contain."""

    shape: ModelShape
    weights: tuple[float, ...]
    labels: tuple[str, ...]
    num_bytes: int
    """Of the file."""


def long_form(load: ExpertLoad) -> dict[str, NDArray[Any]]:
    """Return the entries above zero as columns, in the order window, layer, expert."""
    window, layer, expert = np.nonzero(load.tokens)
    return {
        "window": window.astype(np.int64),
        "layer": layer.astype(np.int64),
        "expert": expert.astype(np.int64),
        "tokens": load.tokens[window, layer, expert],
    }


def load_from_long_form(columns: Mapping[str, NDArray[Any]], frame: LoadFrame) -> ExpertLoad:
    """Build a load from columns of equal length; entries without a row are zero.

    Parameters
    ----------
    columns
        The four columns of LONG_FORM_COLUMNS.
    frame
        The size of the load.

    Raises
    ------
    InputError
        Naming the first row with an invalid index or count, or that repeats an earlier row.
    """
    index = [_checked_index(columns[name], name) for name in _INDEX_COLUMNS]
    size = (len(frame.weights), frame.shape.num_layers, frame.shape.num_experts)
    _check_limits(index, size)
    check_size(size, frame.num_bytes, "the load of windows x layers x experts in the metadata")
    _check_no_repetition(index, size)
    tokens = np.zeros(size)
    tokens[tuple(index)] = columns["tokens"]
    return ExpertLoad(tokens, np.array(frame.weights), frame.labels or None, frame.shape)


def _checked_index(column: NDArray[Any], name: str) -> NDArray[np.int64]:
    wrong = ~(np.isfinite(column) & (column >= 0) & (column == np.floor(column)))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"row {row}: {name} = {column[row]}: expected an integer >= 0")
    return column.astype(np.int64)


def _check_limits(index: list[NDArray[np.int64]], size: tuple[int, ...]) -> None:
    for name, column, limit in zip(_INDEX_COLUMNS, index, size, strict=True):
        beyond = column >= limit
        if beyond.any():
            row = int(np.argmax(beyond))
            raise InputError(f"row {row}: {name} = {column[row]}: expected 0 to {limit - 1}")


def _check_no_repetition(index: list[NDArray[np.int64]], size: tuple[int, ...]) -> None:
    flat = np.ravel_multi_index(tuple(index), size)
    _, first_rows = np.unique(flat, return_index=True)
    if len(first_rows) == len(flat):
        return
    row = int(np.setdiff1d(np.arange(len(flat)), first_rows)[0])
    place = ", ".join(f"{name} {column[row]}" for name, column in zip(_INDEX_COLUMNS, index, strict=True))
    raise InputError(f"row {row}: {place} is there twice")
