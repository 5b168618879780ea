"""Serving with the online rebalancer on 2 and 4 processes: exact at every step, the same decisions everywhere.

With two GPUs the same over NCCL, a GPU a process; skipped without them.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from eplb.runtime import Launch, run_processes  # noqa: E402
from tests.runtime.serving_cases import DRIFT_AT, STEPS, serve_and_disagree  # noqa: E402

GROUPS = [
    pytest.param((2, "gloo"), id="gloo-2"),
    pytest.param((4, "gloo"), id="gloo-4"),
    pytest.param(
        (2, "nccl"), id="nccl-2", marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    ),
]


@pytest.fixture(scope="module", params=GROUPS)
def answers(request):
    processes, communicator = request.param
    return run_processes(Launch(processes, communicator, timeout_s=120), serve_and_disagree, None)


@pytest.fixture
def served(answers):
    return [one for one, _ in answers]


def test_outputs_are_exact_at_every_step_before_during_and_after_migrations(served):
    assert all(one.exact for one in served)


def test_all_processes_decide_the_same(served):
    assert all(len(one.digests) == STEPS for one in served)
    assert all(one.digests == served[0].digests and one.migrations == served[0].migrations for one in served)


def test_the_placement_follows_the_load(served):
    # Planned for both regimes: at least one migration before the drift and one after it.
    assert len(served[0].migrations) >= 2
    balance = np.array(served[0].balance)
    drifted, adapted = balance[DRIFT_AT : DRIFT_AT + 6].mean(), balance[-6:].mean()
    assert adapted < drifted
    assert adapted < balance[:6].mean()


@pytest.mark.parametrize("corrupt", ["counts", "digest"])
def test_a_process_that_differs_is_found_by_all(answers, corrupt):
    for _, disagreement in answers:
        kind, message, step = disagreement[corrupt]
        assert (kind, step) == ("VerificationError", 2)
        assert "process 1 has digest" in message
