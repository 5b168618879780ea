"""Reads JSON records of single choices, as loggers of vLLM and routing studies write them: one a token and layer.

``{"layer", "topk_ids", "token_idx", "req_id"}`` under any of the names below, a line each or in one list. A record with
``top_k`` or ``num_experts`` and no layer describes the file. Without a request all tokens are of one request; without
a token index the records of a layer are its tokens, in order. Other keys, as weights, are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import final

import numpy as np

from eplb_traces.errors import InputError, naming_place
from eplb_traces.files.limits import LARGEST_EXACT
from eplb_traces.readers.choices import Choices, reading_of_choices
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.json_fields import beginning, field_of, integer_of, json_records
from eplb_traces.readers.layers import moe_rows

SUFFIXES: tuple[str, ...] = (".jsonl", ".json")
RECOGNISED_BY = "records with a layer and expert ids (topk_ids, experts, expert_ids, expert_idx, selected_experts)"
BECOMES = "trace, a token's step its place in its request"
REFUSES = "tokens that lack a layer or have one twice; unlike numbers of choices; no num_experts"
LAYER = ("layer", "layer_id", "layer_idx")
IDS = ("topk_ids", "expert_ids", "experts", "expert_idx", "selected_experts")
TOKEN = ("token_idx", "token_id", "token", "token_index", "position")
REQUEST = ("req_id", "request_id", "request", "seq_id", "rid")

Token = tuple[str | int, int]


@final
@dataclass(frozen=True)
class _Records:
    """The choices found so far.

    Parameters
    ----------
    choices
        {(request, token): {layer: ids}}
    names
        The keys that were read, for the form.
    described
        ``num_experts`` and ``top_k`` as the file has them.
    num_others
        One number: records with neither a layer nor ids nor a description.
    num_of_layer
        {(request, layer): records}
    """

    choices: dict[Token, dict[int, list[int]]] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    described: dict[str, int] = field(default_factory=dict)
    num_others: list[int] = field(default_factory=lambda: [0])
    num_of_layer: dict[tuple[str | int, int], int] = field(default_factory=dict)


def recognises(path: Path) -> bool:
    """Take records in whose first 64 KiB both a name of a layer and one of ids are keys."""
    head = beginning(path)
    return head[:1] in {"{", "["} and all(any(f'"{name}"' in head for name in names) for names in (LAYER, IDS))


def read(path: Path, options: ReadOptions) -> Reading:
    """Read the choices of every token in all its layers."""
    records = _Records()
    for place, value in json_records(path):
        with naming_place(place):
            if not isinstance(value, dict):
                raise InputError(f"is a {type(value).__name__}: expected an object")
            _add(records, value)
    if not records.choices:
        raise InputError("no record has a choice: an empty recording")
    for name, found in records.described.items():
        told = getattr(options, name)
        if told not in (None, found):
            raise InputError(f"{name} = {told}: the file says {found}")
    options = replace(options, num_experts=records.described.get("num_experts", options.num_experts))
    layers = sorted({layer for of_token in records.choices.values() for layer in of_token})
    top_k = records.described.get("top_k", len(next(iter(next(iter(records.choices.values())).values()))))
    choices = _table(records, layers, top_k)
    form = f"records of {', '.join(records.names)}, one a token and layer"
    reading = reading_of_choices([choices], options, form, choose_rows=partial(moe_rows, row_ids=layers))
    if not records.num_others[0]:
        return reading
    note = f"{records.num_others[0]} records without a layer left out"
    return replace(reading, notes=(*reading.notes, note))


def _add(records: _Records, record: Mapping[str, object]) -> None:
    layer_name, ids_name = field_of(record, LAYER), field_of(record, IDS)
    described = {name: record[name] for name in ("num_experts", "top_k") if name in record}
    _describe(records, described)
    if layer_name is None or ids_name is None:
        if layer_name or ids_name:
            raise InputError(
                f"has the keys {', '.join(record)}: expected a layer ({', '.join(LAYER)}) and ids ({', '.join(IDS)})"
            )
        records.num_others[0] += not described
        return
    token_name, request_name = field_of(record, TOKEN), field_of(record, REQUEST)
    records.names.update(dict.fromkeys(name for name in (layer_name, ids_name, token_name, request_name) if name))
    layer = integer_of(record[layer_name], layer_name)
    request = record[request_name] if request_name else 0
    if not isinstance(request, str | int):
        raise InputError(f"{request_name} = {request!r}: expected a text or an integer")
    next_token = records.num_of_layer.get((request, layer), 0)
    records.num_of_layer[request, layer] = next_token + 1
    token = integer_of(record[token_name], token_name) if token_name else next_token
    of_token = records.choices.setdefault((request, token), {})
    if layer in of_token:
        raise InputError(f"request {request!r}, token {token}, layer {layer} is there twice")
    of_token[layer] = _ids(record[ids_name], ids_name)


def _describe(records: _Records, described: Mapping[str, object]) -> None:
    """Keep what a record says of the model; all have to say the same."""
    for name, value in described.items():
        number = integer_of(value, name)
        if records.described.setdefault(name, number) != number:
            raise InputError(f"{name} = {number}: {records.described[name]} in a record before")


def _ids(value: object, name: str) -> list[int]:
    ids = [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int) and not isinstance(i, bool)]
    if not ids or (isinstance(value, list) and len(ids) < len(value)):
        raise InputError(f"{name} = {value!r}: expected a list of expert ids")
    if not all(abs(i) <= LARGEST_EXACT for i in ids):
        raise InputError(f"{name} = {repr(value)[:80]}: expected expert ids, integers up to 2^53")
    return ids


def _table(records: _Records, layers: list[int], top_k: int) -> Choices:
    """[T, L, K], requests in order of appearance, tokens of a request ascending.

    Tokens with gaps between their numbers, as ids of a vocabulary have, stay in order of appearance; a token's step is
    its place in its request then.
    """
    number = {request: i for i, request in enumerate(dict.fromkeys(request for request, _ in records.choices))}
    tokens = sorted(records.choices, key=lambda key: (number[key[0]], key[1]))
    if any(b[0] == a[0] and b[1] != a[1] + 1 for a, b in pairwise(tokens)):
        tokens = sorted(records.choices, key=lambda key: number[key[0]])
        place = {request: count() for request in number}
        steps = np.array([next(place[request]) for request, _ in tokens], dtype=np.int64)
    else:
        steps = np.array([token for _, token in tokens], dtype=np.int64)
    _check_choices(records, tokens, layers, top_k)
    ids = np.empty((len(tokens), len(layers), top_k), dtype=np.int64)
    for row, key in enumerate(tokens):
        of_token = records.choices[key]
        for column, layer in enumerate(layers):
            ids[row, column] = of_token[layer]
    return Choices(place="the records", ids=ids, step=steps, request=np.array([number[r] for r, _ in tokens]))


def _check_choices(records: _Records, tokens: list[Token], layers: list[int], top_k: int) -> None:
    """Refuse a token that lacks a layer, or has another number of choices, before an array of all is allocated."""
    for key in tokens:
        of_token = records.choices[key]
        for layer in layers:
            found = of_token.get(layer)
            if found is None or len(found) != top_k:
                has = "is missing" if found is None else f"has {len(found)} choices"
                raise InputError(f"request {key[0]!r}, token {key[1]}: layer {layer} {has}, expected {top_k} choices")
