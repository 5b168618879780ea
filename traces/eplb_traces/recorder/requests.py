"""Assigns the rows of each pass to requests, and selects the tokens to record."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError
from eplb_traces.recorder.caches import FoundCache

if TYPE_CHECKING:
    from torch import Tensor

_INPUT_NAMES = ("input_ids", "inputs_embeds")


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a batch in one pass.

    Parameters
    ----------
    requests
        [B]
    alive
        [B], on the device: False after an end token; None if not checked.
    is_new
        Whether these requests start with this pass.
    """

    requests: NDArray[np.int64]
    alive: "Tensor | None"
    is_new: bool


@final
class RequestTracker:
    """Numbers the requests.

    Rows continue the requests of an earlier pass if both passes use the same key-value cache object, it is not empty
    and there are as many rows. A cache filled outside the recording, or a copy of a cache, starts new requests. A
    second such cache that is as long as the first one after its pass may be its continuation or a copy, and is refused.
    """

    def __init__(self, end_tokens: Collection[int]) -> None:
        self.num_requests = 0
        self._end_tokens = sorted(end_tokens)
        self._ends: Tensor | None = None
        self._rows_of_cache: WeakKeyDictionary[object, Rows] = WeakKeyDictionary()
        self._after_unknown: tuple[int, int] | None = None  # rows and tokens, where the last pass got an unknown cache

    def rows(self, tokens: "Tensor", cache: FoundCache | None) -> Rows:
        """Return the rows of a pass with these inputs [B, S] or [B, S, H].

        Raises
        ------
        InputError
            If it cannot be decided whether a filled cache continues earlier requests.
        """
        known = None if cache is None or cache.length == 0 else self._rows_of_cache.get(cache.identity)
        self._check_continuation(tokens, cache if known is None else None)
        if known is None or len(known.requests) != tokens.shape[0]:
            first = self.num_requests
            self.num_requests += tokens.shape[0]
            return Rows(np.arange(first, self.num_requests), None, is_new=True)
        return Rows(known.requests, self._alive(known, tokens), is_new=False)

    def remember(self, caches: Iterable[object], rows: Rows) -> None:
        """Store the rows for the next pass with one of these cache objects."""
        for cache in caches:
            self._rows_of_cache[cache] = rows

    def _check_continuation(self, tokens: "Tensor", unknown: FoundCache | None) -> None:
        """Refuse the second of two unknown filled caches where it is as long as the first one after its pass."""
        earlier, self._after_unknown = self._after_unknown, None
        if unknown is None or not unknown.length:
            return
        num_rows, length = tokens.shape[:2]
        if earlier == (num_rows, unknown.length):
            raise InputError(
                f"a {type(unknown.identity).__name__} of {unknown.length} tokens is new in this pass of {length}, as "
                "the one before it was in its own: whether it continues those requests cannot be decided; expected the "
                "same cache object in every pass, or the next one in the output of the model"
            )
        self._after_unknown = (num_rows, unknown.length + length)

    def _alive(self, known: Rows, tokens: "Tensor") -> "Tensor | None":
        """Check for end tokens if each row has one token; several tokens start another turn of a conversation."""
        import torch

        if not self._end_tokens or tokens.ndim != 2 or tokens.shape[1] != 1:
            return None
        if self._ends is None or self._ends.device != tokens.device:  # created once, because that waits for the device
            self._ends = torch.tensor(self._end_tokens, device=tokens.device)
        ended = torch.isin(tokens[:, 0], self._ends)
        return ~ended if known.alive is None else known.alive & ~ended


def input_of(arguments: Mapping[str, object]) -> "Tensor":
    """Return the input of a pass as ids [B, S] or hidden states [B, S, H].

    Raises
    ------
    InputError
        If no argument of the forward is a tensor of these forms, with or without B.
    """
    import torch

    named = [arguments.get(name) for name in _INPUT_NAMES]
    tensors = [value for value in (*named, *arguments.values()) if torch.is_tensor(value)]
    if not tensors:
        raise InputError("the model was called without a tensor: expected token ids or hidden states")
    tokens = tensors[0]
    num_dimensions = 3 if tokens.is_floating_point() else 2
    if tokens.ndim == num_dimensions - 1:
        tokens = tokens.unsqueeze(0)
    if tokens.ndim != num_dimensions:
        raise InputError(
            f"the model was called with {tokens.dtype} {tuple(tokens.shape)}: expected [B, S] or [B, S, H]"
        )
    return tokens


def kept_tokens(attention_mask: object, tokens: "Tensor", rows: Rows) -> "Tensor | None":
    """Return [B * S], False for padding and for rows that have ended; None: all tokens are kept.

    Raises
    ------
    InputError
        If the mask is not [B, S or more], so that padding is unknown.
    """
    import torch

    num_rows, length = tokens.shape[:2]
    if attention_mask is None:
        return None if rows.alive is None else rows.alive.repeat_interleave(length)
    fits = torch.is_tensor(attention_mask) and attention_mask.ndim == 2 and attention_mask.shape[0] == num_rows
    if not fits or not torch.is_tensor(attention_mask) or attention_mask.shape[1] < length:
        found = tuple(attention_mask.shape) if torch.is_tensor(attention_mask) else type(attention_mask).__name__
        raise InputError(f"attention_mask is {found}: expected [{num_rows}, {length} or more], else padding is unknown")
    kept = attention_mask[:, -length:] != 0
    return (kept if rows.alive is None else kept & rows.alive[:, None].to(kept.device)).reshape(-1)
