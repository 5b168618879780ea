"""Steps of a history, executed on the CPU: every rank of every step, its rows recounted, and the figures of a step."""

from dataclasses import replace

import numpy as np
import pytest

import eplb
from eplb.core.dispatch_rule import DispatchRule
from eplb.cost import Batch, model_sizes, named_calibration, slot_counts
from eplb.cost.placement_schedule import PlacementSchedule
from eplb.errors import InputError, VerificationError

pytest.importorskip("torch")

from eplb.runtime.virtual import step_replay
from eplb.runtime.virtual.step_replay import ReplayRequest, replay
from eplb.runtime.virtual.virtual_ranks import VirtualRanks

MODEL = replace(model_sizes("moe-435m"), num_experts=16, top_k=2, hidden_size=32, intermediate_size=16)
TOPOLOGY = eplb.Topology.for_experts(16, num_ranks=4, num_redundant=4)
NUM_STEPS, NUM_LAYERS = 5, 2


@pytest.fixture
def load():
    tokens = np.random.default_rng(1).integers(1, 30, (NUM_STEPS, NUM_LAYERS, 16))
    return eplb.ExpertLoad(tokens)


@pytest.fixture
def request_(load):
    return ReplayRequest(load=load, model=MODEL, calibration=named_calibration("h100"), device="cpu")


def schedules(load, first_step=2):
    num_served = NUM_STEPS - first_step
    for name in ("linear", "greedy"):
        placement = eplb.plan(load, TOPOLOGY, name).placement
        seconds = np.linspace(0, 1, num_served) if name == "greedy" else np.zeros(num_served)
        yield PlacementSchedule(name, first_step, (placement,) * num_served, seconds, 7)


def test_every_rank_of_every_step_is_executed_with_its_rows(load, request_, monkeypatch):
    executed = []

    def measured(self, slot_tokens, *, repeats, warm_s):
        executed.append(slot_tokens.tolist())
        return np.add.reduceat(slot_tokens, self.topology.rank_first_slot[:-1]) * 1e-3

    monkeypatch.setattr(VirtualRanks, "measure", measured)
    plans = list(schedules(load))
    found = replay(plans, request_)
    expected, makespans = [], {one.name: [] for one in plans}
    for step in range(2, NUM_STEPS):
        batch = Batch.evenly_sent(load.tokens[step], num_ranks=4, top_k=2)
        for one in plans:
            for layer in range(NUM_LAYERS):
                rows = slot_counts(one.placements[0], layer, batch, DispatchRule.EVEN)
                expected.append(rows.tolist())
                makespans[one.name].append(rows.reshape(4, 5).sum(axis=1).max() * 1e-3)
    assert executed == expected
    for one in found:
        ffn = np.reshape(makespans[one.schedule.name], (3, NUM_LAYERS))
        assert one.measured_s.tolist() == ffn.tolist()
        steps = ffn.sum(axis=1) + one.schedule.migration_s
        summary = one.summary()
        assert summary["step_s"] == pytest.approx(steps.tolist())
        assert summary["mean_s"] == pytest.approx(steps.mean())
        assert summary["p50_s"] == pytest.approx(sorted(steps)[1])
        assert summary["p99_s"] == pytest.approx(sorted(steps)[1] + 0.98 * (sorted(steps)[2] - sorted(steps)[1]))
        assert summary["migration_s"] == one.schedule.migration_s.sum()


def test_seconds_of_a_real_device_are_positive_and_stand_beside_a_prediction(load, request_):
    (one, _) = replay(list(schedules(load)), request_)
    assert one.measured_s.shape == one.predicted_s.shape == (3, NUM_LAYERS)
    assert (one.measured_s > 0).all()
    assert (one.predicted_s > 0).all()
    assert one.error.shape == (3 * NUM_LAYERS,)


def test_counts_are_multiplied_to_the_tokens_asked_for(request_):
    more = replace(request_, tokens_per_rank=1000).batch(3, 4)
    assert more.load.sum(axis=1).mean() == pytest.approx(1000 * 4 * 2, rel=1e-2)
    assert request_.batch(3, 4).load.tolist() == request_.load.tokens[3].tolist()


def test_a_lost_row_is_found(load, request_, monkeypatch):
    predict = step_replay.predict

    def one_row_less(*given, **named):
        times = predict(*given, **named)
        slots = times.slot_tokens.copy()
        slots[1, slots[1].argmax()] -= 1
        return replace(times, slot_tokens=slots)

    monkeypatch.setattr(step_replay, "predict", one_row_less)
    with pytest.raises(VerificationError, match="layer 1, expert"):
        replay(list(schedules(load)), request_)


def test_what_does_not_fit_is_refused(load, request_):
    (linear, _) = schedules(load)
    with pytest.raises(InputError, match="linear: the last step is 3: expected 4 of the history"):
        replay([replace(linear, first_step=1)], request_)
    with pytest.raises(InputError, match="history of 1 layers x 16 experts: the linear is for 2 layers"):
        replay([linear], replace(request_, load=eplb.ExpertLoad(load.tokens[:, :1])))
    with pytest.raises(InputError, match="a history of 16 experts, top-None: model deepseek-v3 has 256, top-8"):
        replace(request_, model=model_sizes("deepseek-v3"))
    with pytest.raises(InputError, match="tokens_per_rank = -1"):
        replace(request_, tokens_per_rank=-1)
