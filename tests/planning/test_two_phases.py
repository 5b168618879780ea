"""Plans of two phases and their price: every figure is the one that `predict` gives, and each phase's plan is best."""

import dataclasses

import numpy as np
import pytest

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.problem import Problem
from eplb.cost import Batch, model_sizes, named_calibration, predict
from eplb.errors import InputError
from eplb.planning.phase import phase_target
from eplb.planning.two_phases import PhaseProblem, plan_phases
from eplb.strategies.step_time.makespans import draw_batches

H200 = named_calibration("h200")
MODEL = dataclasses.replace(
    model_sizes("deepseek-v3"), num_experts=32, num_expert_groups=1, top_k_groups=1, dtype="bf16"
)
TOPOLOGY = eplb.Topology(1, 4, 10)


def phase(name, load, **change):
    problem = Problem(load, TOPOLOGY, dispatch=DispatchRule.EVEN)
    return PhaseProblem(dataclasses.replace(problem, **change), phase_target(name, H200, MODEL))


def loads(num_layers=3, num_experts=32):
    rng = np.random.default_rng(5)
    return [eplb.ExpertLoad(rng.lognormal(4, 1.0, (num_layers, num_experts))) for _ in range(2)]


def test_every_time_is_that_of_predict_and_each_phase_has_its_best_plan():
    first, second = loads()
    phases = phase("prefill", first), phase("decode", second)
    made = plan_phases(*phases, seed=2)
    for column, one in enumerate(phases):
        batches = [Batch.evenly_sent(batch, num_ranks=4, top_k=8) for batch in draw_batches(one.rows, 16, 3)]
        for row, plan in enumerate((made.prefill, made.decode, made.shared)):
            seconds = np.mean([predict(plan.placement, batch, MODEL, H200).makespan_s.mean() for batch in batches])
            assert made.seconds[row, column] == pytest.approx(seconds, rel=1e-12)
    # The loads differ: a plan of one phase is slow in the other, the shared one between the two.
    assert made.price[0, 0] == made.price[1, 1] == 0
    assert made.price[1, 0] > 0.2
    assert made.price[0, 1] > 0.02
    assert made.price[2].max() < max(made.price[1, 0], made.price[0, 1])
    alone = eplb.plan(second, TOPOLOGY, phase="decode", calibration=H200, model=MODEL, seed=2)
    assert alone.placement == made.decode.placement


def test_phases_that_differ_in_more_than_load_are_refused():
    first, second = loads()
    with pytest.raises(InputError, match="another model"):
        plan_phases(phase("prefill", first), phase("decode", loads(num_layers=2)[0]))
    with pytest.raises(InputError, match="same topology"):
        plan_phases(phase("prefill", first), phase("decode", second, topology=eplb.Topology(2, 2, 10)))
    other = PhaseProblem(Problem(second, TOPOLOGY), phase_target("decode", "h100", MODEL))
    with pytest.raises(InputError, match="same model and calibration"):
        plan_phases(phase("prefill", first), other)
