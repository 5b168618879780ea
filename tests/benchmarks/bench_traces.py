"""How fast a token-level trace becomes a load, and a table of counts: ours, and plain numpy, pandas and pyarrow.

Run: ``PYTHONPATH=.:traces:cli python tests/benchmarks/bench_traces.py [TOKENS] [WINDOWS]``. All rows are measured in
one process; each is the best of five. The trace has DeepSeek-V3's shape, so 464 ids a token. A table has 14,848
counts a window; pandas and pyarrow read it into a frame and do nothing with it.
"""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_traces import ModelShape, RoutingTrace, TokenBatch, read_load, read_trace, write_trace

SHAPE = ModelShape(58, 256, 8, 8, 4)
REPEATS = 5


def main(num_tokens: int) -> None:
    """Print the table."""
    trace = recorded(num_tokens)
    num_ids = num_tokens * SHAPE.num_layers * 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        write_s = best_s(lambda: write_trace(trace, path))
        size_bytes = path.stat().st_size
        opened = read_trace(path)
        rows = {
            "memory -> load": best_s(lambda: trace.load()),
            "memory -> numpy bincount": best_s(lambda: bincount(trace.batches())),
            "parquet -> load": best_s(lambda: opened.load()),
            "parquet -> load, windows of 4 steps": best_s(lambda: opened.load(4)),
            "parquet -> numpy bincount": best_s(lambda: parquet_bincount(path)),
            "parquet <- trace": write_s,
        }
        np.testing.assert_array_equal(opened.load().total, parquet_bincount(path))
    baseline = rows["parquet -> numpy bincount"]
    print(f"{num_tokens} tokens, {num_ids / 1e6:.0f} M ids, {8 * size_bytes / num_ids:.1f} bits an id on disk")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"{'what':38}{'seconds':>9}{'M ids/s':>9}{'times parquet -> bincount':>27}")
    for name, seconds in rows.items():
        print(f"{name:38}{seconds:9.3f}{num_ids / seconds / 1e6:9.0f}{baseline / seconds:27.2f}")


def tables(num_windows: int) -> None:
    """Print seconds of reading a load from tables, and those of a frame without meaning, one beside the other."""
    import pandas

    size = (num_windows, SHAPE.num_layers, SHAPE.num_experts)
    tokens = np.random.default_rng(0).integers(0, 100_000, size)
    step, layer, expert = np.indices(size).reshape(3, -1)
    long = pandas.DataFrame({"step": step, "layer_id": layer + 3, "expert_id": expert, "count": tokens.ravel()})
    wide = pandas.DataFrame(tokens.reshape(-1, SHAPE.num_experts)).rename(columns=str)
    wide.insert(0, "layer", layer[:: SHAPE.num_experts] + 3)
    wide.insert(0, "step", step[:: SHAPE.num_experts])
    print(f"{'table of ' + str(num_windows) + ' windows':38}{'MB':>9}{'seconds':>9}{'frame':>9}{'ratio':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for form, frame in (("long", long), ("wide", wide)):
            text, parquet = Path(folder) / f"{form}.csv", Path(folder) / f"{form}.parquet"
            frame.to_csv(text, index=False)
            frame.to_parquet(parquet, index=False)
            for path, read_frame in ((text, pandas.read_csv), (parquet, pandas.read_parquet)):
                np.testing.assert_array_equal(read_load(path).tokens, tokens)
                ours, plain = best_pair_s(partial(read_load, path), partial(read_frame, path))
                size_mb = path.stat().st_size / 1e6
                print(f"{path.name:38}{size_mb:9.0f}{ours:9.3f}{plain:9.3f}{ours / plain:9.2f}")


def best_pair_s(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """The shortest run of each of two actions that take turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for action, taken in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            action()
            taken.append(time.perf_counter() - start)
    return min(seconds[0]), min(seconds[1])


def recorded(num_tokens: int) -> RoutingTrace:
    """Draw a trace fast: rows of a table of skewed choices, in batches of one step."""
    rng = np.random.default_rng(0)
    keys = rng.exponential(size=(4096, SHAPE.num_experts)) * np.exp(0.65 * rng.standard_normal(SHAPE.num_experts))
    table = np.argsort(keys, axis=1)[:, :8].astype(np.uint16)
    batches = []
    for step, first in enumerate(range(0, num_tokens, 8192)):
        size = min(8192, num_tokens - first)
        ids = table[rng.integers(0, len(table), (size, SHAPE.num_layers))]
        batches.append(TokenBatch(SHAPE, ids, np.full(size, step), np.arange(size)))
    return RoutingTrace(SHAPE, batches)


def best_s(action: Callable[[], object]) -> float:
    """Return the shortest of REPEATS runs after one for warming up."""
    action()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def bincount(batches: Iterable[TokenBatch]) -> NDArray[np.int64]:
    """Count with numpy, a layer at a time."""
    counts = np.zeros((SHAPE.num_layers, SHAPE.num_experts), dtype=np.int64)
    for batch in batches:
        for layer in range(SHAPE.num_layers):
            counts[layer] += np.bincount(batch.expert_ids[:, layer].ravel(), minlength=SHAPE.num_experts)
    return counts


def parquet_bincount(path: Path) -> NDArray[np.int64]:
    """Do what one writes without us: pyarrow's batches into numpy, unchecked."""
    import pyarrow.parquet

    counts = np.zeros((SHAPE.num_layers, SHAPE.num_experts), dtype=np.int64)
    with pyarrow.parquet.ParquetFile(path) as file:
        for rows in file.iter_batches(columns=["expert_ids"]):
            ids = rows.column(0).flatten().to_numpy().reshape(len(rows), SHAPE.num_layers, -1)
            for layer in range(SHAPE.num_layers):
                counts[layer] += np.bincount(ids[:, layer].ravel(), minlength=SHAPE.num_experts)
    return counts


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 65_536)
    tables(int(sys.argv[2]) if len(sys.argv) > 2 else 400)
