"""Quality and speed of `greedy`: gaps to the bound, milliseconds a plan, and where they go. `make bench` prints it.

`bench_greedy.py table [CHECKOUT]` prints mean gaps for 54 cases, beside those of another checkout.

Everything is measured in one run on this machine; ratios between lines are what travels. DeepSeek-V3 loads are added
where the traces lie beside the checkout.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # a script's own folder is on the path, not the one it was started in

import eplb  # noqa: E402  # found by the line above
from eplb.bounds.lower_bounds import lower_bounds  # noqa: E402
from eplb.core.problem import Problem  # noqa: E402
from eplb.strategies.certify import certified_plan  # noqa: E402
from eplb.strategies.greedy.greedy import Greedy, descending_order  # noqa: E402
from eplb.strategies.greedy.local_search_kernel import search_layers  # noqa: E402
from eplb.strategies.greedy.replicate_and_pack_kernel import place_layers  # noqa: E402
from eplb_traces import read_load  # noqa: E402
from tests.oracles import published_rebalance  # noqa: E402

SEED = 0
NUM_LAYERS, NUM_EXPERTS, NUM_GROUPS = 58, 256, 8
# Nodes, ranks a node, slots a rank.
SHAPES = [(4, 8, 9), (1, 8, 36), (2, 8, 18), (8, 8, 5)]
# Topologies of the table of gaps: nodes, ranks a node, slots a rank, speeds.
TABLE = {
    "8 x 36": (1, 8, 36),
    "16 x 18": (1, 16, 18),
    "32 x 9": (4, 8, 9),
    "36 x 8": (1, 36, 8),
    "48 x 6": (1, 48, 6),
    "64 x 5": (1, 64, 5),
    "64 x 8": (1, 64, 8),
    "72 x 4": (1, 72, 4),
    "128 x 4": (1, 128, 4),
    "512 x 4": (1, 512, 4),
    "128 x 3": (1, 128, 3),
    "144 x 2": (1, 144, 2),
    "320 x 1": (1, 320, 1),
    "72 x 3, 5": (1, 72, [3, 5] * 36),
    "100 x 4, 3": (1, 100, [4] * 50 + [3] * 50),
    "32 x 9, speeds 1, 0.5": (1, 32, 9, [1.0, 0.5] * 16),
    "64 x 5, speeds 1, 0.5": (1, 64, 5, [1.0, 0.5] * 32),
    "72 x 4, speeds 1, 0.7": (1, 72, 4, [1.0, 0.7] * 36),
}
V3_FOLDER = REPOSITORY.parent / "shared" / "traces" / "deepseek-v3"
REPEATS = 50


def synthetic_loads() -> dict[str, eplb.ExpertLoad]:
    rng = np.random.default_rng(SEED)
    size = (NUM_LAYERS, NUM_EXPERTS)
    zipf = 1e6 / np.arange(1, NUM_EXPERTS + 1) ** 0.8
    return {
        "lognormal(1)": eplb.ExpertLoad(rng.lognormal(0, 1, size) * 1000),
        "zipf(0.8)": eplb.ExpertLoad(np.stack([rng.permutation(zipf) for _ in range(NUM_LAYERS)])),
        "uniform": eplb.ExpertLoad(rng.random(size) * 1000),
    }


def real_loads() -> dict[str, eplb.ExpertLoad]:
    return {f"v3 {path.stem}": read_load(path) for path in sorted(V3_FOLDER.glob("*.json"))}


def say_machine() -> None:
    names = ("eplb", "numpy", "numba")
    print(f"python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names))
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores usable, seed {SEED}")


def print_quality(loads: dict[str, eplb.ExpertLoad]) -> None:
    """Gaps to the proven bound, mean and worst layer, in percent."""
    print("\nGap of the busiest rank to the lower bound, mean / worst of 58 layers, in percent")
    print(f"{'load':26} {'ranks x slots':>13} {'greedy':>17} {'deepseek global':>17} {'deepseek hierarch.':>19}")
    for name, load in loads.items():
        for nodes, per_node, slots in SHAPES:
            topology = eplb.Topology(nodes, per_node, slots)
            plans = [
                eplb.plan(load, topology, strategy, groups=NUM_GROUPS, group_mode=mode)
                for strategy, mode in (("greedy", "free"), ("deepseek", "free"), ("deepseek", "pinned"))
            ]
            cells = [f"{100 * made.gap_mean:8.4f} / {100 * made.gap_worst:6.2f}" for made in plans]
            if nodes == 1:
                cells[2] = "as global"
            print(f"{name:26} {nodes * per_node:7} x {slots:3} {cells[0]:>17} {cells[1]:>17} {cells[2]:>19}")


def mean_gaps(names: list[str]) -> list[float]:
    """Mean gap of each topology under each synthetic load, in percent."""
    loads = synthetic_loads().values()
    return [100 * eplb.plan(load, eplb.Topology(*TABLE[name]), "greedy").gap_mean for name in names for load in loads]


def print_table(other_checkout: str | None) -> None:
    """Mean gap of 18 topologies under three loads, beside that of another checkout of the project if one is given."""
    columns = list(synthetic_loads())
    print(f"Mean gap to the lower bound, {NUM_LAYERS} layers, percent{', other / this tree' if other_checkout else ''}")
    print(
        f"{'ranks x slots':24}"
        + "".join(f"{name:>20}" for name in columns)
        + "   largest increase" * bool(other_checkout)
    )
    for name in TABLE:
        here = mean_gaps([name])
        if other_checkout is None:
            print(f"{name:24}" + "".join(f"{gap:20.4f}" for gap in here))
            continue
        there = gaps_in(Path(other_checkout), name)
        cells = (f"{old:.4f} / {new:.4f}" for old, new in zip(there, here, strict=True))
        increase = max(new - old for old, new in zip(there, here, strict=True))
        print(f"{name:24}" + "".join(f"{cell:>20}" for cell in cells) + f"{increase:+19.4f}", flush=True)


def gaps_in(checkout: Path, name: str) -> list[float]:
    """Those of `mean_gaps`, planned by another checkout in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/loads.npy", np.stack([load.total for load in synthetic_loads().values()]))
        code = (
            f"import eplb, numpy as np; topology = eplb.Topology(*{TABLE[name]!r}); "
            f"loads = [eplb.ExpertLoad(load) for load in np.load('{folder}/loads.npy')]; "
            "print([100 * eplb.plan(load, topology, 'greedy').gap_mean for load in loads])"
        )
        return json.loads(fresh_process(code, PYTHONSAFEPATH="1", PYTHONPATH=f"{checkout}:{checkout / 'traces'}"))


def milliseconds(call: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Median and minimum of warm calls."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), min(times)


def print_speed(name: str, load: eplb.ExpertLoad, topology: eplb.Topology) -> None:
    """Warm plans on one core and on two beside a plain Python run of the published algorithm, and where time goes."""
    usable = sorted(os.sched_getaffinity(0))
    print(f"\nWarm eplb.plan, {NUM_LAYERS} layers, 256 -> 288 slots on 32 ranks, {name}: median / min of {REPEATS}, ms")
    one = 0.0
    try:
        for num_cores in range(1, min(2, len(usable)) + 1):
            os.sched_setaffinity(0, usable[:num_cores])
            for strategy in ("greedy", "deepseek"):
                median, least = milliseconds(lambda strategy=strategy: eplb.plan(load, topology, strategy))
                one = median if (num_cores, strategy) == (1, "greedy") else one
                print(f"  {strategy:10} {num_cores} core(s)   {median:8.2f} / {least:8.2f}")
        os.sched_setaffinity(0, usable[:1])
        runs = {"numpy rows, Python loops": lambda: published_rebalance(load.total, 288, 1, 1, 32)}
        runs["Python lists"] = lambda: [plain_layer(row, 288, 32) for row in load.total.tolist()]
        if find_spec("torch"):
            runs["torch tensors, entry by entry, as published"] = lambda: tensor_layers(load.total, 288, 32)
        for how, run in runs.items():
            median, least = milliseconds(run, repeats=3)
            print(
                f"  published algorithm, {how}: {median:.0f} / {least:.0f}, {median / one:.0f} times greedy on 1 core"
            )
        print_parts(load, topology)
    finally:
        os.sched_setaffinity(0, usable)


def plain_layer(weight: list[float], num_slots: int, num_ranks: int) -> list[list[int]]:
    """The published global policy with nothing but lists: the experts of each rank."""
    count = [1] * len(weight)
    copies = list(range(len(weight)))
    for _ in range(num_slots - len(weight)):
        heaviest = max(range(len(weight)), key=lambda expert: weight[expert] / count[expert])
        count[heaviest] += 1
        copies.append(heaviest)
    load, hands = [0.0] * num_ranks, [[] for _ in range(num_ranks)]
    for expert in sorted(copies, key=lambda expert: -weight[expert] / count[expert]):
        open_ranks = (rank for rank in range(num_ranks) if len(hands[rank]) < num_slots // num_ranks)
        rank = min(open_ranks, key=load.__getitem__)
        hands[rank].append(expert)
        load[rank] += weight[expert] / count[expert]
    return hands


def tensor_layers(weight: np.ndarray, num_slots: int, num_ranks: int) -> object:
    """The published global policy on tensors: layers at once where it counts, entry by entry where it packs."""
    import torch

    weight = torch.tensor(weight).float()
    num_layers, num_experts = weight.shape
    layers = torch.arange(num_layers)
    copies = torch.arange(num_slots).repeat(num_layers, 1)
    count = torch.ones(num_layers, num_experts, dtype=torch.int64)
    for copy in range(num_experts, num_slots):
        heaviest = (weight / count).max(dim=-1).indices
        copies[:, copy] = heaviest
        count[layers, heaviest] += 1
    unit = (weight / count).gather(-1, copies)
    order = unit.sort(-1, descending=True).indices
    rank_of, place_of = torch.full_like(copies, -1), torch.full_like(copies, -1)
    for layer in range(num_layers):
        load, held = [0] * num_ranks, [0] * num_ranks
        for copy in order[layer]:
            open_ranks = (rank for rank in range(num_ranks) if held[rank] < num_slots // num_ranks)
            rank = min(open_ranks, key=load.__getitem__)
            rank_of[layer, copy], place_of[layer, copy] = rank, held[rank]
            load[rank] += unit[layer, copy]
            held[rank] += 1
    return rank_of, place_of


def print_parts(load: eplb.ExpertLoad, topology: eplb.Topology) -> None:
    """Time of each part of a greedy plan, on the cores this process has now."""
    greedy, total = Greedy(), load.total
    first_slot, num_ranks = np.array(topology.rank_first_slot), topology.num_ranks
    count = np.empty((NUM_LAYERS, NUM_EXPERTS), np.int64)
    phy2log = np.empty((NUM_LAYERS, topology.num_slots), np.int32)
    slot_load = np.empty(phy2log.shape)
    rank_load = np.empty((NUM_LAYERS, num_ranks))
    order = descending_order(total)

    rank_scale, room = np.ones(num_ranks), np.empty(0, np.int64)

    def place() -> None:
        state = count, phy2log, slot_load, rank_load
        place_layers(total, order, first_slot, rank_scale, room, 1, num_ranks, 0.0, *state)

    def place_and_search() -> None:
        place()
        target = np.maximum(total.sum(axis=1) / num_ranks * (1 + greedy.tolerance), slot_load.max(axis=1))
        limits = 1, greedy.most_slots_for_pairs, greedy.most_slots_to_replace, 0
        search_layers(total, first_slot, rank_scale, target, limits, count, phy2log, slot_load, rank_load)

    problem = Problem(load, topology)
    placing, _ = milliseconds(place)
    both, _ = milliseconds(place_and_search)
    bounds, _ = milliseconds(lambda: lower_bounds(total, topology))
    placement, _ = milliseconds(lambda: eplb.Placement(phy2log, NUM_EXPERTS, topology))
    objective = rank_load.max(axis=1)
    wrapped, _ = milliseconds(lambda: certified_plan(problem, phy2log, strategy="greedy", objective=objective))
    whole, _ = milliseconds(lambda: eplb.plan(load, topology, "greedy"))
    parts = {
        "sort": milliseconds(lambda: descending_order(total))[0],
        "count and place": placing,
        "local search": both - placing,
        "bounds": bounds,
        "placement": placement,
        "certificates": wrapped - bounds - placement,
    }
    parts["the rest"] = whole - sum(parts.values())
    print("  where it goes, 1 core, medians in ms:")
    for part, spent in parts.items():
        print(f"    {part:16} {spent:6.2f}  {100 * spent / whole:4.0f} %")


def fresh_process(code: str, **environment: str) -> str:
    """Standard output of a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def print_import() -> None:
    code = (
        "import sys, time; before = len(sys.modules); start = time.perf_counter(); import eplb; "
        "took = time.perf_counter() - start; "
        "heavy = {'torch', 'ortools', 'matplotlib', 'pandas', 'ray', 'numba', 'scipy', 'pyarrow'} & set(sys.modules); "
        "print(f'{took:.3f} s, {len(sys.modules) - before} modules, heavy ones: {sorted(heavy) or None}')"
    )
    print("\nimport eplb in a fresh process, three times")
    for _ in range(3):
        print(f"  {fresh_process(code)}")


def print_first_plan() -> None:
    code = (
        "import time; start = time.perf_counter(); import eplb, numpy as np; "
        "load = eplb.ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (58, 256))); "
        "topology = eplb.Topology(1, 32, 9); eplb.plan(load, topology, 'greedy'); "
        "print(f'{time.perf_counter() - start:.2f} s')"
    )
    print("\nFirst plan of a fresh process, import included")
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty cache: all kernels compiled", "warm cache", "warm cache"):
            print(f"  {fresh_process(code, NUMBA_CACHE_DIR=cache)}  {state}")


def main() -> None:
    say_machine()
    if sys.argv[1:2] == ["table"]:
        print_table(sys.argv[2] if len(sys.argv) > 2 else None)
        return
    loads = synthetic_loads() | real_loads()
    print_quality(loads)
    for name in list(loads)[:3] + list(loads)[3:4]:
        print_speed(name, loads[name], eplb.Topology(4, 8, 9))
    print_import()
    print_first_plan()


if __name__ == "__main__":
    main()
