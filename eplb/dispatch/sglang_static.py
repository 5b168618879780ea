"""Finds the nearest replica as SGLang does, and repeats the seeded draw of its `static` dispatch.

Described from SGLang 0.5.23, ``srt/eplb/expert_location.py`` (`_find_nearest_expert`,
`compute_logical_to_rank_dispatch_physical_map`, `ExpertLocationMetadata.init_by_mapping`). A server that starts from
an expert location file first replaces, on each rank, the candidates of every expert by the nearest replica where the
rank has one. Each rank then walks the file with a generator of its own, seeded alike, and draws only for experts of
which it has no nearest replica. So two ranks draw the same values only as long as they lack a nearest replica of the
same experts.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.placement import Placement
from eplb_traces import ModelShape

_SEED: Final = 42


def nearest_slots(placement: Placement, layer: int) -> NDArray[np.int32]:
    """Find the nearest replica of every expert for every rank.

    It is the only replica; otherwise the first one (lowest slot) on the rank; otherwise the first one on the rank's
    node, if the expert has others on another node.

    Returns
    -------
    NDArray
        [R, E] slots; -1 where a rank has no nearest replica.
    """
    topology, log2phy = placement.topology, placement.logical_to_physical_map[layer]
    exists = log2phy >= 0
    slot_rank = topology.rank_of_slot[log2phy]
    ranks = np.arange(topology.num_ranks)[:, None, None]
    on_rank = exists & (slot_rank == ranks)
    on_node = exists & (topology.node_of_rank[slot_rank] == topology.node_of_rank[ranks])
    on_node &= (exists & ~on_node).any(axis=2, keepdims=True)
    single = exists.sum(axis=1) == 1
    candidates = np.where(on_rank.any(axis=2, keepdims=True), on_rank, on_node)
    first = np.take_along_axis(log2phy[None], candidates.argmax(axis=2)[..., None], axis=2)[..., 0]
    near = np.where(candidates.any(axis=2), first, -1)
    return np.where(single, log2phy[:, 0], near).astype(np.int32)


def static_slot_map(placement: Placement, shape: ModelShape | None = None) -> NDArray[np.int32]:
    """Give the slot to which each rank sends each expert's tokens under SGLang's `static`.

    Cost: one draw for each layer, expert and distinct history of the ranks without a nearest replica of it.

    Parameters
    ----------
    placement
        The whole placement, as it is written to the expert location file.
    shape
        The model. Where it holds the ids of the MoE layers and the number of all layers, the rows of dense layers
        take part in the walk, as the writer of the file fills them. None, or a shape without them: the file has the
        placement's rows only.

    Returns
    -------
    NDArray
        [L, R, E] slots.
    """
    num_ranks = placement.topology.num_ranks
    slots = np.stack([nearest_slots(placement, layer) for layer in range(placement.num_layers)])
    is_far = slots < 0
    walks = [_Walk(frozenset(range(num_ranks)), random.Random(_SEED))]
    for layer, is_moe in _file_rows(placement.num_layers, shape):
        for expert in np.flatnonzero(is_far[layer].any(axis=0)).tolist():
            far = np.flatnonzero(is_far[layer, :, expert]).tolist()
            candidates = placement.logical_to_physical_map[layer, expert]
            walks = [part for walk in walks for part in walk.split(frozenset(far))]
            for walk in walks:
                if walk.ranks.isdisjoint(far):
                    continue
                drawn = _fair_draw(candidates[candidates >= 0].tolist(), len(far), walk.draw)
                if is_moe:
                    for rank, slot in zip(far, drawn, strict=True):
                        if rank in walk.ranks:
                            slots[layer, rank, expert] = slot
    return slots


@final
@dataclass(frozen=True)
class _Walk:
    """Ranks that have drawn for the same experts so far, and their common generator."""

    ranks: frozenset[int]
    draw: random.Random

    def split(self, far: frozenset[int]) -> Iterator["_Walk"]:
        """The ranks that draw now and those that do not, each with the generator as it is."""
        inside, outside = self.ranks & far, self.ranks - far
        if inside and outside:
            kept = random.Random()
            kept.setstate(self.draw.getstate())
            yield _Walk(inside, self.draw)
            yield _Walk(outside, kept)
        else:
            yield self


def _file_rows(num_layers: int, shape: ModelShape | None) -> Iterator[tuple[int, bool]]:
    """The layer of the placement that fills each row of the file, and whether the row is that of a MoE layer.

    The writer fills the row of a dense layer with the first MoE layer's (`eplb.formats.sglang`).
    """
    if shape is None or shape.moe_layer_ids is None or shape.num_hidden_layers is None:
        yield from ((layer, True) for layer in range(num_layers))
        return
    layer_of_id = {layer_id: layer for layer, layer_id in enumerate(shape.moe_layer_ids)}
    for layer_id in range(shape.num_hidden_layers):
        yield layer_of_id.get(layer_id, 0), layer_id in layer_of_id


def _fair_draw(candidates: list[int], num_draws: int, draw: random.Random) -> list[int]:
    """Draws in random order in which the numbers of any two candidates differ by at most one."""
    rounds, rest = divmod(num_draws, len(candidates))
    drawn = [*candidates * rounds, *draw.sample(candidates, rest)]
    draw.shuffle(drawn)
    return drawn
