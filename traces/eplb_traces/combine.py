"""Puts the loads, or the traces, of several files together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape, ShapeConflictError, id_ranges, merge_shapes
from eplb_traces.routing_trace import RoutingTrace, TokenBatch


class Combine(StrEnum):
    """What several files are to each other."""

    WORKLOADS = "workloads"
    """Different traffic of one model: windows side by side, each labelled by its file."""
    SUM = "sum"
    """Parts of one recording, a rank each: equal windows are added."""
    TIME = "time"
    """Parts of one recording, one after the other: windows, or steps, in order."""
    LAYERS = "layers"
    """Layers of one model: pipeline stages, or a multi-token-prediction layer beside the base model."""


def combine_loads(loads: Sequence[ExpertLoad], names: Sequence[str], how: Combine) -> ExpertLoad:
    """One load of several.

    Parameters
    ----------
    loads
        At least one.
    names
        Of their files, for labels and messages.
    how
        See `Combine`.

    Raises
    ------
    InputError
        If the loads are of different models, or do not fit together in this way.
    """
    if len(loads) == 1:
        return loads[0]
    return _COMBINE[how](loads, names)


def combine_traces(traces: Sequence[RoutingTrace], names: Sequence[str], how: Combine) -> RoutingTrace:
    """One token-level trace of several; a stream. Requests of different files stay different.

    With `Combine.TIME` the steps of a file follow those of the file before; with `Combine.SUM` they are kept, as the
    files are parts of the same steps.

    Raises
    ------
    InputError
        If the traces are of different models, or `how` has no meaning for tokens.
    """
    if how not in (Combine.TIME, Combine.SUM):
        raise InputError(f"combine = {how}: expected time or sum for token-level traces")
    shape = common_shape([trace.shape for trace in traces], names)
    domains = tuple(dict.fromkeys(name for trace in traces for name in trace.domain_names))
    return RoutingTrace(shape, _Joined(tuple(traces), shape, how, domains), domain_names=domains)


def common_shape(shapes: Sequence[ModelShape], names: Sequence[str]) -> ModelShape:
    """The shape of the first, with what the others add; InputError that names the file of another model."""
    shape = shapes[0]
    for other, name in zip(shapes[1:], names[1:], strict=True):
        try:
            shape = merge_shapes(shape, other)
        except ShapeConflictError as error:
            raise InputError(f"{name}: {error.name} = {error.second}, and {error.first} in {names[0]}") from error
    return shape


def _workloads(loads: Sequence[ExpertLoad], names: Sequence[str]) -> ExpertLoad:
    shape = common_shape([load.shape for load in loads], names)
    shown = _shown(names)
    labels = [label for load, name in zip(loads, shown, strict=True) for label in _labels(load, name)]
    weights = np.concatenate([load.weights for load in loads])
    return ExpertLoad(np.concatenate([load.tokens for load in loads]), weights, labels, shape)


def _shown(names: Sequence[str]) -> Sequence[str]:
    """The names without folder and suffix, where that tells them apart."""
    stems = [Path(name).stem for name in names]
    return stems if len(set(stems)) == len(stems) else names


def _labels(load: ExpertLoad, name: str) -> list[str]:
    if load.num_windows == 1:
        return [name]
    of_windows = load.labels or [f"window {window}" for window in range(load.num_windows)]
    return [f"{name}, {label}" for label in of_windows]


def _sum(loads: Sequence[ExpertLoad], names: Sequence[str]) -> ExpertLoad:
    shape = common_shape([load.shape for load in loads], names)
    _check_same_windows(loads, names)
    tokens = np.sum([load.tokens for load in loads], axis=0)
    return ExpertLoad(tokens, loads[0].weights, loads[0].labels or None, shape)


def _time(loads: Sequence[ExpertLoad], names: Sequence[str]) -> ExpertLoad:
    # One history: its windows are told apart by their files only where they have labels of their own.
    labelled = any(load.labels for load in loads)
    joined = _workloads(loads, names)
    return joined if labelled else ExpertLoad(joined.tokens, joined.weights, None, joined.shape)


def _layers(loads: Sequence[ExpertLoad], names: Sequence[str]) -> ExpertLoad:
    ids: list[int] = []
    for load, name in zip(loads, names, strict=True):
        if load.shape.moe_layer_ids is None:
            raise InputError(
                f"{name}: the layer ids are unknown: give moe_layer_ids (--moe-layers) to put layers together"
            )
        if load.num_experts != loads[0].num_experts:
            raise InputError(f"{name} has {load.num_experts} experts: {names[0]} has {loads[0].num_experts}")
        ids += load.shape.moe_layer_ids
    _check_same_windows(loads, names)
    order = np.argsort(ids, kind="stable")
    in_order = [ids[i] for i in order]
    twice = [a for a, b in pairwise(in_order) if a == b]
    if twice:
        raise InputError(f"layers {id_ranges(sorted(set(twice)))} are in more than one of {', '.join(names)}")
    known = [load.shape.num_hidden_layers for load in loads if load.shape.num_hidden_layers is not None]
    hidden = max(known) if known and max(known) > in_order[-1] else None
    shape = replace(loads[0].shape, num_layers=len(in_order), moe_layer_ids=tuple(in_order), num_hidden_layers=hidden)
    tokens = np.concatenate([load.tokens for load in loads], axis=1)[:, order]
    return ExpertLoad(tokens, loads[0].weights, loads[0].labels or None, shape)


def _check_same_windows(loads: Sequence[ExpertLoad], names: Sequence[str]) -> None:
    first = loads[0]
    for load, name in zip(loads[1:], names[1:], strict=True):
        if load.num_windows != first.num_windows:
            raise InputError(f"{name} has {load.num_windows} windows: {names[0]} has {first.num_windows}")
        if load.labels and first.labels and load.labels != first.labels:
            a, b = next((a, b) for a, b in zip(load.labels, first.labels, strict=True) if a != b)
            raise InputError(f"{name} has a window {a!r} where {names[0]} has {b!r}")
        if not np.array_equal(load.weights, first.weights):
            raise InputError(f"{name} and {names[0]} weigh their windows differently")


_COMBINE: dict[Combine, Callable[[Sequence[ExpertLoad], Sequence[str]], ExpertLoad]] = {
    Combine.WORKLOADS: _workloads,
    Combine.SUM: _sum,
    Combine.TIME: _time,
    Combine.LAYERS: _layers,
}


@final
@dataclass(frozen=True)
class _Joined:
    """The batches of several traces, requests and where needed steps renumbered."""

    traces: tuple[RoutingTrace, ...]
    shape: ModelShape
    how: Combine
    domains: tuple[str, ...]

    def __iter__(self) -> Iterator[TokenBatch]:
        first_step = first_request = 0
        for trace in self.traces:
            last_step = last_request = -1
            domain_index = np.array([self.domains.index(name) for name in trace.domain_names], dtype=np.int32)
            for batch in trace.batches():
                if batch.num_tokens:
                    last_step = max(last_step, int(batch.step.max()))
                    last_request = max(last_request, int(batch.request.max()))
                known = batch.domain is not None and domain_index.size
                yield replace(
                    batch,
                    shape=self.shape,
                    step=batch.step + first_step,
                    request=batch.request + first_request,
                    domain=domain_index[batch.domain] if known else None,
                )
            first_request += last_request + 1
            if self.how == Combine.TIME:
                first_step += last_step + 1

    def column(self, name: str) -> Iterator[NDArray[np.int64]]:
        """Steps or requests, renumbered as in the batches."""
        is_shifted = name == "request" or self.how == Combine.TIME
        first = 0
        for trace in self.traces:
            last = -1
            for values in trace.column(name):
                last = max(last, int(values.max(initial=-1)))
                yield values + first
            first += last + 1 if is_shifted else 0
