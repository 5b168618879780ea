"""Reads one plain array, under any name and from any kind of file: as counts, expert ids or router logits, or refuses.

Counts are [layers, experts] or [windows, layers, experts], ids [tokens, top-k] of one layer, [tokens, layers, top-k] or
[layers, tokens, top-k], logits the same with E in place of K. Which it is, is decided by what the caller says of the
model, else by the numbers (`array_kinds`); where neither decides, the array is refused with the option that does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape
from eplb_traces.readers.array_kinds import (
    MOST_LAYERS_OF_A_MODEL,
    ArrayKind,
    are_choices,
    certain_kind_of,
    is_square,
    kind_of,
    looks_like_ids,
    whole,
)
from eplb_traces.readers.choices import Choices, reading_of_choices
from eplb_traces.readers.dialect import Reading, ReadOptions, Wanted, required_num_experts
from eplb_traces.readers.layers import moe_rows
from eplb_traces.readers.logits import chosen_experts
from eplb_traces.readers.slot_counts import exact_counts, logical_of_slots
from eplb_traces.routing_trace import RoutingTrace, TokenBatch

_REFUSED = {
    ArrayKind.IDS: "has different small numbers in every row, looks like expert ids [.., top-k], not like counts: give "
    "num_experts (--num-experts)",
    ArrayKind.LOGITS: "has negative fractions, as router logits have: give top_k (--top-k) to read the choices",
    ArrayKind.PROBABILITIES: "has rows that add up to 1: router probabilities or weights, or a load as shares, not "
    "tokens; expected counts, or, for read_trace and `eplb trace convert`, router probabilities with top_k (--top-k)",
    ArrayKind.SCORES: "has fractions from 0 to 1 only: router scores, or a load as shares, not tokens; expected "
    "counts, or, for read_trace and `eplb trace convert`, router scores with top_k (--top-k)",
    ArrayKind.PATTERN: "has only 0 and 1: a placement pattern or a mask, not counts; placements are read by "
    "`eplb convert` and `eplb evaluate`",
    ArrayKind.WEIGHTS: "has rows of a few small fractions, as the weights of a token's choices: expected counts; if "
    "these are a load, give num_experts (--num-experts)",
    ArrayKind.PLACEMENT: "has the numbers from 0 on in every row: a placement or a ranking of experts, not counts; "
    "placements are read by `eplb convert` and `eplb evaluate`",
    ArrayKind.REPLICAS: "has mostly 1 and equal sums of all rows: numbers of replicas, not counts of tokens",
    ArrayKind.LAYERS_FIRST: "has equal sums along its first axis alone, as layers have: expected [windows, layers, "
    "experts], not [layers, windows, experts]",
    ArrayKind.INDEX_FIRST: "begins its rows with ascending small numbers, as if the first column were the layer: "
    "leave it out by ignore_columns (--ignore-columns 0), or give num_experts (--num-experts)",
    ArrayKind.PAIRS: "has rows of layer, expert, tokens: write them as a table with these names (.csv or .parquet)",
    ArrayKind.SQUARE: "is square: expert transitions or co-activations, or as many layers as experts; if it is a "
    "load, give moe_layer_ids (--moe-layers)",
    ArrayKind.EXPERTS_FIRST: "may be [experts, layers] as well as [layers, experts]: give num_experts (--num-experts)",
}

_OVERRULED = (ArrayKind.EXPERTS_FIRST, ArrayKind.IDS, ArrayKind.WEIGHTS, ArrayKind.INDEX_FIRST)
"""What the number of experts decides, where it is that of the columns."""


def every_token_a_step(ids: NDArray[Any]) -> Choices:
    """One request, each token a step of its own, as in decoding."""
    steps = np.arange(len(ids))
    return Choices(place="the array", ids=ids, step=steps, request=np.zeros_like(steps))


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Context:
    """What lies beside an array.

    Parameters
    ----------
    name
        Of the array, for messages.
    row_ids
        Absolute id of each layer, where the file has them.
    num_tokens
        Where the file has a column with a value for each token.
    choices_of
        Adds the columns of the tokens to ids [tokens, layers, top-k].
    domain_names
        As in `RoutingTrace`.
    """

    name: str = "the array"
    row_ids: Sequence[int] | None = None
    num_tokens: int | None = None
    choices_of: Callable[[NDArray[Any]], Choices] = every_token_a_step
    domain_names: Sequence[str] = ()


def reading_of_array(array: NDArray[Any], options: ReadOptions, context: Context | None = None) -> Reading:
    """Read an array of numbers as what it is.

    Raises
    ------
    InputError
        Naming the array, what its numbers look like, and the option that decides.
    """
    context = context or Context()
    if array.dtype.kind not in "iufb":
        raise InputError(f"{context.name} is {array.dtype}: expected numbers")
    shown = f"{context.name}, {array.dtype} of shape {array.shape}"
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            f"{shown} has {array.ndim} axes of {array.size} numbers: expected counts [layers, experts] or [windows, "
            "layers, experts], or ids [tokens, layers, top-k]"
        )
    kind = _kind(whole(array), shown, options, context)
    if kind is ArrayKind.LOGITS:
        return _of_logits(array, options, context)
    if kind is ArrayKind.IDS:
        return _of_ids(whole(array), options, context)
    return _of_counts(array, options, context, experts_first=kind is ArrayKind.EXPERTS_FIRST)


def _kind(array: NDArray[Any], shown: str, options: ReadOptions, context: Context) -> ArrayKind:
    """Counts, ids, logits, or counts whose experts come first; anything else is refused."""
    if options.recorded_under is not None:
        return ArrayKind.COUNTS
    if options.wants is Wanted.TRACE:
        return _kind_of_trace(array, shown, options)
    is_infinite = array.dtype.kind == "f" and not np.isfinite(array).all()
    is_negative = array.dtype.kind != "f" and not options.ignore_ids and array.min() < 0
    if is_infinite or (is_negative and (array.min() < -1 or not are_choices(array))):
        return ArrayKind.COUNTS  # the load names the place
    if options.num_experts is None:
        kind, decided = _kind_of_untold(array, shown, options), {ArrayKind.COUNTS}
    else:
        kind = _kind_of_told(array, shown, options)
        decided = {ArrayKind.COUNTS, ArrayKind.IDS, ArrayKind.EXPERTS_FIRST}
    if kind in decided or (kind is ArrayKind.LOGITS and options.top_k is not None):
        return kind
    if kind in (ArrayKind.SQUARE, ArrayKind.EXPERTS_FIRST) and _rows_are_layers(array, options, context):
        return ArrayKind.COUNTS
    raise InputError(f"{shown} {_REFUSED[kind]}")


def _kind_of_untold(array: NDArray[Any], shown: str, options: ReadOptions) -> ArrayKind:
    placed = np.delete(array, _columns(array, options), axis=-1)
    if placed.shape[-1] == 1:
        raise InputError(f"{shown} has one number a row: a load of one expert, or top-1 ids; give num_experts")
    return kind_of(placed)


def _kind_of_trace(array: NDArray[Any], shown: str, options: ReadOptions) -> ArrayKind:
    if array.dtype.kind != "f":
        if options.num_experts == array.shape[-1] > 1 and not are_choices(array):
            raise InputError(
                f"{shown} holds tokens per expert, not the choices of single tokens: expected a token-level trace"
            )
        return ArrayKind.IDS
    if array.shape[-1] == options.num_experts or options.num_experts is None:
        kind = kind_of(array) if np.isfinite(array).all() else ArrayKind.COUNTS
        if kind in (ArrayKind.LOGITS, ArrayKind.PROBABILITIES, ArrayKind.SCORES):
            if options.top_k is None:
                raise InputError(f"{shown} {_REFUSED[kind]}")
            return ArrayKind.LOGITS
    raise InputError(f"{shown}: expected integers [tokens, layers, top-k], or router logits and top_k (--top-k)")


def _kind_of_told(array: NDArray[Any], shown: str, options: ReadOptions) -> ArrayKind:
    """Where the number of experts is known."""
    num_experts, width = options.num_experts, array.shape[-1] - len(_columns(array, options))
    if width == num_experts:
        kind = kind_of(array) if array.dtype.kind == "f" else certain_kind_of(array)
        if kind is ArrayKind.COUNTS and is_square(array):
            return ArrayKind.SQUARE
        return ArrayKind.COUNTS if kind in _OVERRULED else kind
    fewer = num_experts is not None and width < num_experts
    in_range = num_experts is not None and array.max() < num_experts
    can_be_ids = array.dtype.kind != "f" and fewer and are_choices(array)
    if array.shape[-2] == num_experts and width == 1:
        raise InputError(f"{shown} has one number a row: top-1 ids of {num_experts} layers, or counts; remove an axis")
    if array.shape[-2] == num_experts and can_be_ids and in_range:
        raise InputError(
            f"{shown} may be ids of {num_experts} tokens as well as counts [experts, layers]: write counts as [layers, "
            "experts], or use read_trace or `eplb trace convert`"
        )
    if can_be_ids and (in_range or options.ignore_ids or looks_like_ids(array)):
        return ArrayKind.IDS
    if array.shape[-2] == num_experts and not options.ignore_columns:
        return ArrayKind.EXPERTS_FIRST
    if fewer:
        raise InputError(f"{shown} has rows of {width} numbers that are no choices: num_experts is {num_experts}")
    raise InputError(
        f"{shown} has {width} columns and the model {num_experts} experts: for counts of slots give the map in "
        "force as recorded_under (--recorded-under), for columns that are no placed experts ignore_columns "
        "(--ignore-columns)"
    )


def _columns(array: NDArray[Any], options: ReadOptions) -> list[int]:
    """`ignore_columns`, checked."""
    wrong = [column for column in options.ignore_columns if not 0 <= column < array.shape[-1]]
    if wrong:
        raise InputError(f"ignore_columns has {wrong[0]} (--ignore-columns): the file has {array.shape[-1]} columns")
    return sorted(set(options.ignore_columns))


def _layer_counts(options: ReadOptions, context: Context) -> set[int]:
    """How many layers the caller or the file says that there are, with and without dense ones."""
    counts = {len(context.row_ids)} if context.row_ids is not None else set()
    counts |= {len(options.moe_layer_ids)} if options.moe_layer_ids else set()
    counts |= {options.num_hidden_layers} if options.num_hidden_layers else set()
    return counts | ({options.shape.num_layers} if options.shape is not None else set())


def _rows_are_layers(array: NDArray[Any], options: ReadOptions, context: Context) -> bool:
    counts = _layer_counts(options, context)
    rows, columns = array.shape[-2:]
    return rows in counts and (rows == columns or columns not in counts)


def _of_counts(array: NDArray[Any], options: ReadOptions, context: Context, *, experts_first: bool) -> Reading:
    counts = exact_counts(array.astype(np.int64) if array.dtype.kind == "b" else array, context.name)
    form = f"counts {'[windows, layers, experts]' if array.ndim == 3 else '[layers, experts]'}"
    used: set[str] = set()
    notes: tuple[str, ...] = ()
    if experts_first:
        counts = counts.swapaxes(-1, -2)
        form = "counts [experts, layers], since num_experts is the number of rows"
    if options.recorded_under is not None:
        counts, form = logical_of_slots(counts, options), f"{form[: -len('experts]')]}slots], made counts of experts"
        used.add("recorded_under")
    if options.ignore_columns:
        columns = _columns(counts, options)
        counts = np.delete(counts, columns, axis=-1)
        notes = (f"columns {', '.join(map(str, columns))} left out",)
        used.add("ignore_columns")
    return reading_of_rows(
        Reading(content=ExpertLoad(counts), form=form, notes=notes, used=frozenset(used)), options, context.row_ids
    )


def reading_of_rows(reading: Reading, options: ReadOptions, row_ids: Sequence[int] | None) -> Reading:
    """The reading of a load of which some rows may be dense layers; `row_ids` in any order."""
    load = reading.load()
    order = np.arange(load.num_layers)
    if row_ids is not None:
        if len(row_ids) != load.num_layers or len(set(row_ids)) != load.num_layers:
            raise InputError(
                f"layer ids {list(row_ids)}: expected a different one for each of {load.num_layers} layers"
            )
        order = np.argsort(row_ids)
        row_ids = sorted(int(i) for i in row_ids)
    layers = moe_rows(load.empty_layers[order], row_ids, options)
    rows = order[layers.rows]
    shape = ModelShape(
        len(layers.rows),
        load.num_experts,
        load.shape.top_k,
        moe_layer_ids=layers.moe_layer_ids,
        num_hidden_layers=layers.num_hidden_layers,
    )
    tokens = load.tokens
    if not np.array_equal(rows, np.arange(load.num_layers)):
        tokens = np.take(tokens, rows, axis=1)
        tokens.setflags(write=False)
    kept = ExpertLoad(tokens, load.weights, load.labels or None, shape)
    return replace(reading, content=kept, notes=layers.notes + reading.notes)


def _of_ids(array: NDArray[Any], options: ReadOptions, context: Context) -> Reading:
    required_num_experts(options)
    ids, axes = _tokens_first(array, options, context, last="top-k")
    return reading_of_choices(
        [context.choices_of(ids)],
        options,
        f"expert ids {axes}",
        choose_rows=partial(moe_rows, row_ids=context.row_ids),
        domain_names=context.domain_names,
    )


def _of_logits(array: NDArray[Any], options: ReadOptions, context: Context) -> Reading:
    columns = _columns(array, options)
    logits, axes = _tokens_first(np.delete(array, columns, axis=-1), options, context, last="experts")
    num_experts, top_k, shape = logits.shape[-1], options.top_k, options.shape
    if options.num_experts not in (None, num_experts):
        raise InputError(f"num_experts = {options.num_experts}: {context.name} has {num_experts} logits a token")
    num_groups, top_groups = (1, None) if shape is None else (shape.num_expert_groups, shape.top_k_groups)
    ids = chosen_experts(logits, top_k or 0, num_groups=num_groups, top_groups=top_groups)
    layers = moe_rows(np.zeros(logits.shape[1], dtype=np.bool_), context.row_ids, options)
    model = ModelShape(
        logits.shape[1],
        num_experts,
        top_k,
        moe_layer_ids=layers.moe_layer_ids,
        num_hidden_layers=layers.num_hidden_layers,
    )
    of = context.choices_of(ids)
    batch = TokenBatch(model, of.ids.astype(np.uint16), of.step, of.request, of.source_rank, of.domain)
    groups = (f"choices within the {top_groups} groups of the largest logits",) if top_groups else ()
    left_out = (f"columns {', '.join(map(str, columns))} left out",) if columns else ()
    return Reading(
        content=RoutingTrace(model, [batch], domain_names=context.domain_names),
        form=f"router logits {axes}, the {top_k} largest",
        notes=groups + left_out,
        used=frozenset({"ignore_columns"} if columns else ()),
    )


def _tokens_first(
    array: NDArray[Any], options: ReadOptions, context: Context, *, last: str
) -> tuple[NDArray[Any], str]:
    """[tokens, layers, ..] and the axes as they were; an axis that could be either is refused."""
    if array.ndim == 2:
        return array[:, None], f"[tokens, {last}] of one layer"
    if context.num_tokens is not None and array.shape[0] != array.shape[1]:
        fits = [axis for axis in (0, 1) if array.shape[axis] == context.num_tokens]
        axis = 1 - fits[0] if fits else 1
    else:
        axis = _layer_axis(array, options, context, last)
    if axis == 1:
        return array, f"[tokens, layers, {last}]"
    return array.swapaxes(0, 1), f"[layers, tokens, {last}]"


def _layer_axis(array: NDArray[Any], options: ReadOptions, context: Context, last: str) -> int:
    """The axis that the caller, or the file, says; without both, axes too long for the layers leave one."""
    counts = _layer_counts(options, context)
    fits = [axis for axis in (0, 1) if array.shape[axis] in counts]
    if len(fits) == 1:
        return fits[0]
    possible = [axis for axis in (0, 1) if array.shape[axis] <= MOST_LAYERS_OF_A_MODEL]
    if last == "top-k" and not counts and (possible == [1] or array.shape[:2] == (1, 1)):
        return 1
    is_plain = last == "top-k" and context.name == Context.name
    engine = ', or format = "vllm" (--from vllm) for ids as vLLM returns them' if is_plain else ""
    raise InputError(
        f"{context.name} of shape {array.shape} may be [tokens, layers, {last}] or [layers, tokens, {last}]: give "
        f"moe_layer_ids (--moe-layers), one id for each layer, or num_hidden_layers (--hidden-layers){engine}"
    )
