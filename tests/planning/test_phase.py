"""`eplb.plan` for a phase: what its words must be, and what it says about redundancy."""

import dataclasses

import numpy as np
import pytest

import eplb
from eplb.core.step_prediction import PredictedStep
from eplb.cost import Phase, model_sizes, named_calibration
from eplb.errors import EplbError
from eplb.planning.phase import redundancy_notes

H200 = named_calibration("h200")
MODEL = dataclasses.replace(model_sizes("deepseek-v3"), dtype="bf16")
WORDS = {"phase": "decode", "calibration": H200, "model": MODEL}


def hot_load(num_layers=2):
    return eplb.ExpertLoad(np.random.default_rng(1).lognormal(4, 0.7, (num_layers, 256)))


def step(num_slots, seconds, num_cold=0.0):
    return PredictedStep(name="", num_slots=num_slots, num_cold=num_cold, seconds=seconds)


def test_a_ninth_slot_that_costs_more_than_its_balance_gives_is_named():
    topology = eplb.Topology.for_experts(256, num_ranks=32, num_nodes=4, num_redundant=32)
    # 16 tokens a rank: 16 rows an expert, every one a tile: a replica only adds a stream of weights.
    made = eplb.plan(hot_load(), topology, **WORDS, tokens_per_rank=16)
    by_name = {step.name: step for step in made.step_prediction.steps}
    assert list(by_name) == ["experts in order", "this plan", "0 redundant"]
    bare, own = by_name["0 redundant"], by_name["this plan"]
    assert (bare.num_slots, own.num_slots) == (256, 288)
    assert bare.seconds < own.seconds
    assert made.notes[-1] == (
        f"redundancy does not pay in decode: 256 slots {1e3 * bare.seconds:.3f} ms, "
        f"288 slots {1e3 * own.seconds:.3f} ms; plan for --redundant 0"
    )
    weighted = eplb.plan(hot_load(), topology, **WORDS, tokens_per_rank=16, dispatch="weighted")
    own = weighted.step_prediction.steps[2]
    assert own.name == "this plan"
    assert own.seconds < 1.02 * bare.seconds
    assert own.num_cold > 24
    assert weighted.step_prediction.title == ("decode, 16 tokens a rank, deepseek-v3 in bf16, NVIDIA H200 (measured)")


def test_in_prefill_redundancy_pays():
    topology = eplb.Topology.for_experts(256, num_ranks=64, num_redundant=64)
    made = eplb.plan(hot_load(), topology, **{**WORDS, "phase": "prefill"})
    assert made.notes[-1].startswith("redundancy pays in prefill: 256 slots ")
    # Time follows tokens: what `greedy` balances is not left for a gain within the error of the calibration.
    greedy = eplb.plan(hot_load(), topology, "greedy")
    assert made.placement == greedy.placement


def test_the_number_of_slots_that_pays_is_between():
    own, fewer = step(320, 5e-3), [step(256, 4.8e-3), step(288, 4.5e-3)]
    assert redundancy_notes(Phase.MIXED, own, fewer, 256) == (
        "redundancy above 32 does not pay in mixed: 288 slots 4.500 ms, 320 slots 5.000 ms; plan for --redundant 32",
    )
    (cold, equal) = redundancy_notes(Phase.DECODE, step(288, 5e-3, 12.5), [step(256, 5.005e-3)], 256)
    assert cold.startswith("12.5 of 32 redundant slots get no tokens (weight 0)")
    assert equal == "redundancy makes no difference above 1% in decode: 256 slots 5.005 ms, 288 slots 5.000 ms"
    assert redundancy_notes(Phase.DECODE, step(256, 5e-3), [], 256) == ()


def test_names_are_looked_up():
    topology = eplb.Topology.for_experts(256, num_ranks=32)
    named = eplb.plan(hot_load(), topology, phase="mixed", calibration="h200", model="deepseek-r1")
    assert named.step_prediction.tokens_per_rank == 1024
    assert named.step_prediction.dtype == "fp8"
    assert named.strategy == "step_time"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"phase": "decode"}, "expected a calibration and a model"),
        ({"phase": "decode", "model": MODEL}, "expected a calibration and a model"),
        ({"calibration": "h200"}, "calibration: has no effect without a phase"),
        ({"model": MODEL}, "model: has no effect without a phase"),
        ({"dtype": "bf16"}, "dtype: has no effect without a phase"),
        ({"tokens_per_rank": 3}, "tokens_per_rank: has no effect without a phase"),
        ({**WORDS, "phase": "decoding"}, "unknown phase 'decoding'"),
        ({**WORDS, "tokens_per_rank": 0}, "tokens_per_rank = 0"),
        ({**WORDS, "strategy": "greedy"}, "strategy greedy ignores it"),
        ({**WORDS, "model": "gpt-oss-120b"}, "unknown type of weights in the calibration of NVIDIA H200 'mxfp4'"),
        ({**WORDS, "model": "gpt-oss-120b", "dtype": "bf16"}, "model gpt-oss-120b has 128"),
        ({**WORDS, "load_cap": 1.1}, "load_cap = 1.1: strategy step_time does not plan for it"),
    ],
)
def test_what_would_be_ignored_or_is_missing_is_refused(words, message):
    with pytest.raises(EplbError, match=message):
        eplb.plan(hot_load(), eplb.Topology.for_experts(256, num_ranks=32), **words)
