"""Makes the batches that a step time is asked for: which rank sends how many rows to which slot."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from eplb.core.arrays import Floats, Ints
from eplb.core.counts import check_count
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.named_enum import NamedEnum
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.dispatch.engine_rules import expected_slot_load
from eplb.errors import InputError
from eplb_traces import RoutingTrace

_TOKENS_PER_RANK = {"prefill": 4096, "decode": 128, "mixed": 1024}


class Phase(NamedEnum):
    """What a step computes; it says how many tokens a rank has."""

    PREFILL = "prefill"
    """Whole prompts: time follows tokens."""
    DECODE = "decode"
    """One token a request: time follows the experts whose weights are streamed."""
    MIXED = "mixed"
    """Chunks of prompts beside decoding requests."""

    @property
    def tokens_per_rank(self) -> int:
        """A usual number: 4096, 128, 1024."""
        return _TOKENS_PER_RANK[self.value]


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """The choices of one step.

    Parameters
    ----------
    source_tokens
        [L, R, E] choices that the tokens of each rank make for each expert.
    tokens_per_rank
        Mean tokens of a rank.

    Raises
    ------
    InputError
        If the counts are not [L, R, E] and >= 0.
    """

    source_tokens: Ints
    tokens_per_rank: float

    def __post_init__(self) -> None:
        if self.source_tokens.ndim != 3 or (self.source_tokens < 0).any():
            raise InputError(
                f"source_tokens has shape {self.source_tokens.shape}: expected [layers, ranks, experts], none below 0"
            )
        self.source_tokens.setflags(write=False)

    @classmethod
    def sampled(cls, load: ArrayLike, *, num_ranks: int, tokens_per_rank: int, top_k: int, seed: int = 0) -> "Batch":
        """Draw a batch whose choices have the shares of a load.

        Choices are drawn one by one, so a token may choose an expert twice; counts of experts are multinomial.

        Parameters
        ----------
        load
            [L, E] tokens of each expert.
        num_ranks, tokens_per_rank, top_k
            Ranks, tokens of each, and choices of a token.
        seed
            Equal seeds give equal batches.

        Raises
        ------
        InputError
            If a layer has no load, a count is negative or not finite, or a number is below one.
        """
        tokens = np.asarray(load, dtype=np.float64)
        for name, count in (("num_ranks", num_ranks), ("tokens_per_rank", tokens_per_rank), ("top_k", top_k)):
            check_count(name, count)
        if tokens.ndim != 2 or not (tokens.sum(axis=1) > 0).all():
            raise InputError(f"load has shape {tokens.shape}: expected [layers, experts] with tokens in every layer")
        if not ((tokens >= 0) & np.isfinite(tokens)).all():
            raise InputError(f"load has counts from {tokens.min()} to {tokens.max()}: expected finite and >= 0")
        rng = np.random.default_rng(seed)
        share = tokens / tokens.sum(axis=1, keepdims=True)
        counts = [rng.multinomial(tokens_per_rank * top_k, row, size=num_ranks) for row in share]
        return cls(np.stack(counts).astype(np.int64), float(tokens_per_rank))

    @classmethod
    def evenly_sent(cls, counts: ArrayLike, *, num_ranks: int, top_k: int) -> "Batch":
        """The batch whose ranks send equal parts of given counts, up to one token.

        Parameters
        ----------
        counts
            [L, E] integers, choices of each expert.
        num_ranks, top_k
            Ranks, and choices of a token.

        Raises
        ------
        InputError
            If the counts are not [layers, experts], finite and >= 0, or a number is below one.
        """
        check_count("num_ranks", num_ranks)
        check_count("top_k", top_k)
        whole = np.asarray(counts, dtype=np.float64)
        if whole.ndim != 2 or not ((whole >= 0) & np.isfinite(whole)).all():
            raise InputError(f"counts has shape {whole.shape}: expected [layers, experts], finite and none below 0")
        parts = np.diff(np.round(whole[:, None] * np.linspace(0, 1, num_ranks + 1)[None, :, None]), axis=1)
        return cls(parts.astype(np.int64), float(whole.sum(axis=1).mean()) / (num_ranks * top_k))

    @classmethod
    def of_trace(cls, trace: RoutingTrace, *, num_ranks: int, tokens_per_rank: int) -> "Batch":
        """The first tokens of a trace, in its order; consecutive ones are on one rank, or where the trace has them.

        Raises
        ------
        InputError
            If the trace has fewer than `num_ranks` * `tokens_per_rank` tokens, a source rank that does not exist, or a
            number is below one.
        """
        check_count("num_ranks", num_ranks)
        check_count("tokens_per_rank", tokens_per_rank)
        shape = trace.shape
        wanted, taken = num_ranks * tokens_per_rank, 0
        counts = np.zeros((shape.num_layers, num_ranks, shape.num_experts), dtype=np.int64)
        for batch in trace.batches():
            ids = batch.expert_ids[: wanted - taken]
            rank = (taken + np.arange(len(ids))) // tokens_per_rank
            if batch.source_rank is not None:
                rank = batch.source_rank[: len(ids)].astype(np.int64)
                if rank.size and rank.max() >= num_ranks:
                    raise InputError(f"source_rank = {rank.max()}: expected below {num_ranks} ranks")
            for layer in range(shape.num_layers):
                np.add.at(counts[layer], (rank[:, None], ids[:, layer].astype(np.int64)), 1)
            taken += len(ids)
            if taken == wanted:
                return cls(counts, float(tokens_per_rank))
        raise InputError(
            f"the trace has {taken} tokens: expected {wanted}, {tokens_per_rank} for each of {num_ranks} ranks"
        )

    @property
    def num_layers(self) -> int:
        """L."""
        return self.source_tokens.shape[0]

    @property
    def load(self) -> Ints:
        """[L, E] choices of each expert."""
        return np.asarray(self.source_tokens.sum(axis=1))


def slot_counts(placement: Placement, layer: int, batch: Batch, rule: DispatchRule) -> Ints:
    """Whole rows of every slot of a layer: the rule's expectation, rounded so that no row is lost.

    The replicas of an expert get their expected parts, each rounded up or down, in slot order.

    Returns
    -------
    NDArray
        [P]; the rows of an expert's slots sum to its load in the batch.

    Raises
    ------
    InputError
        If the batch is of another model or another number of ranks.
    """
    num_ranks, num_experts = placement.topology.num_ranks, placement.num_experts
    expected = (placement.num_layers, num_ranks, num_experts)
    if batch.source_tokens.shape != expected:
        raise InputError(f"source_tokens has shape {batch.source_tokens.shape}: expected {expected} of the placement")
    share = expected_slot_load(placement, layer, batch.source_tokens[layer], rule)
    log2phy = placement.logical_to_physical_map[layer]
    exists = log2phy != EMPTY_SLOT
    by_expert: Floats = np.where(exists, share[np.where(exists, log2phy, 0)], 0.0)
    rounded = np.diff(np.round(np.cumsum(by_expert, axis=1) + 1e-9), axis=1, prepend=0.0)
    counts = np.zeros(placement.num_slots, dtype=np.int64)
    counts[log2phy[exists]] = rounded[exists].astype(np.int64)
    return counts
