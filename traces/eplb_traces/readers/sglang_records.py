"""Converts the records of SGLang's per_pass and per_token recordings to loads and traces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import logical_counts
from eplb_traces.model_shape import ModelShape, id_ranges
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.sglang_counts import numbers, reading_of_counts, shape_of_moe_layers
from eplb_traces.readers.slot_counts import agreeing_map, check_every_expert, exact_counts
from eplb_traces.routing_trace import RoutingTrace, TokenBatch, window_start

_MOST_RANKS = 1 << 16
_PADDING = -1
_TOPK_IDS = "topk_ids_of_layer"


@final
@dataclass(frozen=True)
class RankRecording:
    """What one rank recorded.

    Parameters
    ----------
    records
        One dictionary a forward pass.
    physical_to_logical_map
        [num_hidden_layers, P]
    """

    records: Sequence[Mapping[str, object]]
    physical_to_logical_map: NDArray[Any]


@final
@dataclass(frozen=True)
class _PassTokens:
    """The tokens of one rank in one pass.

    Parameters
    ----------
    chosen_physical
        [num_hidden_layers, T, K or more], padded with -1.
    """

    pass_id: int
    rank: int
    chosen_physical: NDArray[np.int64]
    sequence_lengths: tuple[int, ...]


def reading_of_passes(recordings: Sequence[RankRecording], options: ReadOptions) -> Reading:
    """Sum the ranks' counts of each pass, in ascending order, `options.window` passes a window, one by default."""
    logical_of_slot = _common_map(recordings)
    num_experts = int(logical_of_slot.max()) + 1
    _check_no_repetition(recordings)
    counts: dict[int, NDArray[np.float64]] = {}
    first = min(_pass_ids(recordings), default=0)
    for place, record in _placed_records(recordings):
        with naming_place(place):
            physical = numbers(record.get("global_physical_count"), "global_physical_count")
            if physical.shape != logical_of_slot.shape:
                raise InputError(f"global_physical_count has shape {physical.shape}: expected {logical_of_slot.shape}")
            key = window_start(_integer(record, "forward_pass_id"), first, options.window or 1)
            physical = exact_counts(physical, "global_physical_count")
            logical = logical_counts(physical, logical_of_slot, num_experts)
        counts[key] = counts[key] + logical if key in counts else logical
    if not counts:
        raise InputError("records is empty: an empty recording")
    stacked = np.stack([counts[key] for key in sorted(counts)])
    used = agreeing_map(logical_of_slot, options)
    reading = reading_of_counts(stacked, options, "SGLang recorder, per_pass records, physical counts made logical")
    return replace(reading, used=reading.used | used, notes=reading.notes + _missing_ranks(recordings))


def reading_of_tokens(recordings: Sequence[RankRecording], options: ReadOptions) -> Reading:
    """Put the ranks' tokens in one trace: step = forward pass, source_rank = the recording rank.

    The recorder names no requests: each sequence of each pass counts as a request of its own. `options.ignore_ids` and
    `options.ignore_columns` are about the physical ids of the file; a fused shared expert has an id beyond the slots.
    """
    form = "SGLang recorder, per_token records, physical ids"
    logical_of_slot = _common_map(recordings)
    _check_no_repetition(recordings)
    kept = [_without_ignored(recording, len(logical_of_slot), options) for recording in recordings]
    used = {"ignore_columns"} if options.ignore_columns else set()
    if any(num_ignored for _, num_ignored in kept):
        used.add("ignore_ids")
    notes = tuple(
        f"{what} {', '.join(map(str, which))} left out"
        for what, which in (("physical ids", options.ignore_ids), ("columns", options.ignore_columns))
        if which
    )
    trace = _trace_of_tokens([recording for recording, _ in kept], logical_of_slot)
    return Reading(content=trace, form=form, notes=notes + _missing_ranks(recordings), used=frozenset(used))


def _without_ignored(recording: RankRecording, num_layers: int, options: ReadOptions) -> tuple[RankRecording, int]:
    """The recording with the other choices alone, moved to the front, and how many ids were ignored."""
    if not (options.ignore_ids or options.ignore_columns):
        return recording, 0
    records, num_ignored = [], 0
    for i, record in enumerate(recording.records):
        with naming_place(f"records[{i}]"):
            chosen = _topk_ids(record, num_layers)
            chosen = np.delete(chosen, _columns_to_ignore(chosen.shape[2], options), axis=2)
        ignored = np.isin(chosen, np.array(options.ignore_ids, dtype=np.int64)) & (chosen != _PADDING)
        num_ignored += int(ignored.sum())
        chosen = np.where(ignored, _PADDING, chosen)
        order = np.argsort(chosen == _PADDING, axis=2, kind="stable")
        records.append({**record, _TOPK_IDS: np.take_along_axis(chosen, order, axis=2)})
    return replace(recording, records=records), num_ignored


def _columns_to_ignore(num_columns: int, options: ReadOptions) -> list[int]:
    columns = sorted(set(options.ignore_columns))
    if columns and (columns[0] < 0 or columns[-1] >= num_columns or len(columns) == num_columns):
        raise InputError(
            f"ignore_columns = {', '.join(map(str, columns))} (--ignore-columns): {_TOPK_IDS} has the columns 0 to "
            f"{num_columns - 1}, of which one at least has to stay"
        )
    return columns


def _trace_of_tokens(recordings: Sequence[RankRecording], logical_of_slot: NDArray[np.int64]) -> RoutingTrace:
    passes = []
    for place, record in _placed_records(recordings):
        with naming_place(place):
            passes.append(_pass_tokens(record, logical_of_slot.shape))
    passes = [tokens for tokens in passes if (tokens.chosen_physical != _PADDING).any()]
    if not passes:
        raise InputError("no record has a token: an empty recording")
    passes.sort(key=lambda tokens: (tokens.pass_id, tokens.rank))
    moe_layers = np.logical_or.reduce([(p.chosen_physical != _PADDING).any(axis=(1, 2)) for p in passes])
    top_k = int(np.logical_or.reduce([(p.chosen_physical != _PADDING).any(axis=(0, 1)) for p in passes]).sum())
    shape = shape_of_moe_layers(moe_layers, int(logical_of_slot.max()) + 1, top_k=top_k)
    batches = []
    first_request = 0
    for tokens in passes:
        with naming_place(f"forward_pass_id {tokens.pass_id}, rank {tokens.rank}"):
            batches.append(_batch(tokens, shape, logical_of_slot, first_request))
        first_request += len(tokens.sequence_lengths)
    return RoutingTrace(shape, batches)


def _common_map(recordings: Sequence[RankRecording]) -> NDArray[np.int64]:
    """Return the map [num_hidden_layers, P] that all ranks share."""
    first = recordings[0].physical_to_logical_map
    if first.ndim != 2 or first.dtype.kind not in "iu" or not first.size or first.min() < 0:
        raise InputError(f"last_physical_to_logical_map of shape {first.shape}: expected [layers, slots] of ids >= 0")
    if not all(np.array_equal(first, recording.physical_to_logical_map) for recording in recordings):
        raise InputError("last_physical_to_logical_map differs between the ranks: not one recording")
    if first.max() >= first.shape[1]:
        raise InputError(
            f"last_physical_to_logical_map has the id {first.max()} and {first.shape[1]} slots: expected a slot of "
            "each expert"
        )
    check_every_expert(first, int(first.max()) + 1, "last_physical_to_logical_map")
    return first.astype(np.int64)


def _check_no_repetition(recordings: Sequence[RankRecording]) -> None:
    """Refuse a pass that a rank has recorded twice: the dumps of two runs, or copies of a file, in one folder."""
    seen: set[tuple[int, str, str]] = set()
    for place, record in _placed_records(recordings):
        with naming_place(place):
            pass_id = _integer(record, "forward_pass_id")
            part = (pass_id, str(record.get("rank")), str(record.get("gatherer_key")))
            if part in seen:
                raise InputError(
                    f"forward_pass_id {pass_id} of rank {part[1]} is there twice, and would count twice: expected the "
                    "files of one recording, one a rank"
                )
            seen.add(part)


def _missing_ranks(recordings: Sequence[RankRecording]) -> tuple[str, ...]:
    """A note on the ranks below the highest that recorded nothing."""
    ranks = {record.get("rank") for _, record in _placed_records(recordings)}
    known = [rank for rank in ranks if isinstance(rank, int)]
    missing = sorted(set(range(min(max(known, default=0), _MOST_RANKS))) - set(known))
    return (f"no records of rank{'s' * (len(missing) > 1)} {id_ranges(missing)}",) if missing else ()


def _placed_records(recordings: Sequence[RankRecording]) -> list[tuple[str, Mapping[str, object]]]:
    return [(f"records[{i}]", record) for recording in recordings for i, record in enumerate(recording.records)]


def _pass_ids(recordings: Sequence[RankRecording]) -> list[int]:
    ids = []
    for place, record in _placed_records(recordings):
        with naming_place(place):
            ids.append(_integer(record, "forward_pass_id"))
    return ids


def _integer(record: Mapping[str, object], key: str) -> int:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{key} = {value!r}: expected an integer >= 0")
    return value


def _topk_ids(record: Mapping[str, object], num_layers: int) -> NDArray[Any]:
    """[num_layers, T, K] physical ids."""
    if _TOPK_IDS not in record:
        raise InputError(f"no {_TOPK_IDS!r}: a per_pass recording holds counts, only a per_token one has tokens")
    chosen = numbers(record[_TOPK_IDS], _TOPK_IDS)
    if chosen.ndim != 3 or chosen.shape[0] != num_layers or chosen.dtype.kind not in "iu":
        raise InputError(
            f"{_TOPK_IDS} of {chosen.dtype} has shape {chosen.shape}: expected [{num_layers} layers, tokens, top-k] of "
            "integers"
        )
    return chosen


def _pass_tokens(record: Mapping[str, object], map_shape: tuple[int, ...]) -> _PassTokens:
    num_layers, num_slots = map_shape
    chosen = _topk_ids(record, num_layers)
    wrong = (chosen < _PADDING) | (chosen >= num_slots)
    if wrong.any():
        layer, token, k = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"{_TOPK_IDS}[layer {layer}, token {token}] = {chosen[layer, token, k]}: "
            f"expected a physical id below {num_slots}, or -1; ids that are no placed experts: give ignore_ids "
            "(--ignore-ids)"
        )
    lengths = record.get("extend_seq_lens")
    num_tokens = int(chosen.shape[1])
    if not isinstance(lengths, list) or sum(lengths) != num_tokens:
        lengths = [1] * num_tokens  # decoding: one token of each sequence
    return _PassTokens(
        _integer(record, "forward_pass_id"), _integer(record, "rank"), chosen.astype(np.int64), tuple(lengths)
    )


def _batch(
    tokens: _PassTokens, shape: ModelShape, logical_of_slot: NDArray[np.int64], first_request: int
) -> TokenBatch:
    """Translate to logical ids; drop tokens that are padding in every layer."""
    layers = np.array(shape.moe_layer_ids)
    chosen = tokens.chosen_physical[layers, :, : shape.top_k]
    is_padding = chosen == _PADDING
    kept = ~is_padding.all(axis=(0, 2))
    half_padded = is_padding.any(axis=(0, 2)) & kept
    if half_padded.any():
        raise InputError(f"{_TOPK_IDS}: token {int(np.argmax(half_padded))} has ids in some layers and -1 in others")
    logical = logical_of_slot[layers[:, None, None], chosen[:, kept]]
    num_sequences = len(tokens.sequence_lengths)
    request = np.repeat(np.arange(first_request, first_request + num_sequences), tokens.sequence_lengths)[kept]
    return TokenBatch(
        shape,
        logical.transpose(1, 0, 2),
        np.full(len(request), tokens.pass_id),
        request,
        np.full(len(request), tokens.rank, dtype=np.int32),
    )
