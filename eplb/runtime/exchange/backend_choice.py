"""Chooses the exchange backend: symmetric memory where it exists, otherwise the one that moves fewer bytes."""

from dataclasses import dataclass
from math import comb
from typing import final

import torch

from eplb.errors import InputError, UnknownNameError
from eplb.runtime.exchange.allgather import AllGather
from eplb.runtime.exchange.alltoall import AllToAll
from eplb.runtime.exchange.limits import ExchangeLimits
from eplb.runtime.exchange.protocol import Backend
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.availability import symmetric_refusal
from eplb.runtime.exchange.symmetric.backend import Symmetric
from eplb.runtime.exchange.symmetric.region import BufferSizes

BACKENDS = ("allgather", "alltoall", "symmetric")


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


def make_backend(  # noqa: PLR0913  # what a backend is made of
    name: str,
    group: RankGroup,
    *,
    top_k: int,
    limits: ExchangeLimits | None = None,
    sizes: BufferSizes | None = None,
    device: torch.device | None = None,
) -> Backend:
    """Make a backend by name; copies are deduplicated, results pre-reduced.

    Parameters
    ----------
    name
        One of BACKENDS, or "auto": see `choose_backend`.
    group
        The processes; the call is collective for "symmetric" and for "auto" with sizes.
    top_k
        K.
    limits
        Sizes of the buffers of `allgather` and `alltoall`.
    sizes
        Largest batch of `symmetric`, which "auto" considers only with sizes.
    device
        Of this process; None: the CPU.

    Raises
    ------
    UnknownNameError
        For a name that is neither "auto" nor in BACKENDS.
    InputError
        For "symmetric" without sizes, with limits, or where its memory does not exist.
    """
    limits = ExchangeLimits() if limits is None else limits
    device = torch.device("cpu") if device is None else device
    chosen = name
    if name == "auto":
        chosen = choose_backend(group, top_k=top_k, limits=limits, sizes=sizes, device=device).name
    match chosen:
        case "allgather":
            return AllGather(group, limits=limits)
        case "alltoall":
            return AllToAll(group, limits=limits)
        case "symmetric":
            if sizes is None:
                raise InputError("backend symmetric: sizes are missing, expected the largest batch of a process")
            if limits != ExchangeLimits():
                raise InputError("backend symmetric: exchange limits are for allgather and alltoall")
            return Symmetric.create(group, sizes, device)
        case _:
            raise UnknownNameError("exchange", name, ("auto", *BACKENDS))


@final
@dataclass(frozen=True)
class BackendChoice:
    """The backend that "auto" stands for, and why."""

    name: str
    reason: str


def choose_backend(
    group: RankGroup, *, top_k: int, limits: ExchangeLimits, sizes: BufferSizes | None, device: torch.device
) -> BackendChoice:
    """Symmetric memory on GPUs that can address each other, otherwise `auto_backend`, with the reason.

    A collective call of all processes if `sizes` are given, so that they choose the same backend.
    """
    fallback = auto_backend(group.topology.num_ranks, top_k)
    if sizes is None:
        refusal = "no buffer sizes were given"
    elif limits != ExchangeLimits():
        refusal = "it has no exchange limits"
    elif device.type != "cuda":
        refusal = f"tensors on {device.type}, the kernels need a GPU"
    elif group.num_processes == 1:
        refusal = "one process has no peer"
    else:
        refusal = symmetric_refusal(group, device)
    return (
        BackendChoice(fallback, f"not symmetric: {refusal}") if refusal else BackendChoice("symmetric", "peer memory")
    )
