"""Knows how to run a kernel over the layers on several threads; knows no kernel. Layers are independent everywhere."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

CHUNKS_PER_THREAD = 3  # layers differ in cost: a thread that is done early takes another chunk


def for_layer_chunks(work: Callable[[slice], None], num_layers: int) -> None:
    """Call `work` on slices that cover the layers, on as many threads as this process may use cores.

    `work` must release the GIL to gain from it and write only to its own layers; so the result does not depend on the
    number of threads.
    """
    num_threads = min(len(os.sched_getaffinity(0)), num_layers)
    if num_threads == 1:
        work(slice(0, num_layers))
        return
    num_chunks = min(num_layers, num_threads * CHUNKS_PER_THREAD)
    edges = [num_layers * i // num_chunks for i in range(num_chunks + 1)]
    chunks = [slice(a, b) for a, b in pairwise(edges)]
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(work, chunks):
            pass
