"""Counts the pairs of choices of a trace, as a stream and on several threads."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from eplb_traces.routing_trace import RoutingTrace
from eplb_traces.usable_cores import usable_cores

BYTES_PER_PAIR = 12  # of memory for one entry of a table while it is counted and handed over
_MOST_TOKENS = 2**32 - 1  # that a narrow table can count: half the memory of a wide one, so more of it is in the cache


def pair_counts(trace: RoutingTrace, layers: list[int], *, distance: int) -> tuple[NDArray[np.int64], int]:
    """Count the pairs of some layers in one pass over the trace, on as many threads as the process has cores.

    Every thread has its own layers, so the result does not depend on their number.

    Parameters
    ----------
    trace
        Token-level choices.
    layers
        Where the pair's first expert is; every layer + distance < L.
    distance
        Layers from the first expert to the second: as in `coactivation_kernels.count_pairs`.

    Returns
    -------
    tuple
        [n, E, E] int64, the tables of that kernel, and the tokens that were counted.
    """
    from eplb_traces.coactivation.pair_counts_kernel import count_pairs

    num_experts = trace.shape.num_experts
    narrow = np.zeros((len(layers), num_experts, num_experts), dtype=np.uint32)
    full = np.zeros(1, dtype=np.int64)  # sums of full narrow tables
    first_layer = np.array(layers, dtype=np.int64)
    num_tokens = in_narrow = 0

    def count_part(ids: NDArray[np.uint16], part: slice) -> None:
        count_pairs(ids, first_layer[part], distance, narrow[part])

    num_threads = min(usable_cores(), len(layers))
    with ThreadPoolExecutor(num_threads) as pool:
        for batch in trace.batches():
            if in_narrow + batch.num_tokens > _MOST_TOKENS:
                full = full + narrow
                narrow[:] = in_narrow = 0
            list(pool.map(partial(count_part, batch.expert_ids), _parts(len(layers), num_threads)))
            in_narrow += batch.num_tokens
            num_tokens += batch.num_tokens
    return full + narrow, num_tokens


def _parts(num_layers: int, num_threads: int) -> list[slice]:
    """Slices that cover the layers, two a thread, to balance their load."""
    num_parts = 1 if num_threads == 1 else min(num_layers, 2 * num_threads)
    edges = [num_layers * i // num_parts for i in range(num_parts + 1)]
    return [slice(first, stop) for first, stop in pairwise(edges)]
