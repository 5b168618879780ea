"""Computes the bytes on every link of dispatch and combine, from the token copies of a placement.

A copy to the token's own rank crosses no link. Combine sends what dispatch sent, in the opposite direction: one partial
sum for each copy.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import final

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.counts import check_count
from eplb.core.topology import Topology
from eplb.evaluation.traffic import Traffic

FP8_BLOCK = 128
"""Values that share one scale (4 bytes) in FP8 activations, as DeepEP sends them."""


class Transfer(StrEnum):
    """How a runtime sends tokens."""

    PER_CHOICE = "per_choice"
    """One copy for each choice, without deduplication."""
    PER_RANK = "per_rank"
    """One copy for each rank, straight to it."""
    FORWARDED = "forwarded"
    """One copy for each node, to the rank there with the sender's number, which forwards it inside the node."""
    ALL_GATHER = "all_gather"
    """Every token to every rank, whatever it chose; combine is a reduce-scatter."""


class Activation(StrEnum):
    """Number formats of the activations sent."""

    FP8 = "fp8"
    """1 byte a value, and a scale of 4 bytes for each `FP8_BLOCK` values."""
    BF16 = "bf16"
    FP32 = "fp32"

    def token_bytes(self, hidden_size: int) -> float:
        """Bytes of one token.

        Raises
        ------
        InputError
            If `hidden_size` < 1.
        """
        check_count("hidden_size", hidden_size)
        if self is Activation.FP8:
            return hidden_size + 4.0 * -(-hidden_size // FP8_BLOCK)
        return hidden_size * (2.0 if self is Activation.BF16 else 4.0)


@final
@dataclass(frozen=True, eq=False)
class LinkTraffic:
    """Token copies between ranks, summed over layers and tokens of a trace, in one direction."""

    topology: Topology
    transfer: Transfer
    copies: Floats
    """[R, R] from rank (row) to rank; 0 on the diagonal."""
    num_token_layers: float
    """Tokens x layers."""

    @property
    def between_nodes(self) -> Floats:
        """[R, R] the copies that leave their node; 0 elsewhere."""
        node = self.topology.node_of_rank
        return np.where(node[:, None] != node, self.copies, 0.0)

    @property
    def inside_nodes(self) -> Floats:
        """[R, R] the copies that stay on their node; 0 elsewhere."""
        return self.copies - self.between_nodes

    @property
    def reversed(self) -> "LinkTraffic":
        """Combine: every copy back."""
        return LinkTraffic(self.topology, self.transfer, self.copies.T, self.num_token_layers)

    @cached_property
    def busiest_link(self) -> tuple[int, int]:
        """Sender and receiver of the most copies over bandwidth; ties to the lowest ranks."""
        gbps = self.topology.inter_node_gbps, self.topology.intra_node_gbps
        sender, receiver = np.unravel_index(
            np.argmax(self.between_nodes / gbps[0] + self.inside_nodes / gbps[1]), self.copies.shape
        )
        return int(sender), int(receiver)

    def seconds(self, token_bytes: float) -> float:
        """Time of the slowest rank's traffic at the bandwidths of the topology, without latencies.

        A rank sends and receives at the same time, and inside its node and between nodes at the same time: the largest
        of the four times of any rank, for all layers and tokens together.
        """
        outside, inside = self.between_nodes, self.inside_nodes
        topology = self.topology
        return max(
            float(np.max(copies.sum(axis=axis))) * token_bytes / (gbps * 1e9)
            for copies, gbps in ((outside, topology.inter_node_gbps), (inside, topology.intra_node_gbps))
            for axis in (0, 1)
        )

    def summary(self, token_bytes: float | None = None) -> dict[str, float | int | list[int]]:
        """Figures by name: copies a token and layer; with `token_bytes` also bytes of the whole trace and seconds."""
        outside, inside = self.between_nodes, self.inside_nodes
        per = 1 / self.num_token_layers
        sender, receiver = self.busiest_link
        found: dict[str, float | int | list[int]] = {
            "inter_node_copies_per_token": float(outside.sum() * per),
            "intra_node_copies_per_token": float(inside.sum() * per),
            "busiest_link": [sender, receiver],
            "busiest_link_copies": float(self.copies[sender, receiver]),
        }
        if token_bytes is None:
            return found
        by_kind = {"inter_node": outside, "intra_node": inside}
        for kind, copies in by_kind.items():
            found[f"{kind}_bytes"] = float(copies.sum() * token_bytes)
            found[f"{kind}_out_bytes_busiest_rank"] = float(copies.sum(axis=1).max() * token_bytes)
            found[f"{kind}_in_bytes_busiest_rank"] = float(copies.sum(axis=0).max() * token_bytes)
        found["busiest_link_bytes"] = float(self.copies[sender, receiver] * token_bytes)
        found["seconds"] = self.seconds(token_bytes)
        return found


def link_traffic(traffic: Traffic, transfer: Transfer) -> LinkTraffic:
    """The copies of dispatch on every link.

    Parameters
    ----------
    traffic
        What the ranks and nodes receive.
    transfer
        How the runtime sends them.
    """
    topology = traffic.topology
    if transfer is Transfer.ALL_GATHER:
        copies = np.repeat(traffic.source_tokens[:, None] * traffic.num_layers, topology.num_ranks, axis=1)
    elif transfer is Transfer.PER_CHOICE:
        copies = traffic.choices.sum(axis=0)
    elif transfer is Transfer.PER_RANK:
        copies = traffic.rank_matrix.copy()
    else:
        copies = _forwarded(traffic)
    np.fill_diagonal(copies, 0.0)
    return LinkTraffic(topology, transfer, copies, float(traffic.source_tokens.sum() * traffic.num_layers))


def _forwarded(traffic: Traffic) -> Floats:
    """[R, R] one copy to the sender's counterpart on every node visited, and from there to the ranks visited."""
    node_of_rank = traffic.topology.node_of_rank
    counterpart = _counterparts(node_of_rank)
    by_rank, by_node = traffic.rank_matrix, traffic.node_copies.sum(axis=0)
    copies = np.zeros_like(by_rank)
    for source in range(len(by_rank)):
        np.add.at(copies, (source, counterpart[source]), by_node[source])
        np.add.at(copies, (counterpart[source, node_of_rank], np.arange(len(by_rank))), by_rank[source])
    return copies


def _counterparts(node_of_rank: Ints) -> Ints:
    """[R, N] rank of each node with the same number in its node as the sender; modulo where the node has fewer ranks.

    On its own node a rank is its own counterpart.
    """
    num_nodes = int(node_of_rank.max()) + 1
    members = [np.flatnonzero(node_of_rank == node) for node in range(num_nodes)]
    own_number = np.array([int((node_of_rank[:rank] == node).sum()) for rank, node in enumerate(node_of_rank)])
    return np.stack([ranks[own_number % ranks.size] for ranks in members], axis=1)
