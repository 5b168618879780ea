"""Plans one layer for few visits: experts to nodes, replicas and ranks inside each node, then the ranks of a node."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.topology import Topology
from eplb.errors import InfeasibleError
from eplb.strategies.greedy.greedy import Greedy

MOST_OF_A_RANK = 0.75
"""An expert gets so many replicas at least that one of them has at most this share of the mean rank's load."""
NODE_SHARES_OF_SLACK = 0.85, 0.6, 0.3
"""How much of the load allowed above the mean a node may use; the rest is for its ranks to differ. Tried in turn."""


@final
@dataclass(frozen=True, kw_only=True)
class SearchSteps:
    """Moves of the searches, and how many tokens they see.

    Parameters
    ----------
    coarse, polish
        Moves of experts between nodes: from each start with a sample of the tokens, and from the best with all.
    coarse_tokens
        Size of that sample.
    ranks
        Moves of replicas between the ranks of a node.
    rank_tokens
        Size of the sample of the tokens for these.
    """

    coarse: int = 600
    polish: int = 200
    coarse_tokens: int = 20_000
    ranks: int = 150
    rank_tokens: int = 32_768


@final
@dataclass(frozen=True, eq=False)
class LayerTask:
    """What one layer is planned from."""

    expert_ids: NDArray[np.uint16]
    """[T, K] choices of the tokens to fit."""
    load: Floats
    """[E] tokens."""
    rank_cap: Floats
    """[R] most tokens of each rank."""
    topology: Topology
    steps: SearchSteps
    seed: int

    def node_cap(self, share_of_slack: float) -> Floats:
        """[N] most tokens of each node: the mean, and a share of what the caps of its ranks allow above it."""
        topology = self.topology
        caps = np.bincount(topology.node_of_rank, weights=self.rank_cap, minlength=topology.num_nodes)
        speed = np.bincount(topology.node_of_rank, weights=topology.relative_speed, minlength=topology.num_nodes)
        mean = self.load.sum() * speed / speed.sum()
        return np.asarray(mean + (caps - mean) * share_of_slack)

    def sample(self, num_tokens: int) -> NDArray[np.uint16]:
        """[t, K] choices of evenly spaced tokens, at most `num_tokens`."""
        return np.ascontiguousarray(self.expert_ids[:: max(1, -(-len(self.expert_ids) // num_tokens))])


def plan_layer(task: LayerTask, balanced: Map, starts: Sequence[Map]) -> Map:
    """Return the map [P] with the fewest nodes a token, then ranks, that keeps every rank under its cap.

    Parameters
    ----------
    task
        The layer.
    balanced
        [P] a map that keeps the caps; it is returned if no other one does or none has fewer visits.
    starts
        Maps [P] to start from; each counts as the node of the most replicas of every expert.
    """
    topology = task.topology
    if topology.num_nodes == 1:
        everyone = np.arange(task.load.size)
        return _better(task, balanced, _arranged(task, balanced, everyone, np.arange(topology.num_ranks))[0])
    for share in NODE_SHARES_OF_SLACK:
        node = best_partition(task, starts, balanced, share)
        row = None if node is None else _fill_nodes(task, node)
        if row is not None:
            return _better(task, balanced, row)
    return balanced


def _fill_nodes(task: LayerTask, node: Ints) -> Map | None:
    """[P] replicas and ranks of the experts of every node; None if a rank would be above its cap, or a node empty."""
    topology = task.topology
    row = np.empty(topology.num_slots, np.int32)
    for n in range(topology.num_nodes):
        experts, ranks = np.flatnonzero(node == n), np.flatnonzero(topology.node_of_rank == n)
        if experts.size == 0:  # its slots cannot be filled
            return None
        slots = slice(topology.rank_first_slot[ranks[0]], topology.rank_first_slot[ranks[-1] + 1])
        first_slot = topology.rank_first_slot[ranks[0] : ranks[-1] + 2] - slots.start
        try:
            packed, _ = Greedy().pack(task.load[experts][None], first_slot, topology.relative_speed[ranks])
        except InfeasibleError:
            return None
        row[slots], over = _arranged(task, experts[packed[0]].astype(np.int32), experts, ranks)
        if over > 0:
            return None
    return row


def best_partition(task: LayerTask, starts: Sequence[Map], balanced: Map, share_of_slack: float) -> Ints | None:
    """[E] node of each expert with the fewest visits found under the caps of the nodes; None if none meets them."""
    from eplb.strategies.traffic.node_partition_kernel import partition_experts

    topology, steps = task.topology, task.steps
    node_of_slot = topology.node_of_rank[topology.rank_of_slot]
    room = np.bincount(node_of_slot, minlength=topology.num_nodes)
    least = np.zeros(topology.num_nodes, np.int64)
    np.maximum.at(least, topology.node_of_rank, topology.rank_num_slots)
    slots = np.minimum(_needed_replicas(task), np.bincount(balanced, minlength=task.load.size))
    limits = task.load, slots, task.node_cap(share_of_slack), room, least

    def search(ids: NDArray[np.uint16], node: Ints, num_steps: int) -> tuple[float, float]:
        first = np.arange(len(ids) + 1) * ids.shape[1]
        visits, excess = partition_experts(
            first, ids.ravel().astype(np.int32), *limits, num_steps, task.seed, node
        )  # fmt: skip
        return excess, visits

    sample = task.sample(steps.coarse_tokens)
    found: list[tuple[float, float, Ints]] = []
    for start in starts:
        held = np.zeros((task.load.size, topology.num_nodes), np.int64)
        np.add.at(held, (start, node_of_slot), 1)
        node = held.argmax(axis=1)
        found.append((*search(sample, node, steps.coarse), node))
    node = min(found, key=lambda each: each[:2])[2]
    excess, _ = search(task.expert_ids, node, steps.polish)
    return node if excess == 0 else None


def _needed_replicas(task: LayerTask) -> Ints:
    """[E] replicas with which no replica has more than `MOST_OF_A_RANK` of the mean rank's load."""
    most = MOST_OF_A_RANK * task.load.sum() / task.topology.num_ranks
    return np.maximum(1, np.ceil(task.load / most)).astype(np.int64)


def _arranged(task: LayerTask, row: Map, experts: Ints, ranks: Ints) -> tuple[Map, float]:
    """Arrange the replicas of some ranks that hold all replicas of `experts`; returns what is above the caps too."""
    from eplb.strategies.traffic.rank_arrangement_kernel import arrange_replicas
    from eplb.strategies.traffic.token_lists_kernel import choices_among

    local_id = np.full(task.load.size, -1, np.int32)
    local_id[experts] = np.arange(experts.size)
    # A token with one choice here visits one rank wherever its expert is.
    first, choice = choices_among(task.sample(task.steps.rank_tokens), local_id, 2)
    local = local_id[row]
    first_slot = task.topology.rank_first_slot[ranks[0] : ranks[-1] + 2]
    _, over = arrange_replicas(
        first, choice, task.load[experts], first_slot - first_slot[0], task.rank_cap[ranks], task.steps.ranks,
        task.seed, local,
    )  # fmt: skip
    return experts[local].astype(np.int32), over


def _better(task: LayerTask, balanced: Map, row: Map) -> Map:
    """The map with fewer nodes a token, then ranks; `balanced` where they are equal."""
    return row if _visits(task, row) < _visits(task, balanced) else balanced


def _visits(task: LayerTask, row: Map) -> tuple[float, float]:
    """Expected nodes and ranks that the tokens visit under even dispatch."""
    from eplb.strategies.traffic.token_lists_kernel import expected_visits

    topology, num_experts = task.topology, task.load.size
    count = np.bincount(row, minlength=num_experts)
    by_rank = np.zeros((num_experts, topology.num_ranks))
    by_rank[row, topology.rank_of_slot] = 1.0 / count[row]
    by_node = np.zeros((num_experts, topology.num_nodes))
    np.add.at(by_node, (row, topology.node_of_rank[topology.rank_of_slot]), 1.0 / count[row])
    whole = np.minimum(by_node, 1.0)
    return round(expected_visits(task.expert_ids, whole), 6), round(expected_visits(task.expert_ids, by_rank), 6)
