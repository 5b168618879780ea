"""Threads where the system does not tell which cores a process may use, as on macOS."""

import os

import numpy as np
import pytest

import eplb
from eplb_traces import ModelShape, RoutingTrace
from eplb_traces.coactivation import coactivations
from eplb_traces.usable_cores import usable_cores
from tests.traces.examples import random_batch


@pytest.mark.parametrize(("of_machine", "expected"), [(7, 7), (None, 1)])
def test_without_the_call_of_linux_all_cores_of_the_machine_count(monkeypatch, of_machine, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: of_machine)
    assert usable_cores() == expected


def test_plans_and_pairs_of_choices_are_the_same_without_it(monkeypatch):
    shape = ModelShape(4, 16, 2)
    trace = RoutingTrace(shape, [random_batch(np.random.default_rng(0), 60, shape)])

    def results():
        plan = eplb.plan(trace.load(), eplb.Topology(1, 4, 5), strategy="greedy")
        return plan.placement, [table.pairs.tobytes() for table in coactivations(trace)]

    expected = results()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert results() == expected
