"""What a replan moves and what it reaches: `rebalance` beside a fresh greedy plan and DeepSeek's global one.

Run: ``PYTHONPATH=.:traces:cli python tests/benchmarks/bench_rebalance.py [FOLDER]``; FOLDER holds loads of one model,
by default the DeepSeek-V3 workloads beside the checkout, else synthetic drift. Every plan starts from greedy's own for
the first load. Moved: copies that a rank must fetch, of all slots; in brackets after the best renaming of all ranks.
Times are the best of some warm calls, with the migration's sources and batches for `rebalance`.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

import eplb
from eplb.core.expert_bytes import DEEPSEEK_V3_EXPERT_BYTES
from eplb.core.migration import Migration, rename_ranks
from eplb.core.migration_simulation import simulate
from eplb.planning.rebalance import rebalance
from eplb_traces import read_load

TOPOLOGY = eplb.Topology(4, 8, 9)
TARGETS = (1.1, 1.05, 1.03, 1.01, 1.005, 1.002)
BUDGETS = (58, 290, 580)
REPEATS = 15
V3_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "traces" / "deepseek-v3"
PAIRS = (
    ("decode_in500out1500", "decode_in1800out100"),
    ("decode_in1800out100", "decode_in500out1500"),
    ("prefill_in512", "prefill_in2048"),
    ("prefill_in2000out100", "decode_in1800out100"),
    ("decode_in500out1500", "prefill_in500out1500"),
)
ROW = "{:34}{:>9}{:>10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}"


def loads_of(folder: Path) -> dict[str, eplb.ExpertLoad]:
    """The loads of a folder, or synthetic ones: lognormal, then with 20 % of logarithmic drift."""
    if folder.is_dir():
        return {path.stem: read_load(path) for path in sorted(folder.glob("*.json"))}
    rng = np.random.default_rng(0)
    first = rng.lognormal(0, 1, (58, 256)) * 1000
    return {"lognormal": eplb.ExpertLoad(first), "drifted": eplb.ExpertLoad(first * rng.lognormal(0, 0.2, first.shape))}


def best_ms(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor milliseconds."""
    wall, busy = [], []
    for _ in range(REPEATS):
        start, start_busy = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    return min(wall) * 1e3, min(busy) * 1e3


def say(
    name: str, placement: eplb.Placement, load: eplb.ExpertLoad, migration: Migration, ms: tuple[float, ...]
) -> None:
    """Print one line; what is moved in brackets is what renaming the ranks leaves."""
    reached = eplb.evaluate(placement, load).max_over_mean
    renamed = rename_ranks(migration.before, placement, ranks_per_block=TOPOLOGY.num_ranks)
    left = Migration.between(migration.before, renamed).moved_fraction
    if migration.moved_copies:
        simulate(migration)
    print(
        ROW.format(
            name, f"{100 * migration.moved_fraction:.2f}", f"({100 * left:.2f})", f"{reached.mean():.4f}",
            f"{reached.max():.4f}", migration.num_batches, f"{(migration.transfer_s or 0.0) * 1e3:.0f}",
            *(f"{t:.1f}" for t in ms),
        )
    )  # fmt: skip


def compare(first: eplb.ExpertLoad, second: eplb.ExpertLoad) -> None:
    """All replans from the first load's plan to the second load."""
    live = eplb.plan(first, TOPOLOGY, "greedy").placement
    say("stay", live, second, Migration.between(live, live, DEEPSEEK_V3_EXPERT_BYTES), (0.0, 0.0))
    for target in TARGETS:
        made = rebalance(live, second, target=target, expert_bytes=DEEPSEEK_V3_EXPERT_BYTES)
        assert made.migration is not None
        ms = best_ms(lambda target=target: rebalance(live, second, target=target))  # type: ignore[misc]
        say(f"rebalance to {target}", made.placement, second, made.migration, ms)
    for budget in BUDGETS:
        made = rebalance(live, second, target=1.01, max_moves=budget, expert_bytes=DEEPSEEK_V3_EXPERT_BYTES)
        assert made.migration is not None
        ms = best_ms(lambda budget=budget: rebalance(live, second, target=1.01, max_moves=budget))  # type: ignore[misc]
        say(f"rebalance to 1.01, {budget} moves", made.placement, second, made.migration, ms)
    for strategy in ("greedy", "deepseek"):
        made = eplb.plan(second, TOPOLOGY, strategy)
        ms = best_ms(lambda strategy=strategy: eplb.plan(second, TOPOLOGY, strategy))  # type: ignore[misc]
        moved = Migration.between(live, made.placement, DEEPSEEK_V3_EXPERT_BYTES)
        say(f"{strategy}, planned afresh", made.placement, second, moved, ms)


def main(folder: Path) -> None:
    """Print a table a pair."""
    loads = loads_of(folder)
    pairs = [pair for pair in PAIRS if set(pair) <= set(loads)] or [tuple(loads)[:2]]
    print(f"python {platform.python_version()}, eplb {version('eplb')}, numba {version('numba')}, {platform.machine()}")
    print(f"{len(os.sched_getaffinity(0))} cores usable, best of {REPEATS}; 32 ranks x 9 slots on 4 nodes")
    for first, second in [*pairs, (pairs[0][0], pairs[0][0])]:
        print(f"\n{first} -> {second}")
        print(ROW.format("", "moved %", "renamed", "mean", "worst", "batches", "link ms", "wall ms", "cpu ms"))
        compare(loads[first], loads[second])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else V3_FOLDER)
