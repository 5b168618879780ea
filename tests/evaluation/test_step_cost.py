"""Predicted steps: the numbers of `eplb.cost.predict` for a stated batch, scaled to the layers of the model."""

from dataclasses import replace

import numpy as np
import pytest

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.cost import Batch, named_calibration, predict
from eplb.cost.model_presets import ModelSizes
from eplb.errors import InputError, UnknownNameError
from eplb.evaluation.step_cost import StepCost
from eplb_traces import ModelShape, RoutingTrace, synthesize_trace

MODEL = ModelSizes(
    name="small", hidden_size=512, intermediate_size=128, num_moe_layers=6, num_dense_layers=1, num_experts=16,
    top_k=4, num_expert_groups=1, top_k_groups=1, num_shared_experts=0, dtype="bf16",
)  # fmt: skip
COST = StepCost(model=MODEL, calibration=named_calibration("h200"), tokens_per_rank=32, seed=5)
TOPOLOGY = eplb.Topology.for_experts(16, num_ranks=4, num_nodes=2, num_redundant=4)


@pytest.fixture(scope="module")
def load() -> eplb.ExpertLoad:
    return eplb.ExpertLoad(np.random.default_rng(1).lognormal(4, 1, (3, 16)))


@pytest.fixture(scope="module")
def placement(load) -> eplb.Placement:
    return eplb.plan(load, TOPOLOGY, "greedy").placement


def test_the_milliseconds_are_those_of_predict_for_every_moe_layer(load, placement):
    batch = COST.batch(load, TOPOLOGY)
    found = COST.predict(placement, batch, DispatchRule.EVEN)
    sampled = Batch.sampled(load.total, num_ranks=4, tokens_per_rank=32, top_k=4, seed=5)
    expected = predict(placement, sampled, MODEL, COST.calibration)
    assert found.step_s == pytest.approx(expected.step_s.sum() / 3 * 6)  # 3 layers recorded, the model has 6
    summary = found.summary()
    assert summary["predicted_step_ms"] == pytest.approx(1e3 * found.step_s)
    assert sum(summary.values()) == pytest.approx(2 * summary["predicted_step_ms"])  # the parts, and their sum
    assert batch.origin == "sampled from the load, seed 5"
    assert COST.sampled_from(load) == "sampled from the load, seed 5; 6 times the mean recorded layer, of 3"
    assert COST.scaling(6) == ""


def test_a_layer_without_tokens_does_not_count(load, placement):
    tokens = load.total.copy()
    tokens[1] = 0
    batch = COST.batch(eplb.ExpertLoad(tokens), TOPOLOGY)
    assert batch.layers == (0, 2)
    found = COST.predict(placement, batch, DispatchRule.EVEN)
    assert found.step_s == pytest.approx(found.times.step_s.sum() / 2 * 6)


def _trace(num_tokens: int, source_rank: int | None = None) -> RoutingTrace:
    made = synthesize_trace("v3-switching", shape=ModelShape(3, 16, 4), num_steps=1, tokens_per_step=num_tokens)
    if source_rank is None:
        return made
    sent = np.full(num_tokens, source_rank, np.int32)
    return RoutingTrace(made.shape, [replace(batch, source_rank=sent) for batch in made.batches()])


def test_a_long_trace_gives_its_own_tokens_and_a_short_one_is_sampled(placement):
    long, short = _trace(130), _trace(100)
    found = COST.batch(long, TOPOLOGY)
    expected = Batch.of_trace(long, num_ranks=4, tokens_per_rank=32)
    assert np.array_equal(found.choices.source_tokens, expected.source_tokens)
    assert found.origin == "first 128 tokens of the trace"
    sampled = COST.batch(short, TOPOLOGY)
    assert sampled.origin == "sampled from the load, seed 5, as the trace has 100 tokens and a step 128"
    assert sampled.choices.source_tokens.sum() == 3 * 128 * 4


def test_source_ranks_that_the_plan_lacks_are_not_guessed(placement):
    found = COST.batch(_trace(130, source_rank=7), TOPOLOGY)
    assert found.origin == "sampled from the load, seed 5, as the trace's source ranks are not those of the plan"
    kept = COST.batch(_trace(130, source_rank=2), TOPOLOGY)
    assert kept.choices.source_tokens.sum(axis=(0, 2)).tolist() == [0, 0, 3 * 128 * 4, 0]


def test_a_trace_with_source_ranks_in_some_batches_is_sampled():
    with_ranks, without = _trace(130, source_rank=2), _trace(130)
    mixed = RoutingTrace(without.shape, [*with_ranks.batches(), *without.batches()])
    expected = "sampled from the load, seed 5, as the trace's source ranks are not those of the plan"
    assert COST.batch(mixed, TOPOLOGY).origin == expected


def test_an_expert_without_tokens_is_not_sampled(load):
    tokens = load.total.copy()
    tokens[:, 3] = 0
    found = COST.batch(eplb.ExpertLoad(tokens), TOPOLOGY).choices.load
    assert found[:, 3].tolist() == [0, 0, 0]
    assert found.sum(axis=1).tolist() == [128 * 4] * 3


def test_a_model_may_have_as_many_layers_as_the_load_and_batches_have_seed_0(load):
    cost = StepCost(model=replace(MODEL, num_moe_layers=3), calibration=COST.calibration, tokens_per_rank=32)
    found = cost.batch(load, TOPOLOGY)
    assert (found.layers, found.origin) == ((0, 1, 2), "sampled from the load, seed 0")


def test_another_model_is_refused(load, placement):
    wrong = replace(COST, model=replace(MODEL, num_experts=32))
    with pytest.raises(InputError, match="model small has 32 experts: expected 16"):
        wrong.batch(load, TOPOLOGY)
    with pytest.raises(InputError, match="top_k = 2: expected 4"):
        replace(COST, model=replace(MODEL, top_k=2)).batch(_trace(130), TOPOLOGY)
    with pytest.raises(InputError, match="model small has 2 MoE layers: expected at least 3"):
        replace(COST, model=replace(MODEL, num_moe_layers=2)).batch(load, TOPOLOGY)
    with pytest.raises(InputError, match="every count is zero"):
        COST.batch(eplb.ExpertLoad(np.zeros((3, 16))), TOPOLOGY)
    with pytest.raises(InputError, match="tokens_per_rank = 0"):
        replace(COST, tokens_per_rank=0)


def test_a_type_that_the_calibration_lacks_is_refused():
    with pytest.raises(UnknownNameError, match="fp8"):
        replace(COST, calibration=named_calibration("a100"), weight_type="fp8")


def test_formulas_and_assumed_links_are_marked():
    assert "h100" not in COST.title.lower()
    formula = replace(COST, calibration=named_calibration("h100"))
    assert "(formula)" in formula.title
    assert any("FORMULA" in sentence for sentence in formula.caveats)
    assert not any("FORMULA" in sentence for sentence in COST.caveats)
    assert any("links: inside a node assumed" in sentence for sentence in COST.caveats)
    assert COST.caveats[0].startswith("not in the milliseconds: attention")
