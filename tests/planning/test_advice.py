"""Advice on deployments: rows recomputed by hand, the rules of knee and recommendation, and memory."""

from dataclasses import replace

import numpy as np
import pytest

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.cost import Batch, model_sizes, named_calibration, predict
from eplb.cost.model_presets import ModelSizes
from eplb.errors import InputError
from eplb.evaluation.step_cost import StepCost
from eplb.planning.advice import KNEE_SHARE, Advice, DeploymentSpace, advise
from eplb.planning.advice_memory import GpuMemory, rest_weights
from eplb_traces import ModelShape, synthesize_trace

MODEL = ModelSizes(
    name="small", hidden_size=1024, intermediate_size=256, num_moe_layers=6, num_dense_layers=1, num_experts=16,
    top_k=4, num_expert_groups=1, top_k_groups=1, num_shared_experts=1, dtype="bf16",
)  # fmt: skip
COST = StepCost(model=MODEL, calibration=named_calibration("h200"), tokens_per_rank=64)
SPACE = DeploymentSpace(nodes=(1, 2, 4), gpus_per_node=2)
PUBLISHED = {  # weights of the whole model in billions, from the model cards
    "deepseek-v3": 671, "deepseek-v2": 235.7, "deepseek-v2-lite": 15.7, "kimi-k2": 1026, "qwen3-235b-a22b": 235,
    "qwen3-30b-a3b": 30.5, "gpt-oss-120b": 116.8, "gpt-oss-20b": 20.9, "glm-4.5": 355, "mixtral-8x7b": 46.7,
    "olmoe-1b-7b": 6.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def load() -> eplb.ExpertLoad:
    return eplb.ExpertLoad(np.random.default_rng(1).lognormal(4, 1, (3, 16)))


@pytest.fixture(scope="module")
def advice(load) -> Advice:
    return advise(load, COST, SPACE)


def test_the_rows_are_every_size_redundancy_placement_and_dispatch(advice):
    sizes = {(row.num_ranks, row.num_redundant) for row in advice.deployments}
    assert sizes == {(2, 0), (2, 2), (2, 4), (4, 0), (4, 4), (4, 8), (8, 0), (8, 8), (8, 16)}
    # 3 placements; two rules where experts have replicas (6 of the 9 sizes), one elsewhere
    assert len(advice.deployments) == 3 * (6 * 2 + 3 * 1) == SPACE.size(16)
    assert {row.rule for row in advice.deployments if not row.num_redundant} == {DispatchRule.EVEN}


def test_a_row_is_what_the_cost_model_predicts_for_its_plan(advice, load):
    (row,) = [
        row
        for row in advice.deployments
        if (row.num_ranks, row.num_redundant, row.strategy, row.rule) == (4, 4, "greedy", DispatchRule.EVEN)
    ]
    topology = eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2, num_redundant=4)
    placement = eplb.plan(load, topology, "greedy").placement
    batch = Batch.sampled(load.total, num_ranks=4, tokens_per_rank=64, top_k=4)
    seconds = predict(placement, batch, MODEL, COST.calibration).step_s.mean() * 6
    assert row.step.step_s == pytest.approx(seconds)
    assert row.tokens_per_s == pytest.approx(64 / seconds)
    assert row.expert_bytes == 5 * 6 * 3 * 1024 * 256 * 2  # slots, layers, weights of an expert, bytes
    assert row.left_bytes == pytest.approx(COST.calibration.memory_bytes - row.expert_bytes - 2 * rest_weights(MODEL))
    assert row.max_over_mean == pytest.approx(eplb.evaluate(placement, load).summary()["max_over_mean_mean"])


def test_knee_and_recommendation_follow_their_rules(advice):
    best = max(row.tokens_per_s for row in advice.deployments)
    near = [row for row in advice.deployments if row.tokens_per_s >= KNEE_SHARE * best]
    assert advice.knee == min(row.num_ranks for row in near)
    chosen = advice.recommended
    at_knee = [row for row in advice.deployments if row.num_ranks == advice.knee]
    fastest = max(row.tokens_per_s for row in at_knee)
    assert chosen.tokens_per_s >= 0.99 * fastest
    assert all(row.num_redundant >= chosen.num_redundant for row in at_knee if row.tokens_per_s >= 0.99 * fastest)
    assert chosen.name in advice.reason


def _with_speeds(advice: Advice, speeds: dict[int, float]) -> Advice:
    """One deployment an EP size, with these tokens/s."""
    rows = {row.num_ranks: row for row in advice.deployments if row.num_redundant == 0 and row.strategy == "greedy"}
    made = tuple(replace(rows[ranks], tokens_per_s=speed) for ranks, speed in speeds.items())
    return Advice(made, advice.cost, advice.memory, advice.slo_s)


@pytest.mark.parametrize(
    ("speeds", "knee"),
    [({2: 100.0, 4: 104.0, 8: 105.0}, 2), ({2: 90.0, 4: 104.0, 8: 105.0}, 4), ({2: 90.0, 4: 95.0, 8: 105.0}, 8)],
)
def test_the_knee_is_the_fewest_gpus_with_95_percent_of_the_best(advice, speeds, knee):
    assert _with_speeds(advice, speeds).knee == knee


def test_what_does_not_fit_is_not_recommended(load):
    # 16 experts of 3 * 1024 * 256 bf16 weights in 6 layers: 151 MB; a GPU of 2 has half, of 4 a quarter
    memory = GpuMemory(total_bytes=60e6, rest_bytes=10e6, reserve_bytes=5e6, rest_origin="stated")
    found = advise(load, COST, SPACE, memory)
    assert {row.num_ranks for row in found.deployments if row.fits} == {4, 8}
    assert found.recommended.fits
    none = advise(load, COST, SPACE, replace(memory, total_bytes=20e6))
    assert (none.recommended, none.knee) == (None, None)
    assert none.reason.startswith("None fits: EP8 on 4 nodes, 0 redundant experts")


def test_an_slo_rules_out_slow_steps(load, advice):
    steps_ms = sorted(1e3 * row.step.step_s for row in advice.deployments)
    slo_ms = (steps_ms[0] + steps_ms[1]) / 2 if steps_ms[1] > steps_ms[0] else steps_ms[0]
    found = advise(load, COST, SPACE, slo_ms=slo_ms)
    assert 1e3 * found.recommended.step.step_s <= slo_ms
    assert "left for the rest of the step" in found.reason
    none = advise(load, COST, SPACE, slo_ms=steps_ms[0] / 2)
    assert none.recommended is None
    assert none.reason.startswith(f"None meets {steps_ms[0] / 2:g} ms: the fastest that fits is EP")


def test_a_trace_is_counted():
    trace = synthesize_trace("v3-switching", shape=ModelShape(3, 16, 4), num_steps=1, tokens_per_step=64)
    space = DeploymentSpace(nodes=(1,), gpus_per_node=2, strategies=("greedy",))
    steps = [[row.step.step_s for row in advise(of, COST, space).deployments] for of in (trace, trace.load())]
    assert steps[0] == steps[1]


def test_redundant_experts_that_an_ep_size_cannot_spread_are_left_out_for_it():
    space = DeploymentSpace(nodes=(1, 3), gpus_per_node=2, redundant=(0, 2, 8))
    # 16 + 0, 2, 8 experts on 2 ranks; on 6 ranks only 18 and 24 are multiples
    assert [(t.num_ranks, t.num_slots - 16) for t in space.topologies(16)] == [(2, 0), (2, 2), (2, 8), (6, 2), (6, 8)]
    with pytest.raises(InputError, match="none fits, expected experts plus redundant"):
        DeploymentSpace(nodes=(1,), gpus_per_node=2, redundant=(1,)).topologies(16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodes": ()},
        {"nodes": (0,)},
        {"nodes": (2, 2)},
        {"nodes": (1,), "strategies": ("greedy", "greedy")},
        {"nodes": (1,), "gpus_per_node": 0},
        {"nodes": (1,), "redundant": (-8,)},
        {"nodes": 2},
        {"nodes": (1.5,)},
        {"nodes": (1,), "strategies": "greedy"},
    ],
)
def test_a_space_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        DeploymentSpace(**wrong)


def test_rules_may_be_given_by_name():
    assert DeploymentSpace(nodes=(1,), rules=("even", "online")).rules == (DispatchRule.EVEN, DispatchRule.ONLINE)
    assert DeploymentSpace(nodes=(1,), rules=("even",)).rules[0] is DispatchRule.EVEN
    with pytest.raises(InputError, match="unknown dispatch rule 'fair'"):
        DeploymentSpace(nodes=(1,), rules=("fair",))


def test_numbers_out_of_range_and_other_models_are_refused(load):
    with pytest.raises(InputError, match="slo_ms = 0"):
        advise(load, COST, SPACE, slo_ms=0)
    with pytest.raises(InputError, match="129 nodes of 2 GPUs: expected at most 256 GPUs for 16 experts"):
        advise(load, COST, DeploymentSpace(nodes=(1, 129), gpus_per_node=2))
    with pytest.raises(InputError, match="rest_bytes = -1"):
        GpuMemory.of(MODEL, 1e9, rest_bytes=-1)
    with pytest.raises(InputError, match="seed = -1"):
        replace(COST, seed=-1)
    with pytest.raises(InputError, match="has 8 experts: expected 16"):
        advise(load, replace(COST, model=replace(MODEL, num_experts=8)), SPACE)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_estimated_rest_gives_the_published_size(name):
    model = model_sizes(name)
    total = rest_weights(model) + model.num_moe_layers * model.num_experts * model.expert_weights
    most = 0.02 if PUBLISHED[name] > 50 else 0.07
    assert total / (1e9 * PUBLISHED[name]) == pytest.approx(1, abs=most)


def test_an_array_is_taken_as_plan_takes_it(load, advice):
    found = advise(np.asarray(load.total), COST, SPACE)
    assert [row.summary() for row in found.deployments] == [row.summary() for row in advice.deployments]
