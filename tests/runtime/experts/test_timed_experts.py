"""The trial between grouped FFNs, with made-up times; and the plain path where there are none."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from eplb.errors import InputError
from eplb.runtime.experts.timed_experts import TimedExperts
from eplb.runtime.weights.expert_weights import ExpertWeights, ExpertWeightsShape

HIDDEN, INNER, SLOTS = 16, 24, 3


def _weights():
    shape = ExpertWeightsShape(num_layers=2, num_slots=SLOTS, hidden_size=HIDDEN, intermediate_size=INNER)
    weights = ExpertWeights(shape, compute_dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        for slot in range(SLOTS):
            gate_up = torch.randn(2, INNER, HIDDEN, generator=generator)
            weights.write_dense(layer, slot, gate_up, torch.randn(HIDDEN, INNER, generator=generator))
    return weights


@dataclass(frozen=True)
class _Scaled:
    """Multiplies rows by a number; records the ends that it was called with."""

    name: str
    factor: float
    calls: list

    def __call__(self, parts, x_RH, ends_S):
        self.calls.append((self.name, ends_S.tolist()))
        return x_RH * self.factor


def _timed(slow_below):
    """Two candidates; `two` is the faster one from `slow_below` rows on."""
    calls = []
    ffns = (_Scaled("two", 2.0, calls), _Scaled("three", 3.0, calls))

    class Timer:
        device = torch.device("cpu")

        def seconds(self, candidates, *, repeats):
            assert repeats > 1
            return np.array([self._of(candidate) for candidate in candidates])

        def _of(self, candidate):
            num_rows = candidate().shape[0]
            name, _ = calls[-1]
            return float(name == ("two" if num_rows < slow_below else "three"))

    return TimedExperts(_weights(), ffns, Timer()), calls


def test_each_order_of_magnitude_gets_its_own_choice_and_is_tried_once():
    experts, calls = _timed(slow_below=30)
    for num_rows, factor in ((3, 3.0), (300, 2.0)):
        x = torch.ones(num_rows, HIDDEN)
        rows = torch.tensor([num_rows - 2, 0, 2])
        assert torch.equal(experts.forward(1, x, rows), x * factor)
        assert calls[-1][1] == [num_rows - 2, num_rows - 2, num_rows]
        num_calls = len(calls)
        experts.forward(0, x, rows)
        assert len(calls) == num_calls + 1
    assert [trial.chosen.name for trial in experts.trials.values()] == ["three", "two"]
    assert next(iter(experts.trials.values())).seconds == {"two": 1.0, "three": 0.0}


def test_the_trial_spreads_the_expected_rows_evenly():
    experts, calls = _timed(slow_below=0)
    experts.prepare(90, expected_rows=30)
    assert calls[0][1] == [10, 20, 30]
    assert experts.trials[(90 // SLOTS).bit_length()].expected_rows == 30


@pytest.mark.parametrize("most", [1, 2, 3, 100, 191])
def test_no_call_is_timed_after_all_magnitudes_were_prepared(most):
    experts, calls = _timed(slow_below=30)
    experts.prepare_up_to(most)
    assert all(experts._magnitude(trial.num_rows) == magnitude for magnitude, trial in experts.trials.items())
    num_trials = len(calls)
    assert num_trials == 2 * len(experts.trials)
    for num_rows in range(1, most + 1):
        experts.forward(0, torch.ones(num_rows, HIDDEN), torch.tensor([num_rows, 0, 0]))
    assert len(calls) == num_trials + most
    with pytest.raises(InputError, match="most_rows = 0: expected at least 1"):
        experts.prepare_up_to(0)


@pytest.mark.parametrize("expected", [0, 11])
def test_impossible_expected_rows_are_refused(expected):
    with pytest.raises(InputError, match=f"expected_rows = {expected}: expected 1 to num_rows = 10"):
        TimedExperts(_weights()).prepare(10, expected_rows=expected)


def test_the_plain_path_on_a_cpu_and_its_reason():
    weights = _weights()
    experts = TimedExperts(weights)
    x, rows = torch.randn(6, HIDDEN), torch.tensor([1, 2, 3])
    assert experts.reason == "the weights are on cpu"
    experts.prepare(6, expected_rows=6)
    assert experts.trials == {}
    assert torch.equal(experts.forward(1, x, rows), weights.forward(1, x, rows))
