"""Ranks of a plan, executed one after the other on the CPU, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

import eplb
from eplb.cost import Batch, Phase, model_sizes, named_calibration
from eplb.errors import InputError, VerificationError

pytest.importorskip("torch")

from eplb.cost.step_time import LayerTimes
from eplb.runtime.virtual import virtual_verify
from eplb.runtime.virtual.virtual_ranks import ExpertShape, VirtualRanks

TOPOLOGY = eplb.Topology.for_experts(16, num_ranks=4, num_redundant=4)


def small_case():
    load = eplb.ExpertLoad(np.random.default_rng(1).integers(1, 90, (2, 16)))
    plan = eplb.plan(load, TOPOLOGY, "greedy")
    batch = Batch.sampled(load.total, num_ranks=4, tokens_per_rank=8, top_k=2)
    request = virtual_verify.VirtualRequest(
        model=replace(model_sizes("moe-435m"), num_experts=16),
        calibration=named_calibration("h100"),
        device="cpu",
        repeats=1,
    )
    return plan.placement, batch, request


def test_every_rank_is_timed_and_its_prediction_stands_beside_it():
    placement, batch, request = small_case()
    report = virtual_verify.verify_virtual(placement, batch, request)
    assert report.measured_s.shape == report.predicted.ffn_s.shape == (2, 4)
    assert (report.measured_s > 0).all()
    for layer, straggler, makespan, mean, predicted, error in report.rows():
        row = report.measured_s[layer]
        assert straggler == row.argmax()
        assert makespan == pytest.approx(1e3 * row.max())
        assert mean == pytest.approx(1e3 * row.mean())
        assert error == pytest.approx(100 * (predicted / makespan - 1))


def test_a_rank_without_rows_takes_no_time():
    rows = np.zeros(TOPOLOGY.num_slots, dtype=np.int64)
    rows[:5] = 3
    seconds = VirtualRanks(TOPOLOGY, ExpertShape(32, 16), "cpu").measure(rows, repeats=1)
    assert seconds[0] > 0
    assert seconds[1:].tolist() == [0, 0, 0]


def test_a_lost_row_is_found(monkeypatch):
    placement, batch, request = small_case()
    predict = virtual_verify.predict

    def one_row_less(*given, **named):
        times: LayerTimes = predict(*given, **named)
        slots = times.slot_tokens.copy()
        slots[1, slots[1].argmax()] -= 1
        return LayerTimes(times.layers, slots, times.ffn_s, times.dispatch_s, times.combine_s)

    monkeypatch.setattr(virtual_verify, "predict", one_row_less)
    with pytest.raises(VerificationError, match=r"layer 1, expert \d+: \d+ rows executed, expected the \d+ choices"):
        virtual_verify.verify_virtual(placement, batch, request)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"slot_tokens has shape \(3,\): expected \(20,\)"):
        VirtualRanks(TOPOLOGY, ExpertShape(32, 16), "cpu").measure(np.ones(3, dtype=np.int64))
    with pytest.raises(InputError, match="device = 'tpu': expected cuda or cpu"):
        VirtualRanks(TOPOLOGY, ExpertShape(32, 16), "tpu")


def test_phases_have_their_usual_number_of_tokens():
    assert [phase.tokens_per_rank for phase in Phase] == [4096, 128, 1024]
