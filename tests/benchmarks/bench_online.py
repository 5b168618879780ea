"""Replanning while serving: balance per step and copies moved of every policy, on traffic that drifts.

Defaults were chosen on steps 0-299 of moe-435m and on v3-switching, seeds 1-4, every eighth layer; the other rows are
traffic that no setting has seen. Needs the traces beside the checkout. Max/mean over steps and layers, moves also as
shares of those of `full` and of `full_relabelled`, the fairer baseline.
"""

import platform
import sys
from pathlib import Path

import numpy as np

import eplb
from eplb.core.topology import Topology
from eplb.online.replay import Replay, Served, simulate
from eplb_traces import ExpertLoad, read_load
from eplb_traces.synthetic.synthetic import synthesize_load

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
STEPS_PER_WORKLOAD, CROSSFADE, CHOICES = 24, 8, 32_768 * 8


def machine(num_experts: int, num_ranks: int, num_nodes: int, num_redundant: int) -> Topology:
    return Topology.for_experts(num_experts, num_ranks=num_ranks, num_nodes=num_nodes, num_redundant=num_redundant)


def moe_435m() -> np.ndarray:
    """[600, 8, 256], 16,384 tokens a step, the mix of text domains drifts."""
    return np.load(SHARED / "moe-435m" / "windows.npz")["tokens_per_expert"].astype(np.float64)


def olmoe() -> np.ndarray:
    """[128, 16, 64], eight sequences a step in random order: traffic that does not drift."""
    return np.load(SHARED / "olmoe" / "windows.npz")["load"].astype(np.float64).reshape(128, 8, 16, 64).sum(axis=1)


def deepseek_v3() -> np.ndarray:
    """[192, 58, 256]: the eight workloads one after the other, each faded into the next, multinomial steps."""
    files = sorted((SHARED / "deepseek-v3").glob("*.json"))
    share = np.stack([read_load(file).total for file in files])
    share /= share.sum(axis=2, keepdims=True)
    rng, steps = np.random.default_rng(0), []
    for number, now in enumerate(share):
        following = share[min(number + 1, len(share) - 1)]
        for step in range(STEPS_PER_WORKLOAD):
            part = max(0.0, (step - STEPS_PER_WORKLOAD + CROSSFADE) / CROSSFADE)
            steps.append(rng.multinomial(CHOICES, (1 - part) * now + part * following))
    return np.stack(steps).astype(np.float64)


def synthetic(preset: str, seed: int, every: int = 1) -> np.ndarray:
    """[96, 58 / every, 256] windows of a preset, 16,384 tokens each: few sequences, and so mostly noise."""
    return synthesize_load(preset, num_windows=96, tokens_per_window=16_384, seed=seed).tokens[:, ::every]


def table(name: str, tokens: np.ndarray, on: Topology, interval: int) -> None:
    served = simulate(Replay(load=ExpertLoad(tokens), topology=on, interval=interval))
    moved = {one.policy: one.moved_copies for one in served}
    shape = f"{on.num_ranks} ranks x {on.num_slots // on.num_ranks}, {tokens.shape[0]} steps, interval {interval}"
    print(f"\n{name}: {shape}\npolicy            mean     p95    moves  of full  renamed  stall s   plan s")
    for one in served:
        print(_row(one, moved["full"], moved["full_relabelled"]), flush=True)


def _row(one: Served, full: int, renamed: int) -> str:
    moves = one.moved_copies
    return (
        f"{one.policy:14s} {one.mean:7.4f} {one.p95:7.4f} {moves:8d} {moves / full:8.1%} {moves / renamed:8.1%}"
        f" {one.stall_s:8.2f} {one.plan_s:8.2f}"
    )


if __name__ == "__main__":
    if not SHARED.is_dir():
        sys.exit("needs the traces beside the checkout")
    print(f"eplb {eplb.__version__}, numpy {np.__version__}, Python {platform.python_version()}, seed 0")
    moe, wide = moe_435m(), machine(256, 32, 4, 32)
    table("moe-435m, whole", moe, wide, 20)
    table("moe-435m, steps 0-299 (tuned on)", moe[:300], wide, 20)
    table("moe-435m, steps 300-599 (held out)", moe[300:], wide, 20)
    table("moe-435m, steps 300-599 (held out)", moe[300:], wide, 50)
    table("OLMoE, no drift", olmoe(), machine(64, 16, 2, 16), 16)
    table("DeepSeek-V3, 8 workloads in turn", deepseek_v3(), wide, 12)
    table("synthetic, v3-switching, seed 1", synthetic("v3-switching", 1), wide, 12)
    for preset in ("v3-switching", "v3-prefill", "v3-decode", "v3-long-prefill"):
        table(f"synthetic, {preset}, seed 7, every eighth layer", synthetic(preset, 7, every=8), wide, 12)
