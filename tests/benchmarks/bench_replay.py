"""Step times of a recorded history under a linear plan, DeepSeek's EPLB every 20 steps and the online rebalancer.

    PYTHONPATH=.:traces:cli python tests/benchmarks/bench_replay.py [--device D] [--layers IDS] [--tokens-per-rank T]
        [--model M] [--dtype T] [--windows N] [--save FILE] [--plan-only FILE | --planned FILE]

The routing is that of moe-435m (the sample of 150 windows of 65,536 tokens: 2,048 a rank at 32 ranks), which has
DeepSeek-V3's router; the experts have DeepSeek-V3's sizes, unless --model says otherwise. All 32 ranks of every step
are executed one after the other on one GPU. Migrations move one layer a step and are charged to it as a whole, at the
bandwidths of the shipped calibration. `--plan-only` writes the plans of all steps, `--planned` takes them: a GPU then
does not wait for the planner.
"""

import argparse
import json
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import eplb
from eplb.cost import ModelSizes, model_sizes, named_calibration
from eplb.cost.placement_schedule import PlacementSchedule
from eplb.online import OnlineSettings
from eplb.online.replay_arms import Arm, FixedPlacement, Online, PeriodicReplan, schedule
from eplb_cli.arguments.parse import id_list

SAMPLE = Path(__file__).resolve().parents[2] / "traces" / "eplb_traces" / "samples" / "moe-435m-windows.npz"
RANKS, NODES, REDUNDANT, EVERY, GROUPS = 32, 4, 32, 20, 8


def schedules(load: eplb.ExpertLoad, model: ModelSizes, dtype: str) -> list[PlacementSchedule]:
    """The three arms, planned for the history step by step."""
    links, experts = named_calibration("h200").links, load.num_experts
    bare = eplb.Topology.for_experts(experts, num_ranks=RANKS, num_nodes=NODES)
    spare = eplb.Topology.for_experts(experts, num_ranks=RANKS, num_nodes=NODES, num_redundant=REDUNDANT)
    spare = replace(spare, intra_node_gbps=links.intra_node.gbps, inter_node_gbps=links.inter_node.gbps)
    moved_bytes = model.expert_bytes(dtype)

    def hierarchical(recent: eplb.ExpertLoad) -> eplb.Placement:
        return eplb.plan(recent, spare, "deepseek", groups=GROUPS, group_mode="pinned").placement

    arms: list[Arm] = [
        FixedPlacement(f"linear, {bare.num_slots} slots", eplb.plan(load, bare, "linear").placement),
        PeriodicReplan(
            name=f"DeepSeek hierarchical every {EVERY}, {spare.num_slots}",
            load=load, every=EVERY, plan=hierarchical, expert_bytes=moved_bytes,
        ),
        Online(load, spare, OnlineSettings(interval=EVERY, expert_bytes=moved_bytes)),
    ]  # fmt: skip
    return [schedule(arm, first_step=EVERY, num_steps=load.num_windows) for arm in arms]


def execute(planned: list[PlacementSchedule], load: eplb.ExpertLoad, words: argparse.Namespace) -> dict[str, object]:
    """Run, print the table; what every step took."""
    from eplb.runtime.calibration.calibrate import machine
    from eplb.runtime.calibration.clock_log import logged_clocks
    from eplb.runtime.calibration.timers import make_timer
    from eplb.runtime.virtual.step_replay import ReplayRequest, replay

    request = ReplayRequest(
        load=load,
        model=model_sizes(words.model),
        calibration=named_calibration("h200"),
        dtype=words.dtype,
        device=words.device,
        tokens_per_rank=words.tokens_per_rank,
    )
    device, start = make_timer(words.device).device, time.perf_counter()
    with logged_clocks(device) as clocks:
        served = replay(planned, request)
    print(f"{machine(device)}; while measuring: {clocks.summary()}; {time.perf_counter() - start:.0f} s")
    tokens = load.tokens.sum(axis=2).mean() / (RANKS * request.model.top_k)
    print(
        f"moe-435m, {len(planned[0].placements)} steps after the first {EVERY}, {load.num_layers} layers, EP{RANKS}, "
        f"{words.tokens_per_rank or tokens:.0f} tokens a rank, experts of {words.model} in {words.dtype}"
    )
    headings = ("mean", "p50", "p95", "p99", "FFN", "model", "moves", "travel")
    print(f"{'ms a step':38} {' '.join(f'{heading:>8}' for heading in headings)}")
    for one in served:
        ffn, model = (1e3 * each.sum(axis=1).mean() for each in (one.measured_s, one.predicted_s))
        parts = [1e3 * one.step_s.mean(), *(1e3 * one.percentile_s(q) for q in (50, 95, 99)), ffn, model]
        numbers = " ".join(f"{part:8.2f}" for part in parts)
        travel = 1e3 * one.schedule.migration_s.sum()
        print(f"{one.schedule.name:38} {numbers} {one.schedule.moved_copies:8} {travel:8.1f}")
    errors = np.abs(np.concatenate([one.error for one in served]))
    median, p95 = 100 * np.median(errors), 100 * np.percentile(errors, 95)
    print(f"{errors.size} makespans: model off by {median:.1f} % in the median, p95 {p95:.1f} %")
    return {one.schedule.name: one.summary() for one in served}


def main() -> None:
    """Plan, execute, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", default="0-7")
    parser.add_argument("--tokens-per-rank", type=int, default=0)
    parser.add_argument("--model", default="deepseek-v3")
    parser.add_argument("--dtype", default="fp8")
    parser.add_argument("--windows", type=int, default=150, help="only the first ones")
    parser.add_argument("--save", type=Path, help="write the time of every step")
    parser.add_argument("--plan-only", type=Path, help="write the plans, execute nothing")
    parser.add_argument("--planned", type=Path, help="take the plans that --plan-only wrote")
    words = parser.parse_args()
    load = eplb.read_load(SAMPLE).select(slice(0, words.windows)).select_layers(id_list(words.layers, "--layers"))
    if words.planned is not None:
        planned = pickle.loads(words.planned.read_bytes())
    else:
        planned = schedules(load, model_sizes(words.model), words.dtype)
    if words.plan_only is not None:
        words.plan_only.write_bytes(pickle.dumps(planned))
        return
    found = execute(planned, load, words)
    if words.save is not None:
        words.save.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
