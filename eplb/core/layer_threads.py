"""Runs a kernel over the layers on several threads. Layers are independent everywhere."""

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from threading import Thread

from eplb_traces.usable_cores import usable_cores

CHUNKS_PER_THREAD = 2  # layers differ in cost: a thread that is done early takes another chunk


def for_layer_chunks(work: Callable[[slice], None], num_layers: int) -> None:
    """Call `work` on slices that cover the layers, on as many threads as this process may use cores.

    `work` must release the GIL to gain from it and write only to its own layers; so the result does not depend on the
    number of threads. The calling thread takes its part: a plan takes milliseconds, and waking a pool would cost one of
    them. The first exception of any thread is raised here.
    """
    num_threads = min(usable_cores(), num_layers)
    num_chunks = 1 if num_threads == 1 else min(num_layers, num_threads * CHUNKS_PER_THREAD)
    edges = [num_layers * i // num_chunks for i in range(num_chunks + 1)]
    chunks = deque(slice(first, last) for first, last in pairwise(edges))
    errors: deque[BaseException] = deque()

    def take_chunks() -> None:
        while not errors:
            try:
                chunk = chunks.popleft()
            except IndexError:
                return
            try:
                work(chunk)
            except BaseException as error:  # raised again below, in the calling thread
                errors.append(error)

    helpers = [Thread(target=take_chunks) for _ in range(num_threads - 1)]
    for helper in helpers:
        helper.start()
    take_chunks()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
