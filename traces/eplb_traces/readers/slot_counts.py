"""Checks counts and parses text and JSON for the readers of several dialects."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad, logical_counts
from eplb_traces.files.limits import LARGEST_EXACT, LARGEST_EXACT_FLOAT32
from eplb_traces.readers.dialect import ReadOptions
from eplb_traces.readers.json_fields import json_document

_EXACT = {"float16": 1 << 11, "float32": LARGEST_EXACT_FLOAT32}
_EXACT_BFLOAT16 = 1 << 8
_FEWEST_ROUNDED = 16
_NARROW_BYTES = 2

_logger = logging.getLogger("eplb")


def exact_counts(counts: NDArray[Any], place: str) -> NDArray[np.float64]:
    """Return counts as float64 without losing a token.

    Counts of a type that cannot hold them have lost digits, or wrapped, before they were written: floats from 2^11
    (float16), 2^24 (float32) or 2^8 (bfloat16, as float32) on, and integers of 8 or 16 bits. That is logged, since
    nobody can undo it.

    Raises
    ------
    InputError
        If the array holds no numbers, or integers beyond 2^53.
    """
    if counts.dtype.kind not in "iuf":
        raise InputError(f"{place} is {counts.dtype}: expected integers or floats")
    largest = counts.max(initial=0)
    if counts.dtype.kind in "iu" and largest > LARGEST_EXACT:
        raise InputError(f"{place} has the count {largest}: expected at most {LARGEST_EXACT}")
    _warn_of_narrow_type(counts, float(largest), place)
    with np.errstate(invalid="ignore"):  # a signalling NaN; ExpertLoad refuses it with its place
        return counts.astype(np.float64)


def _warn_of_narrow_type(counts: NDArray[Any], largest: float, place: str) -> None:
    """Log that counts have lost their last digits, or that those of a narrow integer may have wrapped."""
    dtype = counts.dtype
    name, exact = ("bfloat16", _EXACT_BFLOAT16) if _are_bfloat16(counts) else (dtype.name, _EXACT.get(dtype.name))
    if exact is not None and largest >= exact:
        _logger.warning("%s: %s counts up to %.0f have lost their last digits", place, name, largest)
    if dtype.kind not in "iu" or dtype.itemsize > _NARROW_BYTES or 2 * largest <= np.iinfo(dtype).max:
        return
    sums = np.atleast_2d(counts).sum(axis=-1, dtype=np.int64)
    sums = np.where(sums > 0, sums, sums.max(axis=-1, keepdims=True))  # a dense layer has none
    if (sums != sums[..., :1]).any():
        _logger.warning(
            "%s: %s counts up to %.0f, and layers of unlike sums: counts beyond %d have wrapped, if there were any",
            *(place, dtype.name, largest, np.iinfo(dtype).max),
        )


def _are_bfloat16(counts: NDArray[Any]) -> bool:
    """Whether every number of a float32 array is one of bfloat16, whose bits are the upper half, and not by chance."""
    if counts.dtype != np.float32 or np.count_nonzero(counts >= _EXACT_BFLOAT16) < _FEWEST_ROUNDED:
        return False
    bits = np.ascontiguousarray(counts, dtype="=f4").view(np.uint32)
    return not (bits & np.uint32(0xFFFF)).any()


def logical_of_slots(counts: NDArray[np.float64], options: ReadOptions) -> NDArray[np.float64]:
    """Return counts [.., L, E] of experts from counts [.., L, P] of slots, by the map `recorded_under`.

    Raises
    ------
    InputError
        If the map does not fit the counts, misses an expert, or has an id that no expert has.
    """
    option = "recorded_under (--recorded-under)"
    if options.recorded_under is None:
        raise InputError(f"the counts are of slots: give the map that was in force as {option}")
    logical_of_slot = np.asarray(options.recorded_under)
    if logical_of_slot.shape != counts.shape[-2:]:
        raise InputError(
            f"{option} has {' x '.join(map(str, logical_of_slot.shape))} layers x slots: the file has "
            f"{' x '.join(map(str, counts.shape[-2:]))}"
        )
    num_experts = options.num_experts if options.num_experts is not None else int(logical_of_slot.max()) + 1
    if num_experts > logical_of_slot.shape[1]:
        raise InputError(
            f"{option} has {logical_of_slot.shape[1]} slots a layer: expected one of {num_experts} experts"
        )
    if logical_of_slot.min() < -1 or logical_of_slot.max() >= num_experts:
        raise InputError(f"{option} has an id outside 0 to {num_experts - 1}, and -1 for an empty slot")
    check_every_expert(logical_of_slot, num_experts, option)
    return logical_counts(ExpertLoad(counts).tokens.reshape(counts.shape), logical_of_slot, num_experts)


def check_every_expert(logical_of_slot: NDArray[np.integer], num_experts: int, place: str) -> None:
    """Refuse a map [L, P] of ids below `num_experts` that has no slot of an expert, whose tokens nobody counted."""
    for layer, row in enumerate(logical_of_slot):
        missing = np.flatnonzero(np.bincount(row[row >= 0], minlength=num_experts) == 0)
        if missing.size:
            raise InputError(f"{place} has no slot of expert {missing[0]} in layer {layer}")


def agreeing_map(logical_of_slot: NDArray[np.integer], options: ReadOptions) -> frozenset[str]:
    """Check `recorded_under` against the map [L, P] that the file itself has; return the options that were used.

    Raises
    ------
    InputError
        If the two differ.
    """
    told = options.recorded_under
    if told is None:
        return frozenset()
    if not np.array_equal(told, logical_of_slot):
        raise InputError(
            f"recorded_under (--recorded-under) of {' x '.join(map(str, np.shape(told)))} layers x slots differs from "
            f"the file's own map of {' x '.join(map(str, logical_of_slot.shape))}"
        )
    return frozenset({"recorded_under"})


def not_empty(load: ExpertLoad) -> ExpertLoad:
    """Return the load.

    Raises
    ------
    InputError
        If it has no token: a recorder that was never started writes such files.
    """
    if not load.tokens.any():
        raise InputError(f"every count is zero: an empty recording ({load})")
    return load


def matrix_of_text(path: Path, delimiter: str | None) -> NDArray[np.float64]:
    """Read a text of counts, one row a line, as [rows, columns]; `delimiter` None is any white space.

    Raises
    ------
    InputError
        If the text is empty, ragged, or has a cell that is no finite number >= 0.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise InputError("the file is empty")
        matrix = np.loadtxt(lines, delimiter=delimiter, ndmin=2, comments=None)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not a table of counts: {error}") from error
    wrong = ~((matrix >= 0) & (matrix < LARGEST_EXACT))
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"row {row}, column {column} = {matrix[row, column]}: expected a finite number >= 0, below 2^53"
        )
    return matrix


def json_object(path: Path) -> dict[str, object]:
    """Read a file that holds one JSON object."""
    document = json_document(path)
    if not isinstance(document, dict):
        raise InputError(f"$ is a {type(document).__name__}: expected an object")
    return document


def positive_integer(document: dict[str, object], key: str) -> int:
    """Return the integer >= 1 under a key."""
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"$.{key} = {value!r}: expected an integer >= 1")
    return value
