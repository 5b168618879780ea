"""How far plans are from their proven bounds, shape by shape, and what `ilp` proves: gap tables in one run.

`python tests/benchmarks/bench_bounds.py [gaps] [online] [ilp]`; everything without arguments. Gaps are in percent, mean
and worst over 58 layers of 256 experts. DeepSeek-V3 loads are added where the traces lie beside the checkout.
"""

import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # a script's own folder is on the path, not the one it was started in

from eplb.bounds.lower_bounds import full_slot_bound, lower_bounds, mean_bound, replication_bound  # noqa: E402
from eplb.core.dispatch_rule import DispatchRule  # noqa: E402
from eplb.core.placement import Placement  # noqa: E402
from eplb.core.problem import Problem  # noqa: E402
from eplb.core.topology import Topology  # noqa: E402
from eplb.dispatch.optimal_shares_kernel import busiest_by_window  # noqa: E402
from eplb.evaluation.metrics import evaluate  # noqa: E402
from eplb.strategies.greedy.greedy import Greedy  # noqa: E402
from eplb.strategies.greedy.two_slot_ranks import has_two_slot_ranks, improved_map  # noqa: E402
from eplb.strategies.ilp.ilp import Ilp  # noqa: E402
from eplb_traces import ExpertLoad, read_load  # noqa: E402

SEED = 0
NUM_LAYERS, NUM_EXPERTS = 58, 256
# Ranks, slots a rank.
SHAPES = [(32, 9), (64, 5), (72, 4), (96, 3), (144, 2), (320, 1)]
V3_FILE = REPOSITORY.parent / "shared" / "traces" / "deepseek-v3" / "prefill_in2048.json"


def loads() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(SEED)
    size = (NUM_LAYERS, NUM_EXPERTS)
    zipf = 1 / np.arange(1, NUM_EXPERTS + 1)
    made = {
        "lognormal(1)": rng.lognormal(0, 1, size),
        "zipf(1)": np.stack([rng.permutation(zipf) for _ in range(NUM_LAYERS)]),
        "uniform": rng.random(size),
    }
    if V3_FILE.exists():
        made["deepseek-v3"] = read_load(V3_FILE).total
    return made


def best_ms(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def gap(reached: np.ndarray, bound: np.ndarray) -> str:
    gaps = 100 * (reached / bound - 1)
    return f"{gaps.mean():7.3f} {gaps.max():7.3f}"


def gap_table() -> None:
    print("\ngap of greedy (and of count search after it, two slots a rank) to the bounds, % mean and worst")
    print("  simple: mean, largest copy, full slots; co-residency: without knowing a plan; all: knowing the plan")
    header = (
        "shape",
        "load",
        "greedy/simple",
        "greedy/co-resid.",
        "greedy/all",
        "counts/all",
        "bounds ms",
        "search ms",
    )
    print("  {:>6} {:<13} {:>15} {:>16} {:>15} {:>15} {:>17} {:>9}  binding".format(*header))
    for num_ranks, slots in SHAPES:
        topology = Topology(1, num_ranks, slots)
        for name, load in loads().items():
            phy2log, rank_load = Greedy().pack(load, topology.rank_first_slot)
            reached = rank_load.max(axis=1)
            replication = replication_bound(load, topology)
            simple = np.maximum(mean_bound(load, topology), full_slot_bound(load, topology, replication))
            cells = [gap(reached, simple), gap(reached, lower_bounds(load, topology).value)]
            cells.append(gap(reached, lower_bounds(load, topology, reached=reached).value))
            search_ms = 0.0
            if has_two_slot_ranks(topology):
                plan = (load, phy2log, topology)
                search_ms = best_ms(lambda plan=plan: improved_map(*plan), 2)
                paired = Placement(improved_map(*plan), NUM_EXPERTS, topology)
                reached = evaluate(paired, ExpertLoad(load)).rank_load[0].max(axis=1)
            bounds = lower_bounds(load, topology, reached=reached)
            cells.append(gap(reached, bounds.value))
            quick = best_ms(lambda load=load, topology=topology: lower_bounds(load, topology))
            slow = best_ms(
                lambda load=load, topology=topology, reached=reached: lower_bounds(load, topology, reached=reached)
            )
            binding = dict(Counter(str(b) for b in bounds.binding))
            times = f"{quick:8.2f} {slow:8.2f} {search_ms:9.1f}"
            print(f"  {num_ranks:>3}x{slots:<2} {name:<13} {'  '.join(cells)} {times}  {binding}")


def split_each(tokens: np.ndarray, phy2log: np.ndarray, topology: Topology) -> None:
    first_slot, speed, busiest = np.array(topology.rank_first_slot), np.ones(topology.num_ranks), np.empty(1)
    for row, window in zip(phy2log, tokens, strict=True):
        busiest_by_window(window[None], row, first_slot, speed, busiest)


def online_table() -> None:
    print("\nbest split of one load over the copies of a map: microseconds a layer and load, one thread")
    for num_ranks, slots in SHAPES[:5]:
        topology = Topology(1, num_ranks, slots)
        load = loads()["lognormal(1)"]
        phy2log, _ = Greedy().pack(load, topology.rank_first_slot)
        drifted = load * np.random.default_rng(SEED).lognormal(0, 0.5, load.shape)
        cells = []
        for tokens in (load, drifted, load[::-1].copy()):
            cells.append(f"{best_ms(partial(split_each, tokens, phy2log, topology)) * 1e3 / NUM_LAYERS:7.1f}")
        print(f"  {num_ranks:>3}x{slots:<2} planned load {cells[0]}  drifted {cells[1]}  another layer's {cells[2]}")


def ilp_table() -> None:
    print("\nilp: gap to what is proven, % mean and worst; limits are processor seconds for all layers")
    toy = ExpertLoad([[600, 560, 120, 120, 20, 10, 10, 10]])
    for rule in (DispatchRule.EVEN, DispatchRule.WEIGHTED):
        start = time.perf_counter()
        made = Ilp()(Problem(toy, Topology(1, 8, 2), dispatch=rule))
        seconds = time.perf_counter() - start
        print(f"  toy of FlashLB, {rule}: {made.layers[0].objective:.4f} {made.status} in {seconds:.2f} s")
    rng = np.random.default_rng(SEED)
    cases = [(12, 4, slots, 4, 20.0) for slots in (3, 4, 5, 6, 8)] + [(12, 3, 6, 4, 20.0), (16, 8, 3, 2, 20.0)]
    cases += [(32, 8, 5, 2, 20.0), (64, 8, 9, 2, 20.0), (256, 72, 4, 4, 20.0), (256, 144, 2, 4, 20.0)]
    for num_experts, num_ranks, slots, num_layers, limit_s in cases:
        load = ExpertLoad(rng.lognormal(0, 1, (num_layers, num_experts)))
        problem = Problem(load, Topology(1, num_ranks, slots), time_limit_s=limit_s)
        greedy = Greedy()(problem)
        start = time.perf_counter()
        made = Ilp()(problem)
        seconds = time.perf_counter() - start
        proven = sum(layer.status == "optimal" for layer in made.layers)
        print(
            f"  {num_experts:>3} experts {num_ranks:>3}x{slots}: greedy {100 * greedy.gap_mean:8.4f} "
            f"{100 * greedy.gap_worst:8.4f}  ilp {100 * made.gap_mean:8.5f} {100 * made.gap_worst:8.5f}  "
            f"proven {proven}/{num_layers}  {seconds:.1f} s"
        )


if __name__ == "__main__":
    print(f"python {platform.python_version()}, numpy {version('numpy')}, numba {version('numba')}", end=", ")
    print(f"ortools {version('ortools')}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, seed {SEED}")
    tables = {"gaps": gap_table, "online": online_table, "ilp": ilp_table}
    for table in sys.argv[1:] or tables:
        tables[table]()
