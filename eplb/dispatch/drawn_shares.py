"""Gives solvers the shares of replicas that the seeded draw of SGLang's `static` dispatch leads to.

It is computed apart from `sglang_static`, which evaluates placements and describes the draw: a test compares the two.
"""

import random
from collections.abc import Sequence
from typing import Final

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.layer_threads import for_layer_chunks
from eplb.core.placement import Placement
from eplb.dispatch.replica_shares import source_shares
from eplb_traces import ModelShape

_SEED: Final = 42
RANK_PARTS: Final = 4
"""Parts of the ranks that are drawn for at the same time; the shares do not depend on the number of threads."""


def drawn_shares(placement: Placement, shape: ModelShape, sources: Sequence[float] | None) -> Floats:
    """[L, P] share of its expert's tokens that each slot gets; 0 in empty slots.

    Parameters
    ----------
    placement
        The whole placement: the draw of a layer depends on the layers before it.
    shape
        The model; rows of dense layers, where it holds them, take part in the draw.
    sources
        [R] share of the tokens that each rank sends; None: all alike.
    """
    from eplb.dispatch.drawn_shares_kernel import draw_shares

    topology = placement.topology
    *words, position = random.Random(_SEED).getstate()[1]
    layer_of_row, is_own = _file_rows(placement.num_layers, shape)
    source, seeded = source_shares(topology, sources), np.array(words, dtype=np.uint32)
    num_parts = min(RANK_PARTS, topology.num_ranks)
    edges = [topology.num_ranks * part // num_parts for part in range(num_parts + 1)]
    shares = np.zeros((num_parts, *placement.physical_to_logical_map.shape))

    def work(parts: slice) -> None:
        for part in range(parts.start, parts.stop):
            draw_shares(
                placement.physical_to_logical_map, topology.rank_of_slot, topology.node_of_rank, source, layer_of_row,
                is_own, seeded, position, (placement.num_experts, edges[part], edges[part + 1]), shares[part],
            )  # fmt: skip

    for_layer_chunks(work, num_parts)
    return np.asarray(shares.sum(axis=0))


def _file_rows(num_layers: int, shape: ModelShape) -> tuple[Ints, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """[H] layer of the placement in each row of SGLang's file: the first one in rows of dense layers; [H] its own."""
    if shape.moe_layer_ids is None or shape.num_hidden_layers is None:
        return np.arange(num_layers), np.ones(num_layers, dtype=np.bool_)
    layer_of_row = np.zeros(shape.num_hidden_layers, dtype=np.int64)
    is_own = np.zeros(shape.num_hidden_layers, dtype=np.bool_)
    ids = list(shape.moe_layer_ids)
    layer_of_row[ids], is_own[ids] = np.arange(num_layers), True
    return layer_of_row, is_own
