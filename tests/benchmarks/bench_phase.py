"""Measured makespans of plans made for a phase, beside plans made for tokens, rank by rank on one GPU.

    PYTHONPATH=.:traces python tests/benchmarks/bench_phase.py [--calibration C] [--traces DIR] [--device D] [--quick]

A makespan is the FFN of the slowest of 32 ranks. Every variant runs the same drawn batches of real DeepSeek-V3 loads;
variants alternate inside a layer and the order turns from batch to batch. Plans are made for the load, not the batches.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.cost import Batch, Calibration, ModelSizes, Phase, model_sizes, named_calibration, predict
from eplb.runtime.calibration.calibrate import machine
from eplb.runtime.calibration.timers import make_timer
from eplb.runtime.virtual.virtual_ranks import ExpertShape, VirtualRanks

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
NUM_RANKS, NUM_NODES, NUM_REDUNDANT, NUM_GROUPS = 32, 4, 32, 8


@dataclass(frozen=True)
class Case:
    """A load in a phase."""

    file: str
    phase: Phase
    dtype: str
    num_batches: int
    repeats: int


CASES = (
    Case("decode_in500out1500", Phase.DECODE, "bf16", 4, 5),
    Case("prefill_in2048", Phase.PREFILL, "bf16", 1, 5),
    Case("decode_in500out1500", Phase.DECODE, "fp8", 3, 5),
)


@dataclass(frozen=True)
class Variant:
    """A plan and the rule under which it runs."""

    name: str
    placement: Placement
    rule: DispatchRule = DispatchRule.EVEN


def sampled_layers(load: eplb.ExpertLoad, count: int) -> eplb.ExpertLoad:
    """Evenly spread layers, windows summed."""
    return eplb.ExpertLoad(load.total[np.linspace(0, load.num_layers - 1, count).round().astype(int)])


def variants(load: eplb.ExpertLoad, phase: Phase, model: ModelSizes, calibration: Calibration) -> Iterator[Variant]:
    """Plans for tokens, then plans for the phase."""
    bare, spare = (
        eplb.Topology.for_experts(load.num_experts, num_ranks=NUM_RANKS, num_nodes=NUM_NODES, num_redundant=count)
        for count in (0, NUM_REDUNDANT)
    )
    yield Variant(f"linear, {bare.num_slots}", eplb.plan(load, bare, "linear").placement)
    for topology in (bare, spare):
        yield Variant(f"greedy, {topology.num_slots}", eplb.plan(load, topology, "greedy").placement)
    yield Variant(f"DeepSeek global, {spare.num_slots}", eplb.plan(load, spare, "deepseek").placement)
    pinned = eplb.plan(load, spare, "deepseek", groups=NUM_GROUPS, group_mode="pinned")
    yield Variant(f"DeepSeek hierarchical, {spare.num_slots}", pinned.placement)
    for topology, rule in ((bare, DispatchRule.EVEN), (spare, DispatchRule.EVEN), (spare, DispatchRule.WEIGHTED)):
        made = eplb.plan(load, topology, phase=phase, calibration=calibration, model=model, dispatch=rule)
        yield Variant(f"phase, {topology.num_slots}, {rule}", made.placement, rule)


def measure(case: Case, traces: Path, calibration: Calibration, device: str) -> None:
    """Print one case as a table."""
    model = dataclasses.replace(model_sizes("deepseek-v3"), dtype=case.dtype)
    load = sampled_layers(eplb.read_load(traces / "deepseek-v3" / f"{case.file}.json"), 5)
    tokens = case.phase.tokens_per_rank
    if device == "cpu":
        model, tokens = dataclasses.replace(model, hidden_size=64, intermediate_size=32), 2
    made = list(variants(load, case.phase, model, calibration))
    shape = ExpertShape(model.hidden_size, model.intermediate_size, case.dtype)
    ranks = {one.placement.num_slots: VirtualRanks(one.placement.topology, shape, device) for one in made}
    measured = np.empty((len(made), case.num_batches, load.num_layers))
    predicted = np.empty_like(measured)
    start = time.perf_counter()
    for number in range(case.num_batches):
        batch = Batch.sampled(
            load.total, num_ranks=NUM_RANKS, tokens_per_rank=tokens, top_k=model.top_k, seed=100 + number
        )
        times = [predict(one.placement, batch, model, calibration, rule=one.rule) for one in made]
        for layer in range(load.num_layers):
            for index in np.roll(np.arange(len(made)), number + layer).tolist():
                slots = times[index].slot_tokens[layer]
                seconds = ranks[made[index].placement.num_slots].measure(slots, repeats=case.repeats)
                measured[index, number, layer] = seconds.max()
                predicted[index, number, layer] = times[index].makespan_s[layer]
    taken = time.perf_counter() - start
    print(
        f"\n{case.file}, {case.phase}, {tokens} tokens a rank, {case.dtype}: {case.num_batches} batches, {taken:.0f} s"
    )
    print(f"{'plan, slots':32} {'makespan ms':>11} {'of batches':>15} {'predicted':>9}")
    for one, found, expected in zip(made, 1e3 * measured, 1e3 * predicted, strict=True):
        means = found.mean(axis=1)
        spread = f"{means.min():.3f}-{means.max():.3f}"
        print(f"{one.name:32} {found.mean():11.4f} {spread:>15} {expected.mean():9.4f}", flush=True)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", default="h200")
    parser.add_argument("--traces", type=Path, default=SHARED)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="one batch of each case, to see that it runs")
    words = parser.parse_args()
    calibration = named_calibration(words.calibration)
    print(f"{machine(make_timer(words.device).device)}\ncalibration {calibration.title}", flush=True)
    for case in CASES:
        if words.device == "cpu" and case.dtype == "fp8":
            continue
        asked = dataclasses.replace(case, num_batches=1, repeats=1) if words.quick else case
        measure(asked, words.traces, calibration, words.device)


if __name__ == "__main__":
    main()
