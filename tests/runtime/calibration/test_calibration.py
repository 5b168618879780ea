"""What is measured in which order, how calls are timed on the CPU, and what the log of the clocks keeps."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from eplb.cost import model_sizes
from eplb.errors import InputError, UnknownNameError
from eplb.runtime.calibration import calibrate, timers
from eplb.runtime.calibration.clock_log import ClockLog, limits, logged_clocks
from eplb.runtime.calibration.grouped_ffn_call import make_calls
from eplb.runtime.calibration.probes import GPU_GRID, SMALL_GRID, probes


def test_probes_ascend_in_rows_and_are_equal_uneven_and_partly_empty():
    found = probes(GPU_GRID)
    assert tuple(found) == GPU_GRID.slots
    for num_slots, lists in found.items():
        assert all(len(one) == num_slots for one in lists)
        rows = [sum(one) for one in lists]
        assert rows == sorted(rows)
        assert max(rows) <= GPU_GRID.most_rows
    nine = found[9]
    assert (128,) * 9 in nine
    assert any(0 in one for one in nine)
    assert any(max(one) > 2 * np.mean(one) and 0 not in one for one in nine)


def test_each_call_gets_the_median_of_its_rounds_after_one_round_of_warm_up(monkeypatch):
    order, clock = [], iter(np.cumsum([0, 1, 0, 10, 0, 3, 0, 30, 0, 2, 0, 20]).tolist())
    monkeypatch.setattr(timers.time, "perf_counter", lambda: next(clock))
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    found = timers.make_timer("cpu").seconds(calls, repeats=3)
    assert order == ["a", "b"] * 4
    assert found.tolist() == [2, 20]
    clock = iter(range(4))
    order.clear()
    assert timers.make_timer("cpu").seconds(calls, repeats=1, warm_s=0.0).tolist() == [1, 1]
    assert order == ["a", "b"]


def test_calls_of_a_rank_compute_its_rows_from_one_buffer():
    calls = make_calls("bf16", num_slots=3, hidden=16, intermediate=8, device=torch.device("cpu"))
    first, second = calls.call((2, 0, 1)), calls.call((4, 3, 2))
    assert first().shape == (3, 16)
    assert second().shape == (9, 16)
    assert torch.equal(calls.call((4, 3, 2))(), second())
    with pytest.raises(UnknownNameError, match="bf16, fp8"):
        make_calls("int3", num_slots=1, hidden=16, intermediate=8, device=torch.device("cpu"))
    with pytest.raises(InputError, match="dtype = fp8 on cpu"):
        make_calls("fp8", num_slots=1, hidden=16, intermediate=8, device=torch.device("cpu"))


def test_every_shape_is_measured_at_every_probe(monkeypatch):
    taken = []

    class Steady:
        device = torch.device("cpu")

        def seconds(self, calls, *, repeats, warm_s=timers.WARM_S):
            taken.append((len(calls), repeats, warm_s))
            return np.full(len(calls), 0.5)

    sizes = model_sizes("moe-435m")
    measured = calibrate.measure_models("bf16", [sizes, sizes], Steady())
    assert [one.slot_tokens for one in measured] == [rows for lists in probes(SMALL_GRID).values() for rows in lists]
    assert {(one.hidden, one.intermediate, one.seconds) for one in measured} == {(512, 128, 0.5)}
    assert {(num_calls, warm_s) for num_calls, _, warm_s in taken} == {(1, timers.WARM_S)}
    assert timers.WARM_S >= 20e-3


def test_the_log_keeps_samples_and_leaves_out_what_is_no_number():
    log = ClockLog()
    assert log.summary() == "clocks unknown"
    log.add("1980, 300.10, 40\n1755, 698.52, 55\n[N/A], 1, 2\n\n1830, 690.00, 51\n1, 2\n")
    assert log.samples == [(1980, 300.1, 40), (1755, 698.52, 55), (1830, 690, 51)]
    assert log.summary() == ("SM clock 1830 (1755 to 1980) MHz, power 690 (300 to 699) W, temperature 51 (40 to 55)")
    with logged_clocks(torch.device("cpu")) as nothing:
        pass
    assert nothing.summary() == limits(torch.device("cpu")) == "clocks unknown"
