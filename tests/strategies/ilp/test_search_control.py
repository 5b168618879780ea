"""The wall limit of a search, on a counted clock and on the real one, and its end by an interrupt."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from eplb.core.problem import Problem, SolveStatus
from eplb.core.topology import Topology
from eplb.strategies.ilp.ilp import Ilp
from eplb.strategies.ilp.search_control import SearchControl
from eplb_traces import ExpertLoad


class CountedClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Solver:
    def __init__(self):
        self.stops = 0

    def stop_search(self):
        self.stops += 1


def hard_problem(time_limit_s=None):
    """Layers whose optimum is not proven within seconds."""
    load = ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (4, 40)))
    return Problem(load, Topology(1, 8, 7, rank_speed=[1, 1, 1, 1.3, 1.3, 1.7, 2, 2]), time_limit_s=time_limit_s)


def test_time_left_counts_down_and_a_part_never_outlasts_the_whole():
    clock = CountedClock()
    control = SearchControl(10, clock)
    clock.now = 4
    assert control.left_s == 6
    assert control.within(2).left_s == 2
    part = control.within(100)
    assert part.left_s == 6
    clock.now = 11
    assert control.left_s == part.left_s == 0


def test_a_stop_reaches_the_solvers_of_every_part_and_lets_none_begin():
    control, solver, other = SearchControl(10, CountedClock()), Solver(), Solver()
    part = control.within(5)
    with part.running(solver):
        control.stop()
    control.stop()
    assert solver.stops == 1
    assert other.stops == 0
    assert part.left_s == control.left_s == 0


def test_results_are_in_order_and_an_exception_ends_the_rest():
    assert SearchControl(10).map(lambda item: item * 2, range(5)) == [0, 2, 4, 6, 8]
    control = SearchControl(10)
    with pytest.raises(ZeroDivisionError):
        control.map(lambda item: 1 / item, [0, 1, 1])
    assert control.left_s == 0


def test_an_expired_clock_leaves_greedys_plan():
    class Jump(CountedClock):
        def __call__(self):
            self.now += 100
            return self.now

    pytest.importorskip("ortools")
    made = Ilp(clock=Jump())(hard_problem(time_limit_s=1))
    assert made.status is SolveStatus.FEASIBLE


def test_the_limit_is_wall_time_for_all_layers():
    pytest.importorskip("ortools")
    Ilp()(hard_problem(time_limit_s=0.1))  # compilation
    start = time.monotonic()
    Ilp()(hard_problem(time_limit_s=2))
    assert time.monotonic() - start < 2 * 1.5


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_is_a_keyboard_interrupt_and_the_process_lives():
    pytest.importorskip("ortools")
    Ilp()(hard_problem(time_limit_s=0.1))  # compilation
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            Ilp()(hard_problem(time_limit_s=30))
    finally:
        timer.cancel()
    assert time.monotonic() - start < 15
