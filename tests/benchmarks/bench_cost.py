"""Predicted against measured makespans: every rank of many plans, executed one after the other on one GPU.

    PYTHONPATH=.:traces python tests/benchmarks/bench_cost.py [--calibration h200] [--traces DIR] [--device D] [--quick]

A point is a plan, a layer and a phase: its makespan is the FFN of the slowest of all ranks. DeepSeek-V3 has its real
loads, DeepSeek-V2-Lite (not calibrated on) the counts of a real trace, the other models log-normal loads. The second
table is the mean makespan of each plan: what a placement is worth in prefill and in decode.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import eplb
from eplb.core.placement import Placement
from eplb.cost import Batch, Calibration, ModelSizes, Phase, model_sizes, named_calibration
from eplb.runtime.calibration.calibrate import machine
from eplb.runtime.calibration.timers import make_timer
from eplb.runtime.virtual.virtual_verify import VirtualReport, VirtualRequest, verify_virtual

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
NOT_CALIBRATED = ("deepseek-v2-lite", "glm-4.5", "qwen3-30b-a3b")


@dataclass(frozen=True)
class Case:
    """A model with a load, on a topology."""

    name: str
    model: ModelSizes
    load: eplb.ExpertLoad
    num_ranks: int
    num_nodes: int
    num_redundant: int
    dtype: str = "bf16"
    num_groups: int = 1


def cases(traces: Path, quick: bool) -> Iterator[Case]:
    """DeepSeek-V3 in both types, then the models that no table was fitted on."""
    if quick:
        yield Case("small", model_sizes("moe-435m"), lognormal(2, 64), 4, 1, 8)
        return
    deepseek = model_sizes("deepseek-v3")
    for file in ("decode_in500out1500", "prefill_in2048"):
        load = sampled_layers(eplb.read_load(traces / "deepseek-v3" / f"{file}.json"), 5)
        yield Case(f"deepseek-v3 {file}", deepseek, load, 32, 4, 32, num_groups=8)
    yield Case("deepseek-v3 fp8", deepseek, load, 32, 4, 32, "fp8", num_groups=8)
    lite = sampled_layers(eplb.read_trace(traces / "deepseek-v2-lite" / "tokens.npz", 64).load(), 4)
    yield Case("deepseek-v2-lite", model_sizes("deepseek-v2-lite"), lite, 8, 1, 8)
    yield Case("glm-4.5", model_sizes("glm-4.5"), lognormal(3, 160), 16, 2, 16)
    yield Case("qwen3-30b-a3b", model_sizes("qwen3-30b-a3b"), lognormal(3, 128), 16, 2, 16)


def lognormal(num_layers: int, num_experts: int) -> eplb.ExpertLoad:
    return eplb.ExpertLoad(np.random.default_rng(7).lognormal(6, 0.8, (num_layers, num_experts)).round())


def sampled_layers(load: eplb.ExpertLoad, count: int) -> eplb.ExpertLoad:
    """Evenly spread layers, windows summed."""
    chosen = np.linspace(0, load.num_layers - 1, count).round().astype(int)
    return eplb.ExpertLoad(load.total[chosen])


def plans(case: Case) -> dict[str, Placement]:
    """Plans with and without redundancy."""
    experts = case.model.num_experts if case.load.num_experts == case.model.num_experts else case.load.num_experts
    machines = {
        extra: eplb.Topology.for_experts(
            experts, num_ranks=case.num_ranks, num_nodes=case.num_nodes, num_redundant=extra
        )
        for extra in (0, case.num_redundant)
    }
    bare, spare = machines[0], machines[case.num_redundant]
    made = {
        f"linear, {bare.num_slots}": eplb.plan(case.load, bare, "linear"),
        f"greedy, {bare.num_slots}": eplb.plan(case.load, bare, "greedy"),
        f"greedy, {spare.num_slots}": eplb.plan(case.load, spare, "greedy"),
        f"DeepSeek global, {spare.num_slots}": eplb.plan(case.load, spare, "deepseek"),
    }
    if case.num_groups > 1:
        made[f"DeepSeek hierarchical, {spare.num_slots}"] = eplb.plan(
            case.load, spare, "deepseek", groups=case.num_groups, group_mode="pinned"
        )
    return {name: plan.placement for name, plan in made.items()}


def measure(case: Case, calibration: Calibration, device: str) -> Iterator[tuple[str, Phase, VirtualReport]]:
    """Every plan in every phase."""
    request = VirtualRequest(model=case.model, calibration=calibration, dtype=case.dtype, device=device)
    for phase in Phase:
        tokens = phase.tokens_per_rank if device == "cuda" else 8
        batch = Batch.sampled(case.load.total, num_ranks=case.num_ranks, tokens_per_rank=tokens, top_k=case.model.top_k)
        for name, placement in plans(case).items():
            yield name, phase, verify_virtual(placement, batch, request)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", default="h200")
    parser.add_argument("--traces", type=Path, default=SHARED)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="one small case, to see that it runs")
    words = parser.parse_args()
    calibration = named_calibration(words.calibration)
    print(f"{machine(make_timer(words.device).device)}\ncalibration {calibration.title}\n")
    print(f"{'case':36} {'phase':8} {'points':>6} {'median %':>8} {'p95 %':>7}")
    everything: dict[str, list[float]] = {}
    worth: list[str] = []
    for case in cases(words.traces, words.quick):
        errors: dict[Phase, list[float]] = {}
        for name, phase, report in measure(case, calibration, words.device):
            errors.setdefault(phase, []).extend(np.abs(report.errors).tolist())
            worth.append(
                f"{case.name:36} {phase:8} {name:28} {report.makespan_s.mean() * 1e3:9.3f} "
                f"{report.measured_s.mean() * 1e3:9.3f} {report.predicted.makespan_s.mean() * 1e3:9.3f}"
            )
        for phase, found in errors.items():
            print(line(case.name, phase, found), flush=True)
            seen = "not calibrated on" if case.name in NOT_CALIBRATED else "calibrated on"
            everything.setdefault(seen, []).extend(found)
            everything.setdefault("all", []).extend(found)
    for name, found in everything.items():
        print(line(name, "all", found))
    print(f"\n{'case':36} {'phase':8} {'plan, slots':28} {'makespan':>9} {'mean rank':>9} {'predicted':>9}  (ms)")
    print("\n".join(worth))


def line(name: str, phase: str, errors: list[float]) -> str:
    median, p95 = 100 * np.median(errors), 100 * np.percentile(errors, 95)
    return f"{name:36} {phase:8} {len(errors):6} {median:8.2f} {p95:7.2f}"


if __name__ == "__main__":
    main()
