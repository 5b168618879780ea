"""What a change of the ranks costs: `replan_on` beside a fresh greedy plan.

Run: ``PYTHONPATH=.:traces:cli python tests/benchmarks/bench_replan_on.py``. 58 layers of 256 experts with lognormal
loads; the later load has 20 % of logarithmic drift. Slots: of added ranks, and added ones of ranks that stay, over all
layers. Dead ends: experts without a replica on the ranks that stay. Times are the best of some warm calls.
"""

import os
import platform
import time
from importlib.metadata import version

import numpy as np

import eplb
from eplb.core.expert_bytes import DEEPSEEK_V3_EXPERT_BYTES
from eplb.core.migration_simulation import simulate

REPEATS = 5
ROW = "{:34}{:>7}{:>8}{:>10}{:>8}{:>8}{:>9}{:>9}{:>9}{:>8}"
CASES = (
    ("4 x 72 -> 6 x 48", eplb.Topology(1, 4, 72), eplb.Topology(1, 6, 48), ()),
    ("4 x 72 -> 6 x 72", eplb.Topology(1, 4, 72), eplb.Topology(1, 6, 72), ()),
    ("32 x 9 -> 24 x 12, retiring", eplb.Topology(4, 8, 9), eplb.Topology(3, 8, 12), ()),
    ("32 x 12 -> 24 x 12, retiring", eplb.Topology(4, 8, 12), eplb.Topology(3, 8, 12), ()),
    ("32 x 9 -> 24 x 12, lost", eplb.Topology(4, 8, 9), eplb.Topology(3, 8, 12), tuple(range(24, 32))),
    ("31 x 9 -> 32 x 9, back", eplb.Topology(4, (8, 8, 8, 7), 9), eplb.Topology(4, 8, 9), ()),
)


def line(name: str, live: eplb.Placement, load: eplb.ExpertLoad, change: eplb.TopologyChange) -> None:
    """Print one change."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        made = eplb.replan_on(live, load, change, expert_bytes=DEEPSEEK_V3_EXPERT_BYTES)
        seconds.append(time.perf_counter() - start)
    assert made.migration is not None
    assert simulate(made.migration) >= 1
    held, ends = change.carried_slots
    dead_ends = sum(load.num_experts - np.unique(row[held]).size for row in live.physical_to_logical_map)
    new_slots = load.num_layers * int((change.after.rank_num_slots - np.diff(ends)).clip(min=0).sum())
    reached = eplb.evaluate(made.placement, load).max_over_mean
    fresh = eplb.plan(load, change.after, "greedy").placement
    best = eplb.evaluate(fresh, load).max_over_mean
    afresh = eplb.Migration.between(
        eplb.Placement(made.migration.before.physical_to_logical_map, load.num_experts, change.union),
        eplb.Placement(change.new_on_union(fresh.physical_to_logical_map), load.num_experts, change.union),
    )
    print(
        ROW.format(
            name, new_slots, dead_ends, made.migration.moved_copies, afresh.moved_copies, f"{reached.mean():.4f}",
            f"{reached.max():.4f}", f"{best.mean():.4f}", f"{made.migration.transfer_s:.2f}", f"{min(seconds):.2f}",
        )
    )  # fmt: skip


def main() -> None:
    """Print a table for the same load and one for the later load."""
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 1, (58, 256)) * 1000
    later = load * rng.lognormal(0, 0.2, load.shape)
    print(f"python {platform.python_version()}, eplb {version('eplb')}, numba {version('numba')}, {platform.machine()}")
    print(f"{len(os.sched_getaffinity(0))} cores usable, best of {REPEATS}")
    for title, tokens in (("the same load", load), ("the later load", later)):
        print(f"\n{title}")
        print(ROW.format("", "slots", "dead", "copies", "afresh", "mean", "worst", "afresh", "link s", "s"))
        for name, before, after, lost in CASES:
            live = eplb.plan(eplb.ExpertLoad(load), before, "greedy").placement
            line(name, live, eplb.ExpertLoad(tokens), eplb.TopologyChange.between(before, after, lost=lost))


if __name__ == "__main__":
    main()
