"""Finds the nearest replica as SGLang does, and repeats the seeded draw of its `static` dispatch.

Described from SGLang 0.5.23, ``srt/eplb/expert_location.py`` (`_find_nearest_expert`,
`compute_logical_to_rank_dispatch_physical_map`, `ExpertLocationMetadata.init_by_mapping`). A server that starts from
an expert location file first replaces, on each rank, the candidates of every expert by the nearest replica where the
rank has one. Each rank then walks the file with a generator of its own, seeded alike, and draws only for experts of
which it has no nearest replica. So two ranks draw the same values only as long as they lack a nearest replica of the
same experts.

Generators that are seeded alike give one stream of 32-bit words, and a rank's generator is a position in it. Ranks that
come to the same position draw alike from there on, which is computed once.
"""

import random
from collections.abc import Iterator
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.placement import Placement
from eplb_traces import ModelShape

_SEED: Final = 42
_WORDS_AT_ONCE: Final = 4096


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

    Cost: one draw for each layer, expert and distinct position of the generators that draw for it.

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
    slots = np.stack([nearest_slots(placement, layer) for layer in range(placement.num_layers)])
    is_far, stream = slots < 0, _Stream(_SEED)
    position = np.zeros(placement.topology.num_ranks, dtype=np.int64)
    for layer, is_moe in _file_rows(placement.num_layers, shape):
        known: dict[tuple[int, int, int], tuple[NDArray[np.int64], int]] = {}
        for expert in np.flatnonzero(is_far[layer].any(axis=0)).tolist():
            far = np.flatnonzero(is_far[layer, :, expert])
            candidates = placement.logical_to_physical_map[layer, expert]
            candidates = candidates[candidates >= 0]
            drawn = np.empty(far.size, dtype=np.int64)
            starts = position[far]
            for start in np.unique(starts).tolist():
                key = start, far.size, candidates.size
                if key not in known:
                    known[key] = stream.fair_draw(*key)
                alike = starts == start
                drawn[alike] = known[key][0][alike]
                position[far[alike]] = known[key][1]
            if is_moe:
                slots[layer, far, expert] = candidates[drawn]
    return slots


@final
class _Stream(random.Random):
    """Python's generator, set to any position in the stream of 32-bit words that a seed gives."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._source = random.Random(seed)
        self._words: list[int] = []
        self._position = 0

    def getrandbits(self, k: int, /) -> int:
        """The high bits of the next word, for k <= 32."""
        if self._position == len(self._words):
            block = self._source.getrandbits(32 * _WORDS_AT_ONCE)  # the first word lowest
            self._words += np.frombuffer(block.to_bytes(4 * _WORDS_AT_ONCE, "little"), dtype="<u4").tolist()
        word = self._words[self._position]
        self._position += 1
        return word >> (32 - k)

    def fair_draw(self, position: int, num_draws: int, num_candidates: int) -> tuple[NDArray[np.int64], int]:
        """Draw in random order, the numbers of any two candidates differing by at most one; the position after it."""
        self._position = position
        rounds, rest = divmod(num_draws, num_candidates)
        drawn = [*list(range(num_candidates)) * rounds, *self.sample(range(num_candidates), rest)]
        self.shuffle(drawn)
        return np.array(drawn, dtype=np.int64), self._position


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
