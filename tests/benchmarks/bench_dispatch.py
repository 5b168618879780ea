"""Plans for the dispatch rule that the engine uses, beside plans for even dispatch evaluated under the same rule.

Prints max/mean of the busiest rank, mean (worst) over layers, and the time of a plan, best of five. The lognormal loads
are 58 layers x 256 experts, sigma 1; the recorded ones are DeepSeek-V3's and the windows of moe-435m, where the traces
are beside the checkout. `sglang_static` is the draw that SGLang makes, not its expectation. The last table has a shared
expert on every rank, a hard constraint.
"""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import eplb
from eplb.core.constraints import Constraints
from eplb_traces import ExpertLoad, read_load

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
RULES = ("local_first", "sglang_dynamic", "sglang_static", "ascend")
EP16 = eplb.Topology(2, 8, 20)
EP32 = eplb.Topology(4, 8, 9)
RUNS = 5


def loads() -> Iterator[tuple[str, ExpertLoad, eplb.Topology]]:
    lognormal = ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (1, 58, 256)) * 1000)
    yield "lognormal, 16 ranks, 2 nodes, 64 redundant", lognormal, EP16
    yield "lognormal, 32 ranks, 4 nodes, 32 redundant", lognormal, EP32
    if SHARED.is_dir():
        for name in ("prefill_in2000out100", "decode_in500out1500"):
            recorded = read_load(SHARED / "deepseek-v3" / f"{name}.json")
            yield f"DeepSeek-V3 {name}, 16 ranks, 2 nodes, 64 redundant", recorded, EP16
            yield f"DeepSeek-V3 {name}, 32 ranks, 4 nodes, 32 redundant", recorded, EP32


def table_of_rules() -> None:
    print("\nOne load, strategy greedy")
    print("rule              even plan under the rule    planned for it    lower bound    ms    load")
    for name, load, topology in loads():
        even = eplb.plan(load, topology, "greedy")
        for rule in RULES:
            seconds = []
            for _ in range(RUNS):
                made = eplb.plan(load, topology, "greedy", dispatch=rule)
                seconds.append(made.seconds)
            before, after = (eplb.evaluate(plan.placement, load, rule).max_over_mean for plan in (even, made))
            mean = load.total.sum(axis=1) / topology.num_ranks
            bound = np.mean(np.array([layer.lower_bound for layer in made.layers]) / mean)
            print(
                f"{rule:15s} {np.nanmean(before):12.4f} ({np.nanmax(before):.3f}) {np.nanmean(after):16.4f} "
                f"({np.nanmax(after):.3f}) {bound:10.4f} {min(seconds) * 1e3:9.1f}    {name}"
            )


def table_of_shared_expert() -> None:
    routed = np.random.default_rng(0).lognormal(0, 1, (1, 58, 256)) * 1000
    load = ExpertLoad(np.concatenate([routed, routed.sum(axis=2, keepdims=True) / 8], axis=2))
    topology, asked = eplb.Topology(4, 8, 10), Constraints(replicate_everywhere=[256])
    print("\n256 lognormal experts and a shared one on every rank, 32 ranks, 4 nodes, 10 slots a rank")
    print("rule              greedy          ms    scenario        ms")
    for rule in ("even", *RULES):
        cells = []
        for strategy in ("greedy", "scenario"):
            plans = [eplb.plan(load, topology, strategy, dispatch=rule, constraints=asked) for _ in range(2)]
            found = eplb.evaluate(plans[-1].placement, load, rule).max_over_mean
            cells.append(f"{found.mean():.4f} ({found.max():.3f}) {min(made.seconds for made in plans) * 1e3:7.1f}")
        print(f"{rule:15s} {'    '.join(cells)}")


def table_of_windows() -> None:
    tokens = np.load(SHARED / "moe-435m" / "windows.npz")["tokens_per_expert"].astype(np.float64)
    print("\nmoe-435m, strategy scenario: plan on 100 steps, score the next 100, starts 0, 100, 200, 300; mean (p95)")
    print("rule              even plan under the rule    planned for it    seconds; 32 ranks, 4 nodes, 9 slots")
    for rule in RULES:
        scores: tuple[list[float], list[float]] = ([], [])
        seconds = 0.0
        for first in (0, 100, 200, 300):
            past, future = ExpertLoad(tokens[first : first + 100]), ExpertLoad(tokens[first + 100 : first + 200])
            for score, planned in zip(scores, ("even", rule), strict=True):
                made = eplb.plan(past, EP32, "scenario", dispatch=planned)
                score.append(eplb.evaluate(made.placement, future, rule).max_over_mean_by_window)
            seconds += made.seconds / 4
        even, ours = (f"{np.mean(score):.4f} ({np.percentile(score, 95):.3f})" for score in scores)
        print(f"{rule:15s} {even:>24s} {ours:>24s} {seconds:10.2f}")


if __name__ == "__main__":
    print(
        f"eplb {eplb.__version__}, numpy {np.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, seed 0"
    )
    table_of_rules()
    table_of_shared_expert()
    if SHARED.is_dir():
        table_of_windows()
