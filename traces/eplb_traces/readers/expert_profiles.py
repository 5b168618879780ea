"""Reads JSON profiles of experts by layer: ESFT's token scores, and ranked experts with their counts.

ESFT (deepseek-ai/ESFT, scripts/expert) writes ``{"token_scores": {layer: {expert: share}}, "gate_scores": ..}``: the
share of tokens that chose an expert, with four digits. A ranked profile has ``ranked`` and ``counts`` for each layer:
experts by falling count, and the counts in that order, or by expert id; the numbers show which, or are refused.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.readers.arrays import reading_of_rows
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.json_fields import beginning, field_of, integer_of, json_document, nested_array

SUFFIXES: tuple[str, ...] = (".json",)
RECOGNISED_BY = "an object with token_scores, or with ranked and counts by layer"
BECOMES = "load; token_scores are shares of tokens"
REFUSES = "layers with unlike experts; counts that fit ranked neither by rank nor by id"
_SCORES = "token_scores"
_LAYER = ("layer", "layer_id", "layer_idx")

Layers = dict[int, NDArray[np.float64]]


def recognises(path: Path) -> bool:
    """Take a JSON object with our keys in its first 64 KiB."""
    head = beginning(path)
    return head[:1] in {"{", "["} and (f'"{_SCORES}"' in head or ('"ranked"' in head and '"counts"' in head))


def read(path: Path, options: ReadOptions) -> Reading:
    """Read one window, layers by ascending id."""
    document = json_document(path)
    notes: tuple[str, ...] = ()
    if isinstance(document, dict) and _SCORES in document:
        scores = _numbered(document[_SCORES], f"$.{_SCORES}", "layer")
        layers = {layer: _by_id(of_layer, f"$.{_SCORES}.{layer}") for layer, of_layer in scores.items()}
        form, notes = f"ESFT {_SCORES} {{layer: {{expert: share}}}}", ("shares of tokens, rounded, not counts",)
    else:
        layers = {}
        for place, layer, profile in _profiles(document):
            if layer in layers:
                raise InputError(f"{place}: layer {layer} is there twice")
            with naming_place(place):
                layers[layer] = _of_profile(profile)
        form = "ranked experts with counts by layer"
    if not layers:
        raise InputError("no layer in the profile")
    sizes = {len(of_layer) for of_layer in layers.values()}
    if len(sizes) > 1:
        raise InputError(f"the layers have {' and '.join(map(str, sorted(sizes)))} experts: expected one number")
    load = ExpertLoad(np.stack([layers[layer] for layer in layers]))
    return reading_of_rows(Reading(content=load, form=form, notes=notes), options, tuple(layers))


def _numbered(value: object, place: str, what: str) -> dict[int, object]:
    """{id: value} of an object whose keys name layers or experts."""
    if not isinstance(value, dict):
        raise InputError(f"{place} is a {type(value).__name__}: expected an object")
    found: dict[int, object] = {}
    for key, member in value.items():
        number = integer_of(key, f"{place}, {what}")
        if number in found:
            raise InputError(f"{place}: {what} {number} is there twice")
        found[number] = member
    return found


def _by_id(scores: object, place: str) -> NDArray[np.float64]:
    """[E] of {expert: number}: every id from 0 on."""
    found = _numbered(scores, place, "expert")
    if sorted(found) != list(range(len(found))):
        raise InputError(f"{place} has the experts {', '.join(map(str, sorted(found)))}: expected each one from 0 on")
    values = nested_array([found[expert] for expert in range(len(found))], place)
    if values.ndim != 1 or not values.size:
        raise InputError(f"{place} has shape {values.shape}: expected a number for each expert")
    return values.astype(np.float64)


def _profiles(document: object) -> Iterator[tuple[str, int, Mapping[str, object]]]:
    """Yield (place, layer, profile) of every object with ``ranked`` and ``counts``."""

    def inside(value: object, place: str, name: object) -> Iterator[tuple[str, int, Mapping[str, object]]]:
        if isinstance(value, dict):
            if "ranked" in value and "counts" in value:
                own = field_of(value, _LAYER)
                yield place, integer_of(value[own] if own else name, f"{place}, layer"), value
                return
            for key, inner in value.items():
                yield from inside(inner, f"{place}.{key}", key)
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                yield from inside(inner, f"{place}[{i}]", i)

    yield from inside(document, "$", None)


def _of_profile(profile: Mapping[str, Any]) -> NDArray[np.float64]:
    """[E] counts by expert id."""
    if isinstance(profile["counts"], dict):
        return _by_id(profile["counts"], "counts")
    ranked, counts = nested_array(profile["ranked"], "ranked"), nested_array(profile["counts"], "counts")
    is_order = ranked.ndim == 1 and ranked.dtype.kind in "iu" and sorted(ranked.tolist()) == list(range(ranked.size))
    if not is_order or counts.shape != ranked.shape or not ranked.size:
        raise InputError(f"ranked and counts of {ranked.size} and {counts.size}: expected every expert from 0 on once")
    by_rank = np.empty(counts.shape)
    by_rank[ranked] = counts
    fits = [of for of in (by_rank, counts.astype(np.float64)) if (np.diff(of[ranked]) <= 0).all()]
    if not fits or (len(fits) == 2 and not np.array_equal(fits[0], fits[1])):
        raise InputError("counts do not fall in the order of ranked, or do both by rank and by expert id")
    return fits[0]
