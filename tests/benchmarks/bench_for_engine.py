"""What an engine waits for: `for_engine` at its start, and one planning call of each drop-in.

Run: ``PYTHONPATH=.:traces:cli python tests/benchmarks/bench_for_engine.py``. Times are milliseconds, the best of some
warm calls, wall and processor; "first" is the processor time of the first call of a fresh process after `import eplb`.
The load is lognormal (sigma 1), the later one has drifted by 20 % (logarithmic), both with a fixed seed.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import eplb
from eplb.engines.ascend import AscendPolicy
from eplb.engines.for_engine import for_engine
from eplb.engines.policy import PolicySettings
from eplb.engines.sglang import SglangAlgorithm
from eplb.engines.vllm import VllmPolicy
from eplb.formats import FORMATS, write_plan

REPEATS = 15
NUM_RANKS, SLOTS, NUM_SLOTS = 32, 9, 288
SHAPE = eplb.ModelShape(61, 256, moe_layer_ids=tuple(range(3, 64)), num_hidden_layers=64)
FIRST_CALL = """
import sys, time
sys.path[:0] = {path!r}
import eplb
{torch}
start = time.process_time()
layout = eplb.for_engine({file!r}, ep_size=32, ep_rank=7)
layout.expert_map, layout.maps, layout.loading_order
print(1e3 * (time.process_time() - start))
"""


def best_ms(call: Callable[[], object], repeats: int = REPEATS) -> str:
    """Wall and processor milliseconds."""
    wall, busy = [], []
    for _ in range(repeats):
        start, start_busy = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    return f"{min(wall) * 1e3:9.1f}{min(busy) * 1e3:9.1f}"


def at_start(folder: Path) -> None:
    """Print a line a format and one an engine's tensors."""
    load = eplb.ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (61, 256)), shape=SHAPE)
    plan = eplb.plan(load, eplb.Topology(4, 8, SLOTS), "greedy")
    print(f"\nfor_engine, 61 x 256 -> 288 on 32 ranks{'wall':>14}{'cpu':>9}{'first':>9}")
    for entry in FORMATS.values():
        for suffix in entry.suffixes:
            path = folder / f"{entry.name}{suffix}"
            write_plan(plan, path, entry.name)

            def call(path: Path = path) -> None:
                layout = for_engine(path, ep_size=NUM_RANKS, ep_rank=7)
                _ = layout.expert_map, layout.maps, layout.loading_order

            words = {"path": sys.path, "file": str(path), "torch": "import torch" if suffix == ".pt" else ""}
            first = subprocess.run(
                [sys.executable, "-c", FIRST_CALL.format(**words)], capture_output=True, text=True, check=True
            )
            print(f"{entry.name + ' ' + suffix:44}{best_ms(call)}{float(first.stdout):9.1f}")
    for engine in ("deepseek", "vllm", "sglang", "ascend"):
        layout = for_engine(plan, ep_size=NUM_RANKS, ep_rank=7)
        print(f"{'.torch(' + repr(engine) + ')':44}{best_ms(lambda e=engine, k=layout: k.torch(e))}")  # type: ignore[misc]


def judged(name: str, ms: str, phy2log: torch.Tensor, load: torch.Tensor, live: torch.Tensor | None) -> None:
    """Print times, balance and slots of another expert than the live one."""
    placement = eplb.Placement(phy2log.numpy(), 256, eplb.Topology(4, 8, SLOTS))
    reached = eplb.evaluate(placement, eplb.ExpertLoad(load.double().numpy())).max_over_mean
    moved = "" if live is None else f"{100 * (phy2log != live).double().mean():9.2f}"
    doubled = int(placement.duplicate_slots.sum())
    print(f"{name:44}{ms}{reached.mean():9.4f}{reached.max():9.4f}{doubled:9d}{moved}")


def one_call() -> None:
    """Print a line a call."""
    rng = np.random.default_rng(0)
    counts = rng.lognormal(0, 1, (58, 256)) * 1000
    load = torch.from_numpy(counts).long()
    drifted = torch.from_numpy(counts * rng.lognormal(0, 0.2, counts.shape)).long()
    linear = (torch.arange(NUM_SLOTS) % 256).expand(58, -1)
    ours = VllmPolicy(settings=PolicySettings(), plan=None)
    parity = VllmPolicy(settings=PolicySettings(strategy="deepseek"), plan=None)
    shape = (NUM_SLOTS, 8, 4, NUM_RANKS)
    first = ours.rebalance_experts(load, *shape)
    print(f"\none call, 58 x 256 -> 288{'wall':>28}{'cpu':>9}{'max/mean':>9}{'worst':>9}{'doubled':>9}{'moved %':>9}")
    cases: tuple[tuple[str, VllmPolicy, torch.Tensor, torch.Tensor | None], ...] = (
        ("vllm, fresh", ours, load, None),
        ("vllm, from its initial map", ours, load, linear),
        ("vllm, drifted", ours, drifted, first),
        ("vllm, unchanged", ours, load, first),
        ("vllm, strategy deepseek (hierarchical)", parity, drifted, first),
    )
    for name, policy, counted, live in cases:

        def call(p: VllmPolicy = policy, c: torch.Tensor = counted, k: torch.Tensor | None = live) -> torch.Tensor:
            return p.rebalance_experts(c, *shape, k)

        judged(name, best_ms(call), call(), counted, live)
    for name, groups in (("eplb.rebalance_experts, hierarchical", 8), ("eplb.rebalance_experts, global", 1)):

        def deepseek(num_groups: int = groups) -> torch.Tensor:
            nodes = 4 if num_groups > 1 else 1
            return eplb.rebalance_experts(drifted, NUM_SLOTS, num_groups, nodes, NUM_RANKS)[0]

        judged(name, best_ms(deepseek), deepseek(), drifted, first)
    steps = torch.from_numpy(rng.poisson(drifted.double().numpy() / 1000, (1000, 58, 256))).int()
    for name, algorithm in (
        ("sglang, 1000 steps, fresh (scenario)", SglangAlgorithm(settings=PolicySettings())),
        ("sglang, 1000 steps, from the live map", SglangAlgorithm(settings=PolicySettings(), live_map=lambda: first)),
    ):

        def sglang(a: SglangAlgorithm = algorithm) -> torch.Tensor:
            return a.rebalance_experts(steps, NUM_SLOTS, SLOTS, 8, 4, "auto")[0]

        judged(name, best_ms(sglang, 3), sglang(), steps.sum(dim=0), first)
    table = first.view(58, NUM_RANKS, SLOTS)
    count = torch.zeros(58, 256).scatter_add_(1, first, torch.ones(58, NUM_SLOTS))
    slot_load = (drifted / count).gather(1, first).view_as(table)
    ascend = AscendPolicy(settings=PolicySettings())
    made = torch.tensor(ascend.rebalance_experts(table, slot_load)[2]).view(58, -1)
    judged("ascend, drifted", best_ms(lambda: ascend.rebalance_experts(table, slot_load)), made, drifted, first)


def main() -> None:
    """Print both tables."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("eplb", "numba", "torch"))
    print(f"python {platform.python_version()}, {packages}, {platform.machine()}")
    print(f"{len(os.sched_getaffinity(0))} cores usable, best of {REPEATS}; the scenario call best of 3")
    with tempfile.TemporaryDirectory() as folder:
        at_start(Path(folder))
    one_call()


if __name__ == "__main__":
    main()
