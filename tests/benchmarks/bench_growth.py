"""How the time of a greedy plan grows with slots, layers and ranks: one table, and with `--figure FILE` a picture.

`python tests/benchmarks/bench_growth.py [--figure growth.png] [--repeats 3]`. Loads are lognormal(1), the seed fixed.
Seconds are medians of warm calls of `eplb.plan`, with validation and certificates, on all usable cores; the gap is that
of the busiest rank to the proven bound. Where ranks have one slot or two, the last of them have one.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # a script's own folder is on the path, not the one it was started in

import eplb  # noqa: E402  # found by the line above

SEED = 0
# Layers, experts, ranks, redundant slots.
CASES = (
    (58, 256, 32, 32),
    (58, 256, 72, 32),
    (58, 256, 144, 32),
    (58, 256, 320, 64),
    (94, 512, 320, 128),
    (94, 512, 512, 512),
    (94, 512, 1024, 1024),
    (94, 512, 1024, 1536),
    (8, 512, 1024, 3584),
    (8, 512, 1024, 8704),
)
LIMIT_S = 2.0
LIMIT_CASE = (94, 512, 1024, 1024)


class Growth(NamedTuple):
    """What one case took."""

    num_layers: int
    num_experts: int
    num_ranks: int
    num_slots: int
    median_s: float
    gap_mean: float
    gap_worst: float

    @property
    def layer_ms(self) -> float:
        return 1e3 * self.median_s / self.num_layers


def machine(num_ranks: int, num_slots: int) -> eplb.Topology:
    """Slots shared out over the ranks; the first ones have one more where they do not divide."""
    each, more = divmod(num_slots, num_ranks)
    return eplb.Topology(1, num_ranks, [each + 1] * more + [each] * (num_ranks - more))


def measure(case: tuple[int, int, int, int], repeats: int) -> Growth:
    num_layers, num_experts, num_ranks, num_redundant = case
    load = eplb.ExpertLoad(np.random.default_rng(SEED).lognormal(0, 1, (num_layers, num_experts)) * 1000)
    topology = machine(num_ranks, num_experts + num_redundant)
    eplb.plan(eplb.ExpertLoad(load.total[:1]), topology, "greedy")  # kernels are compiled, or read from their cache
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        made = eplb.plan(load, topology, "greedy")
        times.append(time.perf_counter() - start)
    size = num_layers, num_experts, num_ranks, topology.num_slots
    return Growth(*size, statistics.median(times), made.gap_mean, made.gap_worst)


def slots_of_ranks(case: Growth) -> str:
    each, more = divmod(case.num_slots, case.num_ranks)
    return f"{each}-{each + 1}" if more else f"{each}"


def draw(cases: list[Growth], path: Path) -> None:
    """Seconds a layer against slots, both logarithmic, and a line that grows as the slots do."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    slots, layer_ms = [case.num_slots for case in cases], [case.layer_ms for case in cases]
    axes.loglog(slots, layer_ms, "o", label="greedy")
    for case in cases:
        label = f"{case.num_ranks} x {slots_of_ranks(case)}"
        axes.annotate(label, (case.num_slots, case.layer_ms), xytext=(4, 4), textcoords="offset points", fontsize=8)
    ends = np.array([min(slots), max(slots)])
    axes.loglog(ends, layer_ms[0] * ends / ends[0], "--", color="0.6", label="as the slots")
    axes.set(xlabel="slots of a layer", ylabel="milliseconds a layer", title="Warm plan, ranks x slots a rank")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, help="where to draw milliseconds a layer against slots")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    names = ("eplb", "numpy", "numba")
    print(f"python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names))
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores usable, seed {SEED}, {options.repeats} repeats\n"
    )
    head = ("slots", "layers", "experts", "ranks", "slots/rank", "plan s", "ms/layer", "gap mean %", "worst %")
    print("{:>6} {:>6} {:>7} {:>6} {:>10} {:>9} {:>9} {:>10} {:>8}".format(*head))
    cases = []
    for case in sorted(CASES, key=lambda case: case[1] + case[3]):
        one = measure(case, options.repeats)
        cases.append(one)
        print(
            f"{one.num_slots:6} {one.num_layers:6} {one.num_experts:7} {one.num_ranks:6} {slots_of_ranks(one):>10} "
            f"{one.median_s:9.4f} {one.layer_ms:9.3f} {100 * one.gap_mean:10.4f} {100 * one.gap_worst:8.3f}"
            + (f"  wanted: <= {LIMIT_S:g} s" if case == LIMIT_CASE else ""),
            flush=True,
        )
    if options.figure:
        draw(cases, options.figure)


if __name__ == "__main__":
    main()
