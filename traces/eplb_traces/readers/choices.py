"""Builds a trace from the choices of tokens, without ids and columns that are no placed experts.

Rows in which nothing was chosen are dense layers, and tokens without any choice were not computed (a cached prefix).
A choice of K > 1 zeros is none: engines return ids from a buffer that starts as zeros. Where tokens keep unlike numbers
of choices after `ignore_ids`, they are counted: a trace has K choices for every token.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape, id_ranges
from eplb_traces.readers.dialect import Reading, ReadOptions, required_num_experts
from eplb_traces.readers.layers import MoeRows
from eplb_traces.routing_trace import ALL_STEPS, RoutingTrace, TokenBatch, window_start
from eplb_traces.windows import window_length

_FEWEST_TOKENS = 4

_logger = logging.getLogger("eplb")

Column = NDArray[Any] | None


class ChooseRows(Protocol):
    """Chooses the rows that are MoE layers: `layers.hidden_layer_rows`, or `layers.moe_rows` with its row ids."""

    def __call__(self, silent: NDArray[np.bool_], /, *, options: ReadOptions) -> MoeRows:
        """`silent` [rows] is whether a row has no choice."""
        ...


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Choices:
    """The choices of some tokens as a file has them.

    Parameters
    ----------
    place
        For messages.
    ids
        [T, rows, K] of integers.
    step, request, source_rank, domain
        [T], as in `TokenBatch`.
    """

    place: str
    ids: NDArray[Any]
    step: NDArray[Any]
    request: NDArray[Any]
    source_rank: Column = None
    domain: Column = None

    def select(self, tokens: NDArray[np.bool_], ids: NDArray[Any]) -> "Choices":
        """Some of the tokens, with other ids."""
        columns = {name: getattr(self, name) for name in ("step", "request", "source_rank", "domain")}
        kept = {
            name: column[tokens] if column is not None and len(column) == len(tokens) else column
            for name, column in columns.items()
        }
        return replace(self, ids=ids, **kept)


def reading_of_choices(
    parts: Sequence[Choices],
    options: ReadOptions,
    form: str,
    *,
    choose_rows: ChooseRows,
    domain_names: Sequence[str] = (),
) -> Reading:
    """Build a trace, or the counted load where tokens have unlike numbers of placed choices.

    Parameters
    ----------
    parts
        At least one, all with the same rows and K.
    options
        `num_experts` is needed.
    form
        For the reading.
    choose_rows
        Which rows are MoE layers.
    domain_names
        As in `RoutingTrace`.

    Raises
    ------
    InputError
        Naming the place, token and layer; also if there is no token.
    """
    used = {"ignore_ids"} if any(_ignored(part.ids, options).any() for part in parts) else set()
    if options.ignore_columns:
        parts = [_without_columns(part, options.ignore_columns) for part in parts]
        used.add("ignore_columns")
    nothing = [_nothing_chosen(part.ids, options) for part in parts]
    silent = np.logical_and.reduce([of_part.all(axis=0) for of_part in nothing])
    if options.moe_layer_ids is None:
        _check_first_choices(parts)
    layers = choose_rows(silent, options=options)
    computed: list[NDArray[np.bool_]] = [np.any(~of_part[:, layers.rows], axis=1) for of_part in nothing]
    parts = [part.select(c, part.ids[c][:, layers.rows]) for part, c in zip(parts, computed, strict=True)]
    notes = layers.notes + _left_out(computed, options, "ignore_ids" in used)
    content = _content(parts, layers, options, domain_names)
    if isinstance(content, ExpertLoad):
        notes += ("tokens have unlike numbers of choices of placed experts: counted, no token-level trace",)
        used.add("window")
    return Reading(content=content, form=form, notes=notes, used=frozenset(used))


def _check_first_choices(parts: Sequence[Choices]) -> None:
    """Refuse rows that are 0 for all tokens where K = 1: a dense layer in a buffer of zeros, or a layer of expert 0."""
    num_tokens = sum(len(part.ids) for part in parts)
    if parts[0].ids.shape[2] > 1 or num_tokens < _FEWEST_TOKENS:
        return
    zeros = np.flatnonzero(np.logical_and.reduce([(part.ids == 0).all(axis=(0, 2)) for part in parts]))
    if zeros.size and zeros.size < parts[0].ids.shape[1]:
        raise InputError(
            f"rows {id_ranges(zeros.tolist())} are 0 for all {num_tokens} tokens: dense layers, or layers that only "
            "expert 0 serves; give moe_layer_ids (--moe-layers) to say which layers have experts"
        )


def _left_out(computed: Sequence[NDArray[np.bool_]], options: ReadOptions, ids_left_out: bool) -> tuple[str, ...]:
    num_tokens = sum(int((~of_part).sum()) for of_part in computed)
    notes = []
    if num_tokens:
        notes.append(f"{num_tokens} tokens have no choice in any layer, as where a prefix was cached: left out")
        _logger.warning(notes[0])
    if ids_left_out:
        notes.append(f"expert ids {', '.join(map(str, options.ignore_ids))} left out")
    if options.ignore_columns:
        notes.append(f"columns {', '.join(map(str, options.ignore_columns))} left out")
    return tuple(notes)


def _ignored(ids: NDArray[Any], options: ReadOptions) -> NDArray[np.bool_]:
    return np.isin(ids, np.array(options.ignore_ids, dtype=np.int64))


def _nothing_chosen(ids: NDArray[Any], options: ReadOptions) -> NDArray[np.bool_]:
    """[T, rows] whether a token has no choice in a row."""
    largest_nothing = 0 if ids.shape[2] > 1 else -1
    nothing: NDArray[np.bool_] = np.all(ids <= largest_nothing, axis=2) | _ignored(ids, options).all(axis=2)
    return nothing


def _without_columns(part: Choices, columns: Sequence[int]) -> Choices:
    top_k = part.ids.shape[2]
    wrong = [column for column in columns if not 0 <= column < top_k]
    if wrong or len(set(columns)) >= top_k:
        raise InputError(
            f"ignore_columns = {', '.join(map(str, columns))} (--ignore-columns): {part.place} has the columns 0 to "
            f"{top_k - 1} of choices, of which one at least has to stay"
        )
    return replace(part, ids=np.delete(part.ids, sorted(set(columns)), axis=2))


def _content(
    parts: Sequence[Choices], layers: MoeRows, options: ReadOptions, domain_names: Sequence[str]
) -> RoutingTrace | ExpertLoad:
    placed = [~_ignored(part.ids, options) for part in parts]
    num_choices = np.unique(np.concatenate([of_part.sum(axis=2).ravel() for of_part in placed]))
    top_k = int(num_choices[0]) if num_choices.size == 1 else None
    shape = ModelShape(
        len(layers.rows),
        required_num_experts(options),
        top_k,
        moe_layer_ids=layers.moe_layer_ids,
        num_hidden_layers=layers.num_hidden_layers,
    )
    if top_k == shape.num_experts > 1:
        raise InputError(f"every token has {top_k} choices, as many as there are experts: counts, not expert ids?")
    if top_k is None:
        return _counted(parts, placed, shape, options.window)
    batches = []
    for part, of_part in zip(parts, placed, strict=True):
        ids = part.ids if of_part.all() else part.ids[of_part].reshape(*part.ids.shape[:2], top_k)
        with naming_place(part.place), _naming_ignore_ids(ids, shape.num_experts):
            batches.append(TokenBatch(shape, ids, part.step, part.request, part.source_rank, part.domain))
    return RoutingTrace(shape, batches, domain_names=domain_names)


@contextmanager
def _naming_ignore_ids(ids: NDArray[Any], num_experts: int) -> Iterator[None]:
    """Add the option that helps to a message on an id that no expert has."""
    try:
        yield
    except InputError as error:
        if ids.dtype.kind not in "iu" or not ids.size or (ids.min() >= 0 and ids.max() < num_experts):
            raise
        raise InputError(f"{error}; ids that are no placed experts: give ignore_ids (--ignore-ids)") from error


def _counted(
    parts: Sequence[Choices], placed: Sequence[NDArray[np.bool_]], shape: ModelShape, window: int | None
) -> ExpertLoad:
    """Count placed choices, `window` steps a window; None: as `eplb_traces.windows` cuts a trace."""
    steps = np.unique(np.concatenate([np.asarray(part.step, dtype=np.int64) for part in parts]))
    first = int(steps[0])
    if window is None:
        num_choices = sum(int(of_part.sum()) for of_part in placed) // shape.num_layers
        window = window_length(steps, num_choices, shape.num_experts)
    counts: dict[int, NDArray[np.int64]] = {}
    size = (shape.num_layers, shape.num_experts)
    for part, of_part in zip(parts, placed, strict=True):
        token, layer, k = np.nonzero(of_part)
        ids = part.ids[token, layer, k].astype(np.int64)
        wrong = (ids < 0) | (ids >= shape.num_experts)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"{part.place}: expert_ids[token {token[at]}, layer {layer[at]}] = {ids[at]}: expected 0 <= id < "
                f"{shape.num_experts}; ids that are no placed experts: give ignore_ids (--ignore-ids)"
            )
        step = np.asarray(part.step)
        start = window_start(step.astype(np.int64), first, window)
        for value in np.unique(start).tolist():
            inside = start[token] == value
            found = np.bincount(layer[inside] * size[1] + ids[inside], minlength=size[0] * size[1]).reshape(size)
            counts[value] = counts[value] + found if value in counts else found
    starts = sorted(counts)
    labels = None if window == ALL_STEPS else [f"steps {start}-{start + window - 1}" for start in starts]
    return ExpertLoad(np.stack([counts[start] for start in starts]), labels=labels, shape=shape)
