"""Rates of one core for traces in Parquet, and time and memory of `greedy` on 1,024 to 4,096 ranks.

`python tests/benchmarks/bench_scale.py [traces] [plans]`. Seconds are those of the process on all its threads, so that
other work on the machine counts little.
"""

import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

import eplb
from eplb_traces import ExpertLoad, ModelShape, RoutingTrace, read_trace, synthesize_trace, write_trace
from eplb_traces.coactivation.pair_counts import pair_counts
from eplb_traces.files.parquet_file import TraceLayout, parquet_file

LAYERS, EXPERTS = 94, 512
RANKS_AND_SLOTS = ((1024, 1), (1024, 2), (2048, 1), (2048, 2), (4096, 1), (4096, 2))


def cpu_seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def rate(what, count, work, unit, rounds=3):
    seconds = min(cpu_seconds(work) for _ in range(rounds))
    print(f"{what:44} {count / seconds / 1e6:8.0f} M {unit}/s a core")


def decode(path):
    with parquet_file(path) as file:
        for _ in file.iter_batches(batch_size=9000):
            pass


def traces():
    """Decoding alone, in memory alone, and the whole."""
    made = synthesize_trace("v3-prefill", num_steps=8, tokens_per_step=9000)
    in_memory = RoutingTrace(made.shape, list(made))
    shape = made.shape
    num_ids = made.num_tokens * shape.num_layers * shape.top_k
    num_pairs = made.num_tokens * shape.num_layers * shape.top_k * (shape.top_k - 1) // 2
    layers = list(range(shape.num_layers))
    with tempfile.TemporaryDirectory() as folder:
        paths = {layout: Path(folder) / f"{layout}.parquet" for layout in TraceLayout}
        print(f"v3-prefill: {num_ids / 1e6:.0f} M ids")
        in_memory.load()
        rate("load of tokens in memory", num_ids, in_memory.load, "ids")
        count = partial(pair_counts, in_memory, layers, distance=0)
        rate("co-activation of tokens in memory", num_pairs, count, "pairs")
        for layout, path in paths.items():
            write_trace(in_memory, path, layout)
            print(f"layout {layout}: {path.stat().st_size / num_ids:.2f} bytes an id in the file")
            rate("  Parquet decode alone", num_ids, lambda at=path: decode(at), "ids")
            rate("  load of the file, checks and decode in it", num_ids, lambda at=path: read_trace(at).load(), "ids")


def plans():
    """94 layers x 512 experts: plan, bound and evaluation."""
    rng = np.random.default_rng(0)
    tokens = rng.lognormal(0, 1, (1, LAYERS, EXPERTS)).round(3) * 1e6
    load = ExpertLoad(tokens, shape=ModelShape(LAYERS, EXPERTS, 8))
    small = eplb.Topology.for_experts(EXPERTS, num_ranks=64, num_redundant=64)
    eplb.evaluate(eplb.plan(load, small, "greedy").placement, load)  # compiled
    print("ranks slots  plan s  evaluate s  max/mean  gap worst  peak MiB")
    for ranks, slots in RANKS_AND_SLOTS:
        topology = eplb.Topology(ranks // 8, 8, slots)
        found = []
        planned = cpu_seconds(lambda on=topology, to=found: to.append(eplb.plan(load, on, "greedy")))
        judged = cpu_seconds(lambda to=found: to.append(eplb.evaluate(to[0].placement, load)))
        gap = max(layer.gap for layer in found[0].layers)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        ratio = found[1].balance["max_over_mean_mean"]
        print(f"{ranks:5} {slots:5} {planned:7.2f} {judged:11.2f} {ratio:9.4f} {gap:10.4f} {peak:9}", flush=True)


if __name__ == "__main__":
    asked = sys.argv[1:] or ["traces", "plans"]
    for part in (traces, plans):
        if part.__name__ in asked:
            part()
