"""Predicts the seconds of dispatch and combine from bytes over links and a latency."""

from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats
from eplb.core.topology import Topology
from eplb.errors import InputError


@final
@dataclass(frozen=True)
class Link:
    """What one rank can send and receive over one kind of link.

    Parameters
    ----------
    gbps
        GB/s each way, both ways at once.
    latency_s
        Seconds of an exchange that carries nothing.
    source
        Where the numbers come from: "measured: ..." or "assumed: ...".

    Raises
    ------
    InputError
        For a bandwidth that is not > 0 or a latency that is not finite and >= 0.
    """

    gbps: float
    latency_s: float
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.gbps < float("inf"):
            raise InputError(f"gbps = {self.gbps}: expected finite and > 0")
        if not 0 <= self.latency_s < float("inf"):
            raise InputError(f"latency_s = {self.latency_s}: expected finite and >= 0")

    def seconds(self, num_bytes: float) -> float:
        """Seconds to move so many bytes each way; 0 for nothing."""
        return self.latency_s + num_bytes / (self.gbps * 1e9) if num_bytes > 0 else 0.0


@final
@dataclass(frozen=True)
class Links:
    """The links of a rank, inside its node and between nodes. They work at the same time."""

    intra_node: Link
    inter_node: Link

    def exchange_s(self, copies: Floats, topology: Topology, *, row_bytes: float) -> float:
        """Seconds until the slowest rank has sent and received everything.

        Parameters
        ----------
        copies
            [R, R] rows that each rank (row) sends to each other rank (column); the diagonal costs nothing.
        topology
            Which ranks share a node.
        row_bytes
            Bytes of one row on the wire.

        Raises
        ------
        InputError
            If `copies` is not [R, R].
        """
        num_ranks = topology.num_ranks
        if copies.shape != (num_ranks, num_ranks):
            raise InputError(f"copies has shape {copies.shape}: expected {(num_ranks, num_ranks)}")
        same_node = np.equal.outer(topology.node_of_rank, topology.node_of_rank)
        remote = np.where(np.eye(num_ranks, dtype=np.bool_), 0.0, copies) * row_bytes
        return max(
            self.intra_node.seconds(_busiest_way(np.where(same_node, remote, 0.0))),
            self.inter_node.seconds(_busiest_way(np.where(same_node, 0.0, remote))),
        )


def _busiest_way(sent: Floats) -> float:
    """The most that one rank sends or receives."""
    return float(max(sent.sum(axis=0).max(), sent.sum(axis=1).max()))


def expected_copies(rank_rows: Floats, *, tokens_per_rank: float, top_k: int) -> Floats:
    """[R, R] tokens that each rank sends to each rank, one copy a token and rank, if choices were independent.

    A choice goes to rank d with probability rank_rows[d] / sum; a token with K choices reaches d with
    1 - (1 - that) ** K. A trace gives exact numbers; this needs the load only.

    Parameters
    ----------
    rank_rows
        [R] rows that each rank executes.
    tokens_per_rank
        Tokens of each source rank.
    top_k
        K
    """
    total = rank_rows.sum()
    reached = 1.0 - (1.0 - rank_rows / total) ** top_k if total > 0 else np.zeros_like(rank_rows)
    return np.tile(tokens_per_rank * reached, (len(rank_rows), 1))
