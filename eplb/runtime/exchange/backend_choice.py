"""Chooses the exchange backend that moves fewer bytes, by a formula."""

from dataclasses import dataclass
from math import comb
from typing import final

from eplb.errors import UnknownNameError
from eplb.runtime.exchange.allgather import AllGather
from eplb.runtime.exchange.alltoall import AllToAll
from eplb.runtime.exchange.limits import ExchangeLimits
from eplb.runtime.exchange.protocol import Backend
from eplb.runtime.exchange.rank_group import RankGroup

BACKENDS = ("allgather", "alltoall")


@final
@dataclass(frozen=True)
class ExchangeBytes:
    """Bytes of hidden states that one rank receives in dispatch under uniform routing."""

    allgather: float
    alltoall: float
    """One copy per token and rank."""
    alltoall_no_dedup: float
    """One copy per selection."""


def exchange_bytes(num_ranks: int, *, num_tokens: int, top_k: int, num_experts: int, token_bytes: int) -> ExchangeBytes:
    """Bytes that one rank receives from the others when each rank holds `num_tokens` tokens.

    A token is sent to a given rank with probability p = 1 - C(E - E/R, K) / C(E, K), so AllGather moves 1/p times the
    bytes of the deduplicated all-to-all. Combine moves as many bytes back.
    """
    others = (num_ranks - 1) * num_tokens * token_bytes
    elsewhere = num_experts - num_experts // num_ranks
    reached = 1 - comb(elsewhere, top_k) / comb(num_experts, top_k)
    return ExchangeBytes(others, others * reached, others * top_k / num_ranks)


def auto_backend(num_ranks: int, top_k: int) -> str:
    """AllGather if R <= K, because then nearly every token is sent to every rank; otherwise all-to-all."""
    return "allgather" if num_ranks <= top_k else "alltoall"


def make_backend(name: str, group: RankGroup, *, top_k: int, limits: ExchangeLimits | None = None) -> Backend:
    """Make a backend by name; "auto" applies `auto_backend`. Copies are deduplicated, results pre-reduced.

    Raises
    ------
    UnknownNameError
        For a name that is neither "auto" nor in BACKENDS.
    """
    chosen = auto_backend(group.topology.num_ranks, top_k) if name == "auto" else name
    limits = ExchangeLimits() if limits is None else limits
    match chosen:
        case "allgather":
            return AllGather(group, limits=limits)
        case "alltoall":
            return AllToAll(group, limits=limits)
        case _:
            raise UnknownNameError("exchange", name, ("auto", *BACKENDS))
