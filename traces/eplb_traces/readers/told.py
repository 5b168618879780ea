"""Checks what the caller said about a file against what was read, and adds what the file does not say."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape, id_ranges
from eplb_traces.readers.dialect import Reading, ReadOptions, Wanted
from eplb_traces.routing_trace import RoutingTrace, TokenBatch

_FEWEST_TOTALS = 3
_FEWEST_RANKS = 2
_FEWEST_EXPERTS = 8
_PERCENT = 100.0
_FEWEST_RISES = 32
"""Counts that do not fall from a window to the next, for them to be no chance."""
_MODEL = ("num_experts", "top_k", "moe_layer_ids", "num_hidden_layers")
_MUST_BE_USED = {
    "ignore_ids": "--ignore-ids",
    "ignore_columns": "--ignore-columns",
    "recorded_under": "--recorded-under",
}


def with_told(reading: Reading, options: ReadOptions) -> Reading:
    """The reading with the caller's model.

    Raises
    ------
    InputError
        If the caller's values contradict the file, or an option had no effect on it.
    """
    for name, flag in _MUST_BE_USED.items():
        value = getattr(options, name)
        if value is not None and not (isinstance(value, tuple) and not value) and name not in reading.used:
            raise InputError(f"{name} ({flag}) has no effect on this file, which was read as {reading.form}")
    if options.wants is Wanted.TRACE and isinstance(reading.content, ExpertLoad):
        raise InputError(
            f"{reading.form} holds tokens per expert, not the choices of single tokens: expected a token-level trace"
        )
    shape = _merged(reading.content.shape, options)
    content = reading.content if shape == reading.content.shape else _with_shape(reading.content, shape)
    notes = _silent_block(content)
    if isinstance(content, ExpertLoad) and not reading.is_own:
        notes += _running_totals(content) + _ranks_as_windows(content) + _percentages(content)
    return replace(reading, content=content, notes=reading.notes + notes)


def _merged(found: ModelShape, options: ReadOptions) -> ModelShape:
    told_layers = None if options.shape is None else options.shape.num_layers
    if told_layers not in (None, found.num_layers):
        raise InputError(f"num_layers = {told_layers}: the file has {found.num_layers}")
    for name in _MODEL:
        told, in_file = getattr(options, name), getattr(found, name)
        if told is not None and in_file is not None and told != in_file:
            told_text, file_text = (id_ranges(v) if isinstance(v, tuple) else v for v in (told, in_file))
            raise InputError(f"{name} = {told_text}: the file has {file_text}")
    ids = found.moe_layer_ids if options.moe_layer_ids is None else tuple(options.moe_layer_ids)
    if ids is not None and len(ids) != found.num_layers:
        raise InputError(f"moe_layer_ids = {id_ranges(ids)}, {len(ids)} layers: the file has {found.num_layers}")
    grouped = found if options.shape is None or found.num_expert_groups > 1 else options.shape
    return replace(
        found,
        top_k=found.top_k or options.top_k,
        num_expert_groups=grouped.num_expert_groups,
        top_k_groups=grouped.top_k_groups,
        moe_layer_ids=ids,
        num_hidden_layers=found.num_hidden_layers or options.num_hidden_layers,
    )


def _with_shape(content: ExpertLoad | RoutingTrace, shape: ModelShape) -> ExpertLoad | RoutingTrace:
    if isinstance(content, RoutingTrace):
        return RoutingTrace(shape, _Reshaped(content, shape), domain_names=content.domain_names)
    return ExpertLoad(content.tokens, content.weights, content.labels or None, shape)


@final
@dataclass(frozen=True)
class _Reshaped:
    """The batches of a trace with more said about the model."""

    trace: RoutingTrace
    shape: ModelShape

    def __iter__(self) -> Iterator[TokenBatch]:
        for batch in self.trace.batches():
            yield replace(batch, shape=self.shape)

    def column(self, name: str) -> Iterator[NDArray[Any]]:
        """Steps or requests, as they are."""
        return self.trace.column(name)


def _silent_block(content: ExpertLoad | RoutingTrace) -> tuple[str, ...]:
    """A note where all layers have tokens for one rank's block of experts alone, or for all but one."""
    if isinstance(content, RoutingTrace):
        return ()
    active = content.total.any(axis=0)
    num_active = int(active.sum())
    if num_active in (0, active.size) or active.size < 8:
        return ()
    for experts, state in ((np.flatnonzero(active), "alone have"), (np.flatnonzero(~active), "have no")):
        size, first = experts.size, int(experts[0])
        is_block = experts[-1] - first + 1 == size and size > 1 and active.size % size == 0 and first % size == 0
        if is_block and active.size > size:
            block = f"experts {first}-{first + size - 1} {state} tokens in every layer"
            num_ranks = active.size // size
            rank = first // size
            if state == "alone have":
                return (f"{block}, as if one rank of {num_ranks} had recorded",)
            return (f"{block}, as if rank {rank} of {num_ranks} had not recorded",)
    return ()


def _running_totals(content: ExpertLoad) -> tuple[str, ...]:
    """A note where no count falls from one window to the next, as in totals since the start of a recording."""
    if content.num_windows < _FEWEST_TOTALS:
        return ()
    num_rises = 0
    for before, after in pairwise(content.tokens):
        rises = np.count_nonzero(after > before)
        if not rises or (after < before).any():
            return ()
        num_rises += int(rises)
    if num_rises < _FEWEST_RISES:
        return ()
    return ("no count falls from one window to the next: if these are running totals, give their differences",)


def _ranks_as_windows(content: ExpertLoad) -> tuple[str, ...]:
    """A note where no expert has tokens in two windows, as where each is what one rank counted."""
    seen = np.zeros(content.num_experts, dtype=np.bool_)
    for window in content.tokens:
        active = window.any(axis=0)
        if not active.any() or (active & seen).any():
            return ()
        seen |= active
    if content.num_windows < _FEWEST_RANKS or content.num_experts < _FEWEST_EXPERTS:
        return ()
    return ("no expert has tokens in two windows: if these are ranks, not times, sum them (--window sum)",)


def _percentages(content: ExpertLoad) -> tuple[str, ...]:
    """A note where fractions add up to 100 in every layer."""
    for window in content.tokens:
        sums = window.sum(axis=1)
        if not np.allclose(sums[sums > 0], _PERCENT, rtol=0, atol=1) or (window == np.floor(window)).all():
            return ()
    return ("every layer sums to 100: percentages of the tokens, not tokens",)
