"""Holds which experts each token chose in each layer, batch by batch, and counts them by windows of steps."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol, TypeVar, final, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb_traces.display import facts_html
from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.model_shape import ModelShape

_Number = TypeVar("_Number", bound=np.integer[Any])

ALL_STEPS: Final = sys.maxsize
"""The window that holds all steps of a trace."""
_LARGEST_ID = int(np.iinfo(np.uint16).max)


@final
@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The choices of some tokens, frozen and checked on construction; the arrays are read-only.

    A read-only array is kept as it is, any other is copied.

    Parameters
    ----------
    shape
        The model: L, E and, where known, K.
    expert_ids
        [t, L, K] logical experts; below E, the K ids of a token and layer all different.
    step
        [t] >= 0: the engine step (forward pass) in which the token was computed.
    request
        [t] >= 0: the request or sequence the token belongs to.
    source_rank
        [t] >= 0: the rank that held the token before dispatch; None where unknown.
    domain
        [t] >= 0: what kind of text the token is, an index into the trace's `domain_names`; None where unknown.

    Raises
    ------
    InputError
        With the token, layer and value that is wrong.
    """

    shape: ModelShape
    expert_ids: NDArray[np.uint16]
    step: NDArray[np.int64]
    request: NDArray[np.int64]
    source_rank: NDArray[np.int32] | None = None
    domain: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "expert_ids", _checked_expert_ids(self.expert_ids, self.shape))
        num_tokens = self.num_tokens
        set_field(self, "step", checked_column("step", self.step, num_tokens, np.int64))
        set_field(self, "request", checked_column("request", self.request, num_tokens, np.int64))
        for name in ("source_rank", "domain"):
            column = getattr(self, name)
            if column is not None:
                set_field(self, name, checked_column(name, column, num_tokens, np.int32))

    @property
    def num_tokens(self) -> int:
        """Tokens of this batch."""
        return len(self.expert_ids)

    def select(self, tokens: NDArray[np.bool_] | slice) -> "TokenBatch":
        """Return some of the tokens, in order."""
        return TokenBatch(
            self.shape,
            self.expert_ids[tokens],
            self.step[tokens],
            self.request[tokens],
            None if self.source_rank is None else self.source_rank[tokens],
            None if self.domain is None else self.domain[tokens],
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenBatch):
            return NotImplemented
        return self.shape == other.shape and all(
            np.array_equal(ours, theirs) if ours is not None and theirs is not None else ours is theirs
            for ours, theirs in zip(self._columns(), other._columns(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type["TokenBatch"], tuple[object, ...]]:
        return TokenBatch, (self.shape, *self._columns())

    def __repr__(self) -> str:
        return f"TokenBatch({self.num_tokens} tokens)"

    def _columns(self) -> tuple[NDArray[np.generic] | None, ...]:
        return self.expert_ids, self.step, self.request, self.source_rank, self.domain


@runtime_checkable
class ColumnSource(Protocol):
    """A source of batches that can read one column of them alone."""

    def column(self, name: str) -> Iterator[NDArray[Any]]:
        """The values of `step` or `request`, in the order of the batches."""
        ...


@final
class RoutingTrace:
    """Token-level routing of one model: a source of batches that can be read any number of times.

    Parameters
    ----------
    shape
        The model; every batch has the same.
    batches
        Iterable any number of times: a list, or an object that opens its file each time. An iterator is refused.
    num_tokens
        Tokens of all batches together, where the source has the number; otherwise counted on demand.
    domain_names
        Names of the values of `TokenBatch.domain`.

    Raises
    ------
    InputError
        If `batches` can be read only once.
    """

    shape: ModelShape
    domain_names: tuple[str, ...]
    _batches: Iterable[TokenBatch]
    _num_tokens: int | None

    def __init__(
        self,
        shape: ModelShape,
        batches: Iterable[TokenBatch],
        num_tokens: int | None = None,
        domain_names: Sequence[str] = (),
    ) -> None:
        if isinstance(batches, Iterator):
            raise InputError(f"batches is a {type(batches).__name__}: expected a source that can be iterated again")
        set_field = object.__setattr__
        set_field(self, "shape", shape)
        set_field(self, "domain_names", tuple(str(name) for name in domain_names))
        set_field(self, "_batches", tuple(batches) if isinstance(batches, list) else batches)
        set_field(self, "_num_tokens", num_tokens)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"RoutingTrace is frozen: {name} cannot be set")

    def batches(self) -> Iterator[TokenBatch]:
        """Every batch, in the order of the source."""
        for batch in self._batches:
            if batch.shape != self.shape:
                raise InputError(f"a batch has the shape {batch.shape}: the trace has {self.shape}")
            if self.domain_names and batch.domain is not None and (batch.domain >= len(self.domain_names)).any():
                raise InputError(f"domain {batch.domain.max()}: the trace has {len(self.domain_names)} domain_names")
            yield batch

    __iter__ = batches

    def column(self, name: str) -> Iterator[NDArray[Any]]:
        """`step` or `request` of every token, some tokens at a time; a file of columns is not read beyond this one."""
        if isinstance(self._batches, ColumnSource):
            return self._batches.column(name)
        return (getattr(batch, name) for batch in self.batches())

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of the whole trace."""
        return self._num_tokens if self._num_tokens is not None else sum(batch.num_tokens for batch in self.batches())

    def load(self, window: int | None = None) -> ExpertLoad:
        """Count the tokens of every expert.

        Windows have n steps each, from the first recorded step on: window w holds the steps
        [first + w * n, first + (w + 1) * n). How the source cuts its batches does not matter. A window in which no
        token was recorded has no load and is left out; the label "steps 20-29" names the steps of a window.

        Parameters
        ----------
        window
            n, steps of a window; None or `ALL_STEPS`: the whole trace is one window, without a label. `load_by_window`
            of `eplb_traces.windows` chooses n where nobody else does.

        Raises
        ------
        InputError
            If the trace has no tokens or `window` < 1.
        """
        if window is not None and window < 1:
            raise InputError(f"window = {window}: expected >= 1 step")
        window = None if window == ALL_STEPS else window
        return load_of_windows(self.counts_by_window(window), window, self.shape)

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """The steps that hold tokens, ascending, each once; read-only. Reads the column of the source once.

        Raises
        ------
        InputError
            If the trace has no tokens.
        """
        found: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        for values in self.column("step"):
            found = np.union1d(found, values)
        if not found.size:
            raise InputError("the trace has no tokens")
        found.setflags(write=False)
        return found

    def counts_by_window(self, window: int | None, first: int | None = None) -> dict[int, NDArray[np.int64]]:
        """{first step of a window: counts [L, E]} of the windows that hold tokens.

        `first` is the first step of the trace; None assumes that it is in the first batch. Where it is
        not, the source is counted again.
        """
        from eplb_traces.kernels import count_tokens

        counts: dict[int, NDArray[np.int64]] = {}
        for batch in self.batches():
            if not batch.num_tokens:
                continue
            earliest = int(batch.step.min())
            if first is None:
                first = earliest
            if window is not None and earliest < first:
                return self.counts_by_window(window, int(self.steps[0]))
            window_of_token = np.zeros_like(batch.step) if window is None else window_start(batch.step, first, window)
            windows, index_of_token = np.unique(window_of_token, return_inverse=True)
            of_batch = np.zeros((len(windows), self.shape.num_layers, self.shape.num_experts), dtype=np.int64)
            count_tokens(batch.expert_ids, index_of_token.astype(np.int64), of_batch)
            for w, of_window in zip(windows.tolist(), of_batch, strict=True):
                counts[w] = counts[w] + of_window if w in counts else of_window
        return counts

    def select_steps(self, first: int, stop: int) -> "RoutingTrace":
        """Return the tokens of the steps [first, stop), still streamed: to plan on one part and evaluate on another."""
        return RoutingTrace(self.shape, _StepRange(self, first, stop), domain_names=self.domain_names)

    def __repr__(self) -> str:
        shape = self.shape
        return f"RoutingTrace({shape.num_layers} layers x {shape.num_experts} experts, top-{shape.top_k})"

    def _repr_html_(self) -> str:
        known = {} if self._num_tokens is None else {"tokens": f"{self._num_tokens:,}"}
        domains = {"domains": ", ".join(self.domain_names)} if self.domain_names else {}
        return facts_html("RoutingTrace", {"model": self.shape, **known, **domains})


_Steps = TypeVar("_Steps", int, NDArray[np.int64])


def window_start(step: _Steps, first: int, window: int) -> _Steps:
    """First step of the window that holds each step, for windows of `window` steps from step `first` on."""
    return step - (step - first) % window


def load_of_windows(counts: Mapping[int, NDArray[np.int64]], window: int | None, shape: ModelShape) -> ExpertLoad:
    """The load of `counts_by_window`, with the labels of `RoutingTrace.load`; InputError if there are no tokens."""
    if not counts:
        raise InputError("the trace has no tokens")
    first_steps = sorted(counts)
    labels = None if window is None else [_steps_label(first, window) for first in first_steps]
    return ExpertLoad(np.stack([counts[first] for first in first_steps]), labels=labels, shape=shape)


@final
@dataclass(frozen=True)
class _StepRange:
    """The batches of a trace cut down to some steps."""

    trace: RoutingTrace
    first: int
    stop: int

    def __iter__(self) -> Iterator[TokenBatch]:
        for batch in self.trace.batches():
            inside = (batch.step >= self.first) & (batch.step < self.stop)
            if inside.all():
                yield batch
            elif inside.any():
                yield batch.select(inside)


def _steps_label(first: int, num_steps: int) -> str:
    return f"step {first}" if num_steps == 1 else f"steps {first}-{first + num_steps - 1}"


def _checked_expert_ids(expert_ids: ArrayLike, shape: ModelShape) -> NDArray[np.uint16]:
    """Return a read-only, contiguous [t, L, K] in which every id is valid."""
    array = np.asarray(expert_ids)
    expected = f"[tokens, {shape.num_layers} layers, {shape.top_k or 'top-k'}]"
    wrong_top_k = array.ndim == 3 and (array.shape[2] < 1 or shape.top_k not in (None, array.shape[2]))
    if array.ndim != 3 or array.shape[1] != shape.num_layers or wrong_top_k:
        raise InputError(f"expert_ids has shape {array.shape}: expected {expected}")
    if array.dtype.kind not in "iu":
        raise InputError(f"expert_ids is {array.dtype}: expected integers")
    if shape.num_experts > _LARGEST_ID + 1:
        raise InputError(
            f"num_experts = {shape.num_experts}: expected at most {_LARGEST_ID + 1} in a token-level trace"
        )
    if (
        array.dtype not in (np.uint8, np.uint16)
        and array.size
        and not (array.min() >= 0 and array.max() <= _LARGEST_ID)
    ):
        token, layer, k = (int(i) for i in np.argwhere((array < 0) | (array > _LARGEST_ID))[0])
        raise _wrong_id(token, layer, int(array[token, layer, k]), shape)
    ids = _read_only(array, np.uint16)
    _check_choices(ids, shape)
    return ids


def _check_choices(ids: NDArray[np.uint16], shape: ModelShape) -> None:
    from eplb_traces.kernels import first_bad_choice

    bad_choice = first_bad_choice(ids, shape.num_experts)
    if bad_choice < 0:
        return
    token, layer = divmod(bad_choice, shape.num_layers)
    chosen = ids[token, layer].tolist()
    for k, expert in enumerate(chosen):
        if expert >= shape.num_experts:
            raise _wrong_id(token, layer, expert, shape)
        if expert in chosen[:k]:
            raise InputError(f"expert_ids[token {token}, layer {layer}] = {chosen}: expert {expert} is there twice")


def _wrong_id(token: int, layer: int, expert: int, shape: ModelShape) -> InputError:
    return InputError(f"expert_ids[token {token}, layer {layer}] = {expert}: expected 0 <= id < {shape.num_experts}")


def checked_column(name: str, column: ArrayLike, num_tokens: int, dtype: type[_Number]) -> NDArray[_Number]:
    """Return a read-only [t] of integers >= 0."""
    array = np.asarray(column)
    if array.shape != (num_tokens,):
        raise InputError(f"{name} has shape {array.shape}: expected one for each of {num_tokens} tokens")
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} is {array.dtype}: expected integers")
    largest = int(np.iinfo(np.dtype(dtype)).max)
    if array.size and not (array.min() >= 0 and array.max() <= largest):
        token = int(np.flatnonzero((array < 0) | (array > largest))[0])
        raise InputError(f"{name}[token {token}] = {array[token]}: expected 0 to {largest}")
    return _read_only(array, dtype)


def _read_only(array: NDArray[Any], dtype: type[_Number]) -> NDArray[_Number]:
    """Return the array itself if it is read-only and of the dtype, else a read-only copy."""
    if array.dtype == dtype and array.flags.c_contiguous and not array.flags.writeable:
        return array
    copy = np.array(array, dtype=dtype, order="C")
    copy.setflags(write=False)
    return copy
