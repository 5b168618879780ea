"""One plan for many loads: `scenario` beside the plan for the mean load, on planned and on unseen traffic.

Needs the traces beside the checkout. Prints max/mean of the busiest rank; 32 ranks on 4 nodes unless said.
"""

import platform
import sys
from pathlib import Path

import numpy as np

import eplb
from eplb_traces import ExpertLoad, read_load

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
MACHINE = eplb.Topology(4, 8, 9)
SPLITS = ([0], [1], [2, 3, 4], [5], [6, 7], [0, 1], [2, 3, 4, 5, 6, 7], [4], [7])


def workloads() -> tuple[list[str], np.ndarray]:
    """Names and loads [8, 58, 256] of the DeepSeek-V3 workloads, each layer scaled to a million tokens."""
    files = sorted((SHARED / "deepseek-v3").glob("*.json"))
    tokens = np.stack([read_load(file).total for file in files])
    return [file.stem for file in files], tokens / tokens.sum(axis=2, keepdims=True) * 1e6


def judged(placement: eplb.Placement, tokens: np.ndarray, dispatch: str = "even") -> np.ndarray:
    """[W, L] max/mean."""
    return eplb.evaluate(placement, ExpertLoad(tokens), dispatch).max_over_mean_by_window


def table_of_workloads() -> None:
    names, tokens = workloads()
    eplb.plan(ExpertLoad(tokens), MACHINE, "scenario")  # compile
    print("\n8 DeepSeek-V3 workloads, one plan, scored on the same workloads")
    print("ranks x slots   scenario mean  worst workload  seconds   greedy on the mean load: mean  worst workload")
    for machine in (MACHINE, eplb.Topology(1, 8, 36), eplb.Topology(2, 8, 18), eplb.Topology(8, 8, 5)):
        made = eplb.plan(ExpertLoad(tokens), machine, "scenario")
        robust = judged(made.placement, tokens).mean(axis=1)
        mean = judged(eplb.plan(ExpertLoad(tokens.mean(axis=0)), machine, "greedy").placement, tokens).mean(axis=1)
        print(
            f"{machine.num_ranks:5d} x {machine.slots_per_rank:2d} {robust.mean():18.4f} {robust.max():13.4f}"
            f"{made.seconds:11.2f} {mean.mean():27.4f} {mean.max():15.4f}"
        )
    print("\nWorkloads left out of planning, mean max/mean on them")
    for held in SPLITS:
        kept = [i for i in range(len(names)) if i not in held]
        robust = judged(eplb.plan(ExpertLoad(tokens[kept]), MACHINE, "scenario").placement, tokens[held]).mean()
        mean = judged(
            eplb.plan(ExpertLoad(tokens[kept].mean(axis=0)), MACHINE, "greedy").placement, tokens[held]
        ).mean()
        left_out = ", ".join(names[i] for i in held)
        print(f"  scenario {robust:.4f}  mean load {mean:.4f}  {'better' if robust < mean else 'WORSE '}  {left_out}")


def table_of_windows() -> None:
    tokens = np.load(SHARED / "moe-435m" / "windows.npz")["tokens_per_expert"].astype(np.float64)
    print("\nmoe-435m: plan on 100 steps, score the next 100 step by step, starts 0, 100, 200, 300; mean (p95)")
    print("slots  planned for  strategy   even split        online dispatch (every 8th step)   seconds")
    for slots in (9, 10, 12):
        machine = eplb.Topology(4, 8, slots)
        for strategy, dispatch in (("greedy", "even"), ("scenario", "even"), ("scenario", "online")):
            even, online, seconds = [], [], 0.0
            for first in (0, 100, 200, 300):
                past, future = tokens[first : first + 100], tokens[first + 100 : first + 200]
                made = eplb.plan(ExpertLoad(past), machine, strategy, dispatch=dispatch)
                seconds += made.seconds / 4
                even.append(judged(made.placement, future))
                online.append(judged(made.placement, future[::8], "online"))
            print(
                f"{slots:5d}  {dispatch:11s}  {strategy:9s}  {np.mean(even):.4f} ({np.percentile(even, 95):.3f})"
                f"   {np.mean(online):.4f} ({np.percentile(online, 95):.3f}) {seconds:26.2f}"
            )


if __name__ == "__main__":
    if not SHARED.is_dir():
        sys.exit("needs the traces beside the checkout")
    print(f"eplb {eplb.__version__}, numpy {np.__version__}, Python {platform.python_version()}, seed 0")
    table_of_workloads()
    table_of_windows()
