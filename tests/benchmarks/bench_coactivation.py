"""How fast pairs of experts are counted, on one core and on all, beside numpy.

Run: ``PYTHONPATH=.:traces:cli python tests/benchmarks/bench_coactivation.py``. A pair is an unordered pair of one
token's K choices in one layer, K (K - 1) / 2 a token and layer; the diagonal is counted besides and is not among them
(the last column counts it as well, K (K + 1) / 2). Each number is the best of five, all in one process; numpy counts
the first tokens only. ``a core`` divides by the processor's time instead of the clock's, which other work on the
machine does not stretch. The recording is skipped where it is not beside the repository.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_traces import ModelShape, RoutingTrace, TokenBatch, read_trace
from eplb_traces.coactivation.layer_coactivation import coactivations

RECORDING = Path(__file__).resolve().parents[3] / "shared" / "traces" / "moe-435m" / "tokens.npz"
REPEATS = 5
NUMPY_TOKENS = 2048


def main() -> None:
    """Print the table."""
    cores = sorted(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {len(cores)} cores, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"{'trace':33}{'how':24}{'M pairs/s':>9}{'a core':>8}{'x bincount':>12}{'a core, with diagonal':>23}")
    for name, trace in traces():
        os.sched_setaffinity(0, cores[:1])
        rows = {
            "numpy add.at, 1 core": numpy_rate(trace, add_at),
            "numpy bincount, 1 core": numpy_rate(trace, bincount),
            "ours, 1 core": rate(lambda trace=trace: count_all(trace), num_pairs(trace)),
        }
        os.sched_setaffinity(0, cores)
        rows[f"ours, {len(cores)} cores"] = rate(lambda trace=trace: count_all(trace), num_pairs(trace))
        diagonal = ((trace.shape.top_k or 0) + 1) / ((trace.shape.top_k or 0) - 1)
        for how, (per_s, per_core_s) in rows.items():
            times = per_s / rows["numpy bincount, 1 core"][0]
            numbers = f"{per_s / 1e6:9.0f}{per_core_s / 1e6:8.0f}{times:12.1f}{diagonal * per_core_s / 1e6:23.0f}"
            print(f"{name:33}{how:24}{numbers}")


def traces() -> Iterator[tuple[str, RoutingTrace]]:
    """The recording, and synthetic choices for DeepSeek-V3's and V2-Lite's layers."""
    if RECORDING.exists():
        yield "moe-435m, E=256 K=8, 8 layers", read_trace(RECORDING, 256)
    yield "synthetic, E=256 K=8, 58 layers", drawn(ModelShape(58, 256, 8), 32_768)
    yield "synthetic, E=64 K=6, 26 layers", drawn(ModelShape(26, 64, 6), 131_072)


def drawn(shape: ModelShape, num_tokens: int) -> RoutingTrace:
    """Draw a trace fast: rows of a table of skewed choices, in batches of 8192 tokens."""
    rng = np.random.default_rng(0)
    keys = rng.exponential(size=(4096, shape.num_experts)) * np.exp(0.65 * rng.standard_normal(shape.num_experts))
    table = np.argsort(keys, axis=1)[:, : shape.top_k].astype(np.uint16)
    batches = []
    for step in range(num_tokens // 8192):
        ids = table[rng.integers(0, len(table), (8192, shape.num_layers))]
        batches.append(TokenBatch(shape, ids, np.full(8192, step), np.arange(8192)))
    return RoutingTrace(shape, batches)


def num_pairs(trace: RoutingTrace) -> int:
    """Unordered pairs of different choices, over tokens and layers."""
    top_k = trace.shape.top_k or 0
    return trace.num_tokens * trace.shape.num_layers * top_k * (top_k - 1) // 2


def rate(action: Callable[[], object], pairs: int) -> tuple[float, float]:
    """Pairs per second, and per second of one core, each in the best of REPEATS runs after one for warming up."""
    action()
    seconds, core_seconds = [], []
    for _ in range(REPEATS):
        start, core_start = time.perf_counter(), time.process_time()
        action()
        seconds.append(time.perf_counter() - start)
        core_seconds.append(time.process_time() - core_start)
    return pairs / min(seconds), pairs / min(core_seconds)


def count_all(trace: RoutingTrace) -> None:
    """Count every layer, and forget it."""
    for _ in coactivations(trace):
        pass


def numpy_rate(
    trace: RoutingTrace, count: Callable[[NDArray[np.uint16], int], NDArray[np.int64]]
) -> tuple[float, float]:
    """The rates of a numpy way on the first tokens of the first batch, checked against ours."""
    batch = next(trace.batches()).select(slice(0, NUMPY_TOKENS))
    few = RoutingTrace(trace.shape, [batch])
    layers = [np.ascontiguousarray(batch.expert_ids[:, layer]) for layer in range(trace.shape.num_layers)]
    for ids, ours in zip(layers, coactivations(few), strict=True):
        np.testing.assert_array_equal(count(ids, trace.shape.num_experts), ours.pairs)
    return rate(lambda: [count(ids, trace.shape.num_experts) for ids in layers], num_pairs(few))


def add_at(ids: NDArray[np.uint16], num_experts: int) -> NDArray[np.int64]:
    """All K x K ordered pairs, as one writes it first."""
    counts = np.zeros((num_experts, num_experts), dtype=np.int64)
    np.add.at(counts, (ids[:, :, None], ids[:, None, :]), 1)
    return counts


def bincount(ids: NDArray[np.uint16], num_experts: int) -> NDArray[np.int64]:
    """Each unordered pair and the diagonal once, by flat index; then mirrored."""
    first, second = np.triu_indices(ids.shape[1])
    flat = ids[:, first].astype(np.int64) * num_experts + ids[:, second]
    counts = np.bincount(flat.ravel(), minlength=num_experts**2).reshape(num_experts, num_experts)
    return counts + counts.T - np.diag(counts.diagonal())


if __name__ == "__main__":
    main()
