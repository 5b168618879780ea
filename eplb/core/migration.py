"""Finds which weights must move between two placements, from where, in which batches, and how long that takes.

**How a migration is executed.** Layer by layer, in three steps, as `runtime` does it and as vLLM and SGLang do:

1. the layer's batches run one after the other. In a batch a rank sends at most one expert and receives at most one, so
   it talks to one peer each way. What arrives goes to a staging buffer; live slots are only read;
2. copies inside a rank are staged from its live slots, or from what it has just received;
3. when all ranks are done the layer commits: staging goes to the live slots, then the new maps are published.

Until its commit a layer serves by its old map and afterwards by its new one; both hold every expert, so none is ever
without a live replica, and since no source is overwritten before it is read, exchanges and longer cycles are safe. The
price is staging memory: `staging_copies` experts on one rank. `migration_simulation` replays a migration and checks it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.topology import Topology
from eplb.errors import PlacementError
from eplb_traces.display import facts_html

if TYPE_CHECKING:
    import pandas as pd

_ARRAYS = ("layer", "slot", "source_slot", "hop", "batch")


class Hop(IntEnum):
    """How far a copy travels."""

    SAME_RANK = 0
    """Inside the rank: from another slot, or from what another slot of the rank has just received."""
    SAME_NODE = 1
    OTHER_NODE = 2


@final
@dataclass(frozen=True, eq=False)
class Migration:
    """The copies that turn one placement into another; make it with `Migration.between`.

    The arrays [M] have one entry for each slot whose expert changes to another one, by layer and slot.

    Parameters
    ----------
    before, after
        The placements, of the same model and the same slots.
    layer, slot, source_slot, hop, batch
        [M] layer; slot that is filled; slot that its expert comes from, in the old placement, or for an expert that
        the rank needs twice the slot that receives it; `Hop`; batch inside the layer, -1 for copies inside a rank.
    expert_bytes
        Bytes of one expert of one layer; None where unknown: then there are copies and no bytes or seconds.

    Raises
    ------
    PlacementError
        If the placements do not fit together, or an entry does not name a changed slot and a source of its expert.
    """

    before: Placement
    after: Placement
    layer: NDArray[np.int32]
    slot: NDArray[np.int32]
    source_slot: NDArray[np.int32]
    hop: NDArray[np.int8]
    batch: NDArray[np.int32]
    expert_bytes: float | None = None

    def __post_init__(self) -> None:
        _check_same_slots(self.before, self.after)
        if self.expert_bytes is not None and not 0 < self.expert_bytes < float("inf"):
            raise PlacementError(f"expert_bytes = {self.expert_bytes}: expected finite and > 0")
        for name in _ARRAYS:
            array = getattr(self, name)
            if array.shape != self.layer.shape:
                raise PlacementError(f"{name} has {array.size} entries: expected {self.layer.size} as layer has")
            array.setflags(write=False)
        layers, slots = np.nonzero(_changed(self.before, self.after))
        if not (np.array_equal(layers, self.layer) and np.array_equal(slots, self.slot)):
            raise PlacementError("layer, slot: expected the slots that get another expert, by layer and slot")
        self._check_sources()

    def _check_sources(self) -> None:
        old, new = self.before.physical_to_logical_map, self.after.physical_to_logical_map
        crossing = self.hop != Hop.SAME_RANK
        from_old = old[self.layer, self.source_slot] == self.expert
        from_sibling = (new[self.layer, self.source_slot] == self.expert) & (self.source_slot != self.slot)
        sound = from_old | (from_sibling & ~crossing)
        sound &= self.hop == _hops(self.before.topology, self.source_rank, self.rank)
        sound &= crossing == (self.batch >= 0)
        if not sound.all():
            i = int(np.argmin(sound))
            raise PlacementError(
                f"copy {i}, layer {self.layer[i]}, slot {self.slot[i]} from slot {self.source_slot[i]}: expected "
                f"a slot that holds expert {self.expert[i]}, its distance, and a batch if it is on another rank"
            )

    @classmethod
    def between(cls, before: Placement, after: Placement, expert_bytes: float | None = None) -> "Migration":
        """Find sources and batches.

        A copy comes from its own rank if that holds the expert, else from its node, else from another node; among
        holders equally near, from the rank that sends least. A layer has as few batches as its sources allow.

        Raises
        ------
        PlacementError
            If the placements are of different models or slots.
        """
        from eplb.core.migration_kernel import schedule_layers

        _check_same_slots(before, after)
        topology, shape = before.topology, before.physical_to_logical_map.shape
        source, batch = np.empty(shape, np.int32), np.empty(shape, np.int32)
        hop = np.empty(shape, np.int8)
        schedule_layers(
            before.physical_to_logical_map, after.physical_to_logical_map, before.num_experts,
            topology.rank_first_slot, topology.rank_of_slot, topology.node_of_rank, source, hop, batch,
        )  # fmt: skip
        layer, slot = np.nonzero(_changed(before, after))
        return cls(
            before, after, layer.astype(np.int32), slot.astype(np.int32), source[layer, slot], hop[layer, slot],
            batch[layer, slot], expert_bytes,
        )  # fmt: skip

    @property
    def topology(self) -> Topology:
        """Ranks, nodes and slots of both placements."""
        return self.before.topology

    @cached_property
    def expert(self) -> Map:
        """[M] logical expert that is copied."""
        return self.after.physical_to_logical_map[self.layer, self.slot]

    @cached_property
    def rank(self) -> Ints:
        """[M] rank whose slot is filled."""
        return self.topology.rank_of_slot[self.slot]

    @cached_property
    def source_rank(self) -> Ints:
        """[M] rank that the expert comes from."""
        return self.topology.rank_of_slot[self.source_slot]

    @property
    def moved_copies(self) -> int:
        """Experts that a rank must fetch from another rank, over all layers."""
        return int(np.count_nonzero(self.hop != Hop.SAME_RANK))

    @property
    def moved_fraction(self) -> float:
        """`moved_copies` over the slots of all layers."""
        return self.moved_copies / self.after.physical_to_logical_map.size

    @property
    def moved_bytes(self) -> float | None:
        """Bytes that cross ranks; None where the bytes of an expert are unknown."""
        return None if self.expert_bytes is None else self.moved_copies * self.expert_bytes

    def copies_of_hop(self, hop: Hop) -> int:
        """How many copies travel that far."""
        return int(np.count_nonzero(self.hop == hop))

    @cached_property
    def moved_copies_by_layer(self) -> Ints:
        """[L] experts fetched from another rank."""
        return np.bincount(self.layer[self.hop != Hop.SAME_RANK], minlength=self.before.num_layers)

    @cached_property
    def link_copies(self) -> Ints:
        """[R, R] replicas from each rank (row) to each other rank (column); 0 on the diagonal."""
        num_ranks = self.topology.num_ranks
        crossing = self.hop != Hop.SAME_RANK
        link = self.source_rank[crossing] * num_ranks + self.rank[crossing]
        return np.bincount(link, minlength=num_ranks**2).reshape(num_ranks, num_ranks)

    @property
    def link_bytes(self) -> Floats:
        """[R, R] the same in bytes; PlacementError where the bytes of an expert are unknown."""
        return np.multiply(self.link_copies, self._known_bytes, dtype=np.float64)

    @cached_property
    def num_batches_by_layer(self) -> Ints:
        """[L] batches; 0 for a layer in which nothing crosses ranks."""
        batches = np.zeros(self.before.num_layers, np.int64)
        np.maximum.at(batches, self.layer, self.batch + 1)
        return batches

    @property
    def num_batches(self) -> int:
        """Batches of all layers, one after the other."""
        return int(self.num_batches_by_layer.sum())

    @cached_property
    def staging_copies(self) -> int:
        """Most experts that one rank stages for one layer: its memory, in experts, while that layer migrates."""
        if not self.layer.size:
            return 0
        return int(np.bincount(self.layer.astype(np.int64) * self.topology.num_ranks + self.rank).max())

    @cached_property
    def transfer_s_by_layer(self) -> Floats:
        """[L] seconds that the batches of each layer take.

        A batch takes as long as its slowest copy: `expert_bytes` over the bandwidth of a rank inside a node or between
        nodes. Copies inside a rank and the commit count as free: memory is far faster than any link.

        Raises
        ------
        PlacementError
            If the bytes of an expert are unknown.
        """
        inside, across = (self._known_bytes / (g * 1e9) for g in self._gbps)
        first = np.cumsum(self.num_batches_by_layer) - self.num_batches_by_layer
        copy_s = np.array([0.0, inside, across])[self.hop]
        batch_s = np.zeros(self.num_batches)
        crossing = self.hop != Hop.SAME_RANK
        np.maximum.at(batch_s, first[self.layer[crossing]] + self.batch[crossing], copy_s[crossing])
        layer_of_batch = np.repeat(np.arange(self.before.num_layers), self.num_batches_by_layer)
        seconds = np.zeros(self.before.num_layers)
        np.add.at(seconds, layer_of_batch, batch_s)
        return seconds

    @property
    def _gbps(self) -> tuple[float, float]:
        return self.topology.intra_node_gbps, self.topology.inter_node_gbps

    @property
    def _known_bytes(self) -> float:
        if self.expert_bytes is None:
            raise PlacementError("the bytes of an expert are unknown: give expert_bytes (--expert-bytes)")
        return self.expert_bytes

    @property
    def transfer_s(self) -> float | None:
        """Seconds of all batches, one after the other; None where the bytes of an expert are unknown."""
        return None if self.expert_bytes is None else float(self.transfer_s_by_layer.sum())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Migration):
            return NotImplemented
        return (
            (self.before, self.after, self.expert_bytes) == (other.before, other.after, other.expert_bytes)
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _ARRAYS)
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash((self.before, self.after))

    def __reduce__(self) -> tuple[type["Migration"], tuple[object, ...]]:
        arrays = tuple(getattr(self, name) for name in _ARRAYS)
        return Migration, (self.before, self.after, *arrays, self.expert_bytes)

    def __repr__(self) -> str:
        volume = "" if self.moved_bytes is None else f", {self.moved_bytes / 1e9:.3f} GB"
        return f"Migration({self.moved_copies} copies between ranks in {self.num_batches} batches{volume})"

    def _repr_html_(self) -> str:
        return facts_html("Migration", self.summary())

    def to_frame(self) -> "pd.DataFrame":
        """One row a copy: layer, expert, from which rank and slot to which, how far, and in which batch."""
        import pandas as pd

        columns = {
            "layer": self.layer,
            "expert": self.expert,
            "source_rank": self.source_rank,
            "source_slot": self.source_slot,
            "rank": self.rank,
            "slot": self.slot,
            "hop": [Hop(hop).name.lower() for hop in self.hop],
            "batch": self.batch,
        }
        return pd.DataFrame(columns)

    def summary(self) -> dict[str, float | int]:
        """The figures by name, as `--json` prints them; bytes and seconds where the bytes of an expert are known."""
        volume = {} if self.moved_bytes is None else {"moved_bytes": self.moved_bytes}
        seconds = {} if self.transfer_s is None else {"transfer_s": self.transfer_s}
        return {
            "moved_copies": self.moved_copies,
            "moved_fraction": self.moved_fraction,
            **volume,
            "moved_between_nodes": self.copies_of_hop(Hop.OTHER_NODE),
            "copied_inside_ranks": self.copies_of_hop(Hop.SAME_RANK),
            "num_batches": self.num_batches,
            "staging_copies": self.staging_copies,
            **seconds,
        }


def rename_ranks(before: Placement, after: Placement, *, ranks_per_block: int | Sequence[int]) -> Placement:
    """Exchange whole ranks of `after` so that as many replicas as possible are already where they belong.

    Ranks are renamed layer by layer inside blocks of `ranks_per_block` neighbours (one number, or one for each block),
    only among ranks with equally many slots and equal speed, so no rank load changes. With the ranks of a node as
    block, no expert changes its node either. Maximises the number of replicas kept (Hungarian method,
    O(ranks_per_block^3) a block); then every copy that its rank keeps stays in its slot. The plan must not carry
    replica weights.

    Raises
    ------
    PlacementError
        If the placements do not fit together, the ranks do not divide into blocks, or `after` carries weights.
    """
    _check_same_slots(before, after)
    topology = before.topology
    blocks = _blocks(topology.num_ranks, ranks_per_block)
    if after.replica_weights is not None:
        raise PlacementError("replica_weights: ranks of a placement with weights are not renamed")
    from scipy.optimize import linear_sum_assignment

    first_slot = topology.rank_first_slot
    alike = np.equal.outer(topology.rank_num_slots, topology.rank_num_slots)
    alike &= np.equal.outer(topology.relative_speed, topology.relative_speed)
    renamed = np.empty_like(after.physical_to_logical_map)
    for layer in range(before.num_layers):
        kept = _holds(before, layer) @ _holds(after, layer).T
        worth = np.where(alike, kept, -float(topology.num_slots))  # never worth taking: identity is always allowed
        for block in blocks:
            for name, rank in zip(*linear_sum_assignment(worth[block, block], maximize=True), strict=True):
                to, source = first_slot[block.start + name], first_slot[block.start + rank]
                end = first_slot[block.start + rank + 1]
                renamed[layer, to : to + end - source] = after.physical_to_logical_map[layer, source:end]
    keep_slots(before.physical_to_logical_map, renamed, first_slot)
    return Placement(renamed, after.num_experts, after.topology)


def _blocks(num_ranks: int, ranks_per_block: int | Sequence[int]) -> list[slice]:
    if isinstance(ranks_per_block, int):
        if ranks_per_block < 1 or num_ranks % ranks_per_block:
            raise PlacementError(f"ranks_per_block = {ranks_per_block}: expected a divisor of {num_ranks} ranks")
        ranks_per_block = [ranks_per_block] * (num_ranks // ranks_per_block)
    if min(ranks_per_block) < 1 or sum(ranks_per_block) != num_ranks:
        raise PlacementError(f"ranks_per_block = {ranks_per_block}: expected counts >= 1 with sum {num_ranks}")
    ends = np.cumsum(ranks_per_block).tolist()
    return [slice(end - count, end) for end, count in zip(ends, ranks_per_block, strict=True)]


def keep_slots(old: Map, new: Map, first_slot: Ints) -> None:
    """Reorder the slots of each rank in `new`, in place, so that an expert that the rank had stays in its slot.

    Parameters
    ----------
    old, new
        [L, P] maps, -1 in empty slots.
    first_slot
        [R + 1] first slot of each rank, then P.
    """
    from eplb.core.migration_kernel import reorder_slots

    reorder_slots(old, new, first_slot)


def _holds(placement: Placement, layer: int) -> Floats:
    """[R, E] one where the rank holds the expert."""
    held = np.zeros((placement.topology.num_ranks, placement.num_experts + 1))  # the last column: empty slots
    held[placement.topology.rank_of_slot, placement.physical_to_logical_map[layer]] = 1.0
    return held[:, :-1]


def _check_same_slots(before: Placement, after: Placement) -> None:
    for name, old, new in (
        ("layers", before.num_layers, after.num_layers),
        ("experts", before.num_experts, after.num_experts),
        ("ranks", before.topology.num_ranks, after.topology.num_ranks),
        ("nodes", before.topology.nodes, after.topology.nodes),
        ("slots_per_rank", before.topology.slots_per_rank, after.topology.slots_per_rank),
    ):
        if old != new:
            raise PlacementError(f"{name} = {new} after {old}: expected placements of the same model and slots")


def _changed(before: Placement, after: Placement) -> NDArray[np.bool_]:
    new = after.physical_to_logical_map
    return (before.physical_to_logical_map != new) & (new != EMPTY_SLOT)


def _hops(topology: Topology, source_rank: Ints, rank: Ints) -> Ints:
    near = topology.node_of_rank[source_rank] == topology.node_of_rank[rank]
    return np.where(source_rank == rank, int(Hop.SAME_RANK), np.where(near, int(Hop.SAME_NODE), int(Hop.OTHER_NODE)))
