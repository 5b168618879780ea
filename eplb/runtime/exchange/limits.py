"""Sizes of the exchange buffers and what happens to rows beyond them."""

import json
from dataclasses import dataclass
from typing import final

from eplb.core.named_enum import NamedEnum
from eplb.errors import EplbError, InputError


class ExchangeOverflowError(EplbError):
    """A buffer is too small for the rows and `Overflow` is RAISE."""


class Overflow(NamedEnum):
    """What happens to rows that do not fit into a buffer."""

    RAISE = "raise"
    DROP = "drop"
    """They are left out of the sum and counted per slot in `ExchangeHandle.dropped_P`."""


@final
@dataclass(frozen=True)
class ExchangeLimits:
    """Sizes of the buffers, as MindIE's configuration gives them.

    Parameters
    ----------
    buffer_scale_factors
        All-to-all: (length, factor) in descending order of length. A rank with T >= length tokens may send each peer
        ceil(int(T * K * factor) / R) copies, which is `factor` times an even exchange; empty: no limit.
    topk_scaling_factor
        AllGather: a rank keeps the first T_total * int(K * factor) of its rows sorted by slot; 1: no limit.
    overflow
        What happens past a limit.

    Raises
    ------
    InputError
        For factors <= 0, lengths that are not in descending order, or `topk_scaling_factor` outside (0, 1].
    """

    buffer_scale_factors: tuple[tuple[int, float], ...] = ()
    topk_scaling_factor: float = 1.0
    overflow: Overflow = Overflow.RAISE

    def __post_init__(self) -> None:
        lengths = [length for length, _ in self.buffer_scale_factors]
        if lengths != sorted(set(lengths), reverse=True):
            raise InputError(f"buffer_scale_factors: lengths {lengths}, expected each once, in descending order")
        for length, factor in self.buffer_scale_factors:
            if not 0 < factor < float("inf") or length < 0:
                raise InputError(f"buffer_scale_factors [{length}, {factor}]: expected length >= 0 and factor > 0")
        if not 0 < self.topk_scaling_factor <= 1:
            raise InputError(f"topk_scaling_factor = {self.topk_scaling_factor}: expected 0 < factor <= 1")

    def copies_per_peer(self, num_tokens: int, top_k: int, num_ranks: int) -> int:
        """Copies that a rank with `num_tokens` tokens may send to one rank."""
        for length, factor in self.buffer_scale_factors:
            if num_tokens >= length:
                return -(-int(num_tokens * top_k * factor) // num_ranks)
        return num_tokens * top_k

    def rows_per_rank(self, total_tokens: int, top_k: int) -> int:
        """Rows that a rank keeps after AllGather."""
        return (
            total_tokens * int(top_k * self.topk_scaling_factor)
            if self.topk_scaling_factor < 1
            else total_tokens * top_k
        )


def read_buffer_scale_factors(text: str) -> tuple[tuple[int, float], ...]:
    """Parse the table as written in MindIE's configuration: "[[8192, 5.2], [0, 8.0]]".

    Raises
    ------
    InputError
        If the text is not a list of pairs of an integer and a number.
    """
    refusal = InputError(f"buffer_scale_factors {text!r}: expected a list of [length, factor]")
    try:
        rows = [(length, factor) for length, factor in json.loads(text)]
    except (ValueError, TypeError):
        raise refusal from None
    if any(type(length) is not int or type(factor) not in (int, float) for length, factor in rows):
        raise refusal
    return tuple((length, float(factor)) for length, factor in rows)
