"""Holds how many tokens each expert of each layer got, window by window."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TypeGuard, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb_traces.display import facts_html
from eplb_traces.errors import InputError
from eplb_traces.model_shape import ModelShape
from eplb_traces.real_numbers import real_numbers


@final
class ExpertLoad:
    """Tokens per logical expert, frozen and checked on construction.

    Parameters
    ----------
    tokens
        [W, L, E] or [L, E] (one window): tokens routed to an expert. Finite and >= 0; all-zero layers are valid.
        Copied, unless it is a read-only C-ordered float64 [W, L, E] that owns its memory.
    weights
        [W] > 0: how much each window counts in `total`; 1 each by default.
    labels
        [W] names of the windows ("prefill", "step 12"); none by default.
    shape
        The model behind the load. By default only L and E are known.

    Raises
    ------
    InputError
        With the first value that is NaN, infinite or negative, or the dimension that does not fit.
    """

    tokens: NDArray[np.float64]
    weights: NDArray[np.float64]
    labels: tuple[str, ...]
    shape: ModelShape

    def __init__(
        self,
        tokens: ArrayLike,
        weights: ArrayLike | None = None,
        labels: Sequence[str] | None = None,
        shape: ModelShape | None = None,
    ) -> None:
        set_field = object.__setattr__
        set_field(self, "tokens", _checked_tokens(tokens))
        num_windows, num_layers, num_experts = self.tokens.shape
        set_field(self, "weights", _checked_weights(weights, num_windows))
        set_field(self, "labels", _checked_labels(labels))
        set_field(self, "shape", shape if shape is not None else ModelShape(num_layers, num_experts))
        if self.labels and len(self.labels) != num_windows:
            raise InputError(f"labels has {len(self.labels)} entries: expected one for each of {num_windows} windows")
        if (self.shape.num_layers, self.shape.num_experts) != (num_layers, num_experts):
            raise InputError(
                f"load of {num_layers} layers x {num_experts} experts: "
                f"the model has {self.shape.num_layers} x {self.shape.num_experts}"
            )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"ExpertLoad is frozen: {name} cannot be set")

    @property
    def num_windows(self) -> int:
        """W."""
        return int(self.tokens.shape[0])

    @property
    def num_layers(self) -> int:
        """L, MoE layers."""
        return int(self.tokens.shape[1])

    @property
    def num_experts(self) -> int:
        """E, logical experts of a layer."""
        return int(self.tokens.shape[2])

    @cached_property
    def total(self) -> NDArray[np.float64]:
        """[L, E] tokens summed over windows, each times its weight; read-only."""
        if self.num_windows == 1 and self.weights[0] == 1.0:
            first: NDArray[np.float64] = self.tokens[0]
            return first
        total: NDArray[np.float64] = np.einsum("w,wle->le", self.weights, self.tokens)
        total.setflags(write=False)
        return total

    @cached_property
    def empty_windows(self) -> NDArray[np.bool_]:
        """[W] windows without a token."""
        return np.asarray(~self.tokens.any(axis=(1, 2)))

    @cached_property
    def empty_layers(self) -> NDArray[np.bool_]:
        """[L] layers without a token in any window."""
        return np.asarray(~self.tokens.any(axis=(0, 2)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shape, tokens and weights: equal loads have equal digests on every machine."""
        sha = hashlib.sha256(repr(self.tokens.shape).encode())
        sha.update(self.tokens.astype("<f8", copy=False).tobytes())
        sha.update(self.weights.astype("<f8", copy=False).tobytes())
        return f"sha256:{sha.hexdigest()}"

    def select(self, windows: slice) -> "ExpertLoad":
        """Return the load of some windows, in order, with their weights and labels."""
        return ExpertLoad(self.tokens[windows], self.weights[windows], self.labels[windows] or None, self.shape)

    def select_layers(self, layers: Sequence[int]) -> "ExpertLoad":
        """Return the load of some layers, ascending; the model then has no others, dense ones included."""
        shape = ModelShape(
            len(layers),
            self.num_experts,
            self.shape.top_k,
            num_expert_groups=self.shape.num_expert_groups,
            top_k_groups=self.shape.top_k_groups,
            name=self.shape.name,
            expert_bytes=self.shape.expert_bytes,
        )
        return ExpertLoad(self.tokens[:, list(layers)], self.weights, self.labels or None, shape)

    def without_empty_windows(self) -> "ExpertLoad":
        """Return the load of the windows that have tokens; the load itself where all have, or none."""
        kept = ~self.empty_windows
        if kept.all() or not kept.any():
            return self
        labels = [label for label, keep in zip(self.labels, kept, strict=True) if keep] if self.labels else None
        return ExpertLoad(self.tokens[kept], self.weights[kept], labels, self.shape)

    def merged(self, windows_per_merge: int) -> "ExpertLoad":
        """Return the same load in coarser windows: sums of `windows_per_merge` neighbours, the last of fewer."""
        if windows_per_merge < 1:
            raise InputError(f"windows_per_merge = {windows_per_merge}: expected >= 1")
        starts = np.arange(0, self.num_windows, windows_per_merge)
        return ExpertLoad(np.add.reduceat(self.tokens * self.weights[:, None, None], starts, axis=0), shape=self.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExpertLoad):
            return NotImplemented
        return (
            self.shape == other.shape
            and self.labels == other.labels
            and np.array_equal(self.weights, other.weights)
            and np.array_equal(self.tokens, other.tokens)
        )

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[type["ExpertLoad"], tuple[object, ...]]:
        return ExpertLoad, (self.tokens, self.weights, self.labels or None, self.shape)

    def __repr__(self) -> str:
        return f"ExpertLoad({self.num_windows} windows x {self.num_layers} layers x {self.num_experts} experts)"

    def _repr_html_(self) -> str:
        facts = {"windows": self.num_windows, "tokens": f"{self.tokens.sum():,.0f}", "model": self.shape}
        hottest = f"{self.total.max():,.0f} tokens, layer {self.total.argmax() // self.num_experts}"
        return facts_html("ExpertLoad", {**facts, "hottest expert": hottest})


def logical_counts(
    physical_counts: NDArray[np.float64 | np.int64], physical_to_logical_map: NDArray[np.integer], num_experts: int
) -> NDArray[np.float64]:
    """Add up the counts of the slots of each expert.

    Parameters
    ----------
    physical_counts
        [.., L, P] tokens of each slot.
    physical_to_logical_map
        [L, P] experts; -1 is an empty slot.
    num_experts
        E

    Returns
    -------
    NDArray
        [.., L, E]

    Raises
    ------
    InputError
        If an empty slot has tokens.
    """
    num_layers, num_slots = physical_to_logical_map.shape
    empty = physical_to_logical_map < 0
    wrong = (physical_counts != 0) & empty
    if wrong.any():
        *window, layer, slot = (int(i) for i in np.argwhere(wrong)[0])
        tokens = physical_counts[(*window, layer, slot)]
        raise InputError(f"counts[layer {layer}, slot {slot}] = {tokens:g}: the slot is empty")
    flat = (np.arange(num_layers)[:, None] * num_experts + physical_to_logical_map)[~empty]
    rows = physical_counts.reshape(-1, num_layers, num_slots)
    size = num_layers * num_experts
    logical: NDArray[np.float64] = np.stack(
        [np.bincount(flat, weights=row[~empty], minlength=size).astype(np.float64) for row in rows]
    )
    return logical.reshape(*physical_counts.shape[:-1], num_experts)


def _checked_tokens(tokens: ArrayLike) -> NDArray[np.float64]:
    """Return a read-only float64 [W, L, E] with its own memory."""
    array = tokens if _is_kept(tokens) else real_numbers(tokens, "tokens")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"tokens has shape {array.shape}: expected [windows, layers, experts] or [layers, experts]")
    # One pass: a NaN, an infinity or a negative number fails at least one of the two comparisons on the extremes.
    if not (array.min() >= 0.0 and array.max() < np.inf):
        window, layer, expert = (int(i) for i in np.argwhere(~((array >= 0.0) & (array < np.inf)))[0])
        value = array[window, layer, expert]
        raise InputError(f"tokens[window {window}, layer {layer}, expert {expert}] = {value}: expected finite and >= 0")
    if array.view(np.int64).min() < 0:
        array = array + 0.0  # -0.0 becomes 0.0: equal loads then have equal bytes
    array.setflags(write=False)
    return array


def _is_kept(tokens: ArrayLike) -> TypeGuard[NDArray[np.float64]]:
    """Whether an array needs no copy: of the right type, and read-only from its owner on."""
    if type(tokens) is not np.ndarray or tokens.dtype != np.float64 or tokens.ndim != 3:
        return False
    flags = tokens.flags
    return bool(tokens.base is None and flags.owndata and flags.c_contiguous and not flags.writeable)


def _checked_labels(labels: Sequence[str] | None) -> tuple[str, ...]:
    for label in labels or ():
        try:
            is_text = isinstance(label, str) and bool(label.encode() or True)
        except UnicodeEncodeError:
            is_text = False
        if not is_text:
            raise InputError(f"label {label!r}: expected a text")
    return tuple(labels or ())


def _checked_weights(weights: ArrayLike | None, num_windows: int) -> NDArray[np.float64]:
    array = np.ones(num_windows) if weights is None else real_numbers(weights, "weights")
    if array.shape != (num_windows,):
        raise InputError(f"weights has shape {array.shape}: expected one for each of {num_windows} windows")
    if not (np.isfinite(array) & (array > 0)).all():
        raise InputError(f"weights = {array}: expected finite and > 0")
    array.setflags(write=False)
    return array
