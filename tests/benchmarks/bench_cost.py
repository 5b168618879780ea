"""Predicted against measured makespans: every rank of many plans, executed one after the other on one GPU.

    PYTHONPATH=.:traces python tests/benchmarks/bench_cost.py [--calibration h200] [--traces DIR] [--device D] [--quick]
        [--save FILE | --measured FILE]

`--save` keeps what was measured; `--measured` compares another calibration with it, without a GPU.

A point is a plan, a layer and a phase: its makespan is the FFN of the slowest of all ranks. DeepSeek-V3 has its real
loads, DeepSeek-V2-Lite (not calibrated on) the counts of a real trace, the other models log-normal loads. The second
table is the mean makespan of each plan: what a placement is worth in prefill and in decode.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import eplb
from eplb.core.placement import Placement
from eplb.cost import Batch, Calibration, ModelSizes, Phase, model_sizes, named_calibration
from eplb.runtime.calibration.calibrate import machine
from eplb.runtime.calibration.clock_log import logged_clocks
from eplb.runtime.calibration.timers import make_timer
from eplb.runtime.virtual.virtual_verify import VirtualRequest, verify_virtual

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


@dataclass(frozen=True)
class Point:
    """One layer of a plan in a phase, as measured."""

    case: str
    phase: str
    plan: str
    hidden: int
    intermediate: int
    dtype: str
    slot_tokens: list[int]
    first_slot: list[int]
    rank_s: list[float]
    """Seconds of each rank."""

    def predicted(self, calibration: Calibration) -> float:
        """The makespan in seconds."""
        ffn = calibration.ffn_of(self.dtype).for_expert(self.hidden, self.intermediate)
        return float(ffn.seconds(self.slot_tokens, np.array(self.first_slot, dtype=np.int64)).max())


def cases(traces: Path, quick: bool) -> Iterator[Case]:
    """DeepSeek-V3 in both types, then the models that no table was fitted on."""
    if quick:
        yield Case("small", model_sizes("moe-435m"), lognormal(2, 64), 4, 1, 8)
        return
    deepseek = model_sizes("deepseek-v3")
    for file in ("decode_in500out1500", "prefill_in2048"):
        load = sampled_layers(eplb.read_load(traces / "deepseek-v3" / f"{file}.json"), 3)
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


def measure(case: Case, calibration: Calibration, device: str) -> Iterator[Point]:
    """Every plan in every phase."""
    model = case.model
    request = VirtualRequest(model=model, calibration=calibration, dtype=case.dtype, device=device, repeats=3)
    for phase in Phase:
        tokens = phase.tokens_per_rank if device == "cuda" else 8
        batch = Batch.sampled(case.load.total, num_ranks=case.num_ranks, tokens_per_rank=tokens, top_k=model.top_k)
        for name, placement in plans(case).items():
            report = verify_virtual(placement, batch, request)
            first = placement.topology.rank_first_slot.tolist()
            for slots, rank_s in zip(report.predicted.slot_tokens.tolist(), report.measured_s.tolist(), strict=True):
                shape = (model.hidden_size, model.intermediate_size, case.dtype)
                yield Point(case.name, phase.value, name, *shape, slots, first, rank_s)


def measure_all(words: argparse.Namespace, calibration: Calibration) -> list[Point]:
    """All cases; what the clocks were."""
    device = make_timer(words.device).device
    points: list[Point] = []
    with logged_clocks(device) as clocks:
        for case in cases(words.traces, words.quick):
            points += measure(case, calibration, words.device)
            print(f"measured {case.name}", flush=True)
    print(f"{machine(device)}; while measuring: {clocks.summary()}")
    return points


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", default="h200")
    parser.add_argument("--traces", type=Path, default=SHARED)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="one small case, to see that it runs")
    parser.add_argument("--save", type=Path, help="write what was measured")
    parser.add_argument("--measured", type=Path, help="measure nothing: take what --save wrote")
    words = parser.parse_args()
    calibration = named_calibration(words.calibration)
    if words.measured is not None:
        points = [Point(**one) for one in json.loads(words.measured.read_text())]
    else:
        points = measure_all(words, calibration)
    if words.save is not None:
        words.save.write_text(json.dumps([asdict(one) for one in points]))
    print(f"calibration {calibration.title}\n")
    print_errors(points, calibration)
    print_makespans(points, calibration)


def print_errors(points: Iterable[Point], calibration: Calibration) -> None:
    """|predicted / measured - 1| of the makespans, by case and phase."""
    errors: dict[tuple[str, str], list[float]] = {}
    for one in points:
        error = abs(one.predicted(calibration) / max(one.rank_s) - 1)
        seen = "not calibrated on" if one.case in NOT_CALIBRATED else "calibrated on"
        for group in ((one.case, one.phase), (seen, "all"), ("all", "all")):
            errors.setdefault(group, []).append(error)
    print(f"{'case':36} {'phase':8} {'points':>6} {'median %':>8} {'p95 %':>7}")
    for (name, phase), found in sorted(errors.items(), key=lambda item: item[0][1] == "all"):
        print(line(name, phase, found))


def print_makespans(points: Iterable[Point], calibration: Calibration) -> None:
    """Mean over layers, in milliseconds."""
    worth: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for one in points:
        row = (max(one.rank_s), float(np.mean(one.rank_s)), one.predicted(calibration))
        worth.setdefault((one.case, one.phase, one.plan), []).append(row)
    print(f"\n{'case':36} {'phase':8} {'plan, slots':28} {'makespan':>9} {'mean rank':>9} {'predicted':>9}  (ms)")
    for (case, phase, plan), rows in worth.items():
        makespan, mean, predicted = 1e3 * np.mean(rows, axis=0)
        print(f"{case:36} {phase:8} {plan:28} {makespan:9.3f} {mean:9.3f} {predicted:9.3f}")


def line(name: str, phase: str, errors: list[float]) -> str:
    median, p95 = 100 * np.median(errors), 100 * np.percentile(errors, 95)
    return f"{name:36} {phase:8} {len(errors):6} {median:8.2f} {p95:7.2f}"


if __name__ == "__main__":
    main()
