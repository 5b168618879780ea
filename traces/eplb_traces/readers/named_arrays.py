"""Reads arrays that have names, of an .npz, a safetensors file or a dictionary of tensors: finds the one that counts.

That is ``topk_ids`` or ``expert_ids``, else one of LOAD_KEYS, else router logits, else the only array that is not one
of the columns. Beside ids lie, where known, ``step``, ``request`` or ``seq_offsets`` [S + 1], ``source_rank``, and
``domain``: an index into ``domain_names`` of each token, or a name of each token or sequence. Without ``step`` the
whole trace is step 0. ``num_experts`` is one integer, ``moe_layer_ids`` (``layer_ids``, ``layers``) has the absolute id
of each layer.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.readers.arrays import Context, reading_of_array
from eplb_traces.readers.choices import Choices
from eplb_traces.readers.dialect import Reading, ReadOptions, Wanted

LOAD_KEYS = ("tokens", "load", "tokens_per_expert", "logical_count")
TRACE_KEYS = ("topk_ids", "expert_ids")
_COLUMNS = ("step", "request", "seq_offsets", "source_rank", "domain", "domain_names")
_TOKEN_ID_KEYS = ("tokens", "token_ids", "input_ids")
_LAYER_IDS = ("moe_layer_ids", "layer_ids", "layer_idx", "layers")
_BESIDE = (*_COLUMNS, *_LAYER_IDS, "num_experts", "weights", "labels")

_PLACEMENT = re.compile("phy(sical)?_?(to|2)_?log|log(ical)?_?(to|2)_?phy|expert_?map|placement|replica|logcnt")

Arrays = Mapping[str, NDArray[Any]]


def reading_of_named_arrays(arrays: Arrays, options: ReadOptions) -> Reading:
    """Read the array that holds the load or the trace.

    Raises
    ------
    InputError
        If no array, or more than one, can be it; else as `reading_of_array`.
    """
    key, left_out = _chosen_key(arrays)
    if _PLACEMENT.search(key.lower()):
        raise InputError(
            f"the array {key} is a placement, not a load: `eplb convert` and `eplb evaluate` read placements"
        )
    options = replace(options, num_experts=_num_experts(arrays, options))
    if key in TRACE_KEYS:
        if arrays[key].ndim != 3:
            raise InputError(f"{key} has shape {arrays[key].shape}: expected [tokens, layers, top-k]")
        options = replace(options, wants=Wanted.TRACE)
    asked: list[str] = []

    def choices_of(ids: NDArray[Any]) -> Choices:
        asked.extend(_COLUMNS)
        return _choices(key, ids, arrays)

    context = Context(
        name=key,
        row_ids=_row_ids(arrays),
        num_tokens=_num_tokens(arrays),
        choices_of=choices_of,
        domain_names=_domain_names(arrays),
    )
    reading = reading_of_array(arrays[key], options, context)
    content = reading.content
    if isinstance(content, ExpertLoad) and ("weights" in arrays or "labels" in arrays):
        content = ExpertLoad(content.tokens, arrays.get("weights"), texts(arrays, "labels"), content.shape)
    columns = sorted(column for column in _COLUMNS if column in arrays and column not in asked)
    no_tokens = (f"arrays {', '.join(columns)} left out: they are of tokens, not of windows",) if columns else ()
    return replace(reading, content=content, form=f"{key}, {reading.form}", notes=reading.notes + left_out + no_tokens)


def texts(arrays: Arrays, key: str) -> list[str] | None:
    """The texts of an array; None where it is not there.

    Raises
    ------
    InputError
        If it has another type, or more than one axis.
    """
    if key not in arrays:
        return None
    found = arrays[key]
    if found.ndim != 1 or (found.dtype.kind != "U" and found.size):
        raise InputError(f"{key} is {found.dtype} of shape {found.shape}: expected a list of texts")
    return [str(text) for text in found]


def _chosen_key(arrays: Arrays) -> tuple[str, tuple[str, ...]]:
    """The array to read, and a note on those left out."""
    candidates = [key for key in arrays if key not in _BESIDE]
    named = [key for key in TRACE_KEYS if key in arrays][:1] or [
        key for key in LOAD_KEYS if key in arrays and not _are_token_ids(key, arrays)
    ]
    others = [key for key in candidates if key not in named and not _are_token_ids(key, arrays)]
    logits = [key for key in others if "logit" in key.lower()]
    for found in (named, logits, others):
        if len(found) == 1:
            key = found[0]
            left_out = sorted(other for other in candidates if other != key)
            return key, (f"arrays {', '.join(left_out)} left out",) if left_out else ()
        if found:
            break
    expected = ", ".join((*LOAD_KEYS, *TRACE_KEYS))
    names = ", ".join(sorted(arrays)) or "(none)"
    raise InputError(f"the arrays are {names}: expected one of {expected}, or a single array")


def _are_token_ids(key: str, arrays: Arrays) -> bool:
    """Whether an array ``tokens`` has one number for every row of another array: the text, not counts."""
    array = arrays[key]
    if key not in _TOKEN_ID_KEYS:
        return False
    longer = [other for other in arrays.values() if other.ndim > array.ndim]
    return any(other.shape[: array.ndim] == array.shape for other in longer)


def _num_experts(arrays: Arrays, options: ReadOptions) -> int | None:
    if "num_experts" not in arrays:
        return options.num_experts
    found = arrays["num_experts"]
    if found.shape != () or found.dtype.kind not in "iu":
        raise InputError(f"num_experts = {found}: expected one integer")
    if options.num_experts not in (None, int(found)):
        raise InputError(f"num_experts = {options.num_experts}: the file says {int(found)}")
    return int(found)


def _row_ids(arrays: Arrays) -> tuple[int, ...] | None:
    key = next((key for key in _LAYER_IDS if key in arrays), None)
    if key is None:
        return None
    found = arrays[key]
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InputError(f"{key} is {found.dtype} of shape {found.shape}: expected integers [layers]")
    return tuple(int(i) for i in found)


def _num_tokens(arrays: Arrays) -> int | None:
    """As the first column with a value for each token says it."""
    for key in ("step", "request", "source_rank"):
        if key in arrays and arrays[key].ndim == 1:
            return len(arrays[key])
    offsets = arrays.get("seq_offsets")
    is_list = offsets is not None and offsets.ndim == 1 and offsets.size > 0 and offsets.dtype.kind in "iu"
    return int(offsets[-1]) if offsets is not None and is_list else None


def _choices(key: str, ids: NDArray[Any], arrays: Arrays) -> Choices:
    num_tokens = len(ids)
    sequence = _sequence_of_token(arrays, num_tokens)
    request = arrays.get("request", sequence)
    nothing = np.zeros(num_tokens, dtype=np.int64)
    return Choices(
        place=key,
        ids=ids,
        step=arrays.get("step", nothing),
        request=nothing if request is None else request,
        source_rank=arrays.get("source_rank"),
        domain=_domain(arrays, sequence, num_tokens),
    )


def _sequence_of_token(arrays: Arrays, num_tokens: int) -> NDArray[np.int64] | None:
    """[T] index of the sequence, from ``seq_offsets`` [S + 1]; None where the file has none."""
    if "seq_offsets" not in arrays:
        return None
    offsets = arrays["seq_offsets"]
    is_list = offsets.ndim == 1 and len(offsets) > 1 and offsets.dtype.kind in "iu"
    if not is_list or offsets[0] != 0 or offsets[-1] != num_tokens or (offsets[1:] < offsets[:-1]).any():
        raise InputError(f"seq_offsets: expected ascending integers from 0 to the number of tokens, {num_tokens}")
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets.astype(np.int64)).astype(np.int64))


def _domain(arrays: Arrays, sequence: NDArray[np.int64] | None, num_tokens: int) -> NDArray[Any] | None:
    """[T] index of the domain of each token."""
    if "domain" not in arrays:
        return None
    domain = arrays["domain"]
    if domain.ndim != 1:
        raise InputError(f"domain has shape {domain.shape}: expected one for each of {num_tokens} tokens")
    if domain.dtype.kind == "U":
        domain = np.unique(domain, return_inverse=True)[1]
    if sequence is not None and len(domain) == sequence[-1] + 1 and len(domain) != num_tokens:
        domain = domain[sequence]
    return domain


def _domain_names(arrays: Arrays) -> tuple[str, ...]:
    if "domain" in arrays and arrays["domain"].dtype.kind == "U":
        return tuple(str(name) for name in np.unique(arrays["domain"]))
    return tuple(texts(arrays, "domain_names") or ())
