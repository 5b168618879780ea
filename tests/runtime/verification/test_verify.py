"""The verifier passes a correct runtime, and each check fails for its injected fault."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb.errors import InputError, UnknownNameError, VerificationError
from eplb.formats.placement_files import write_placement
from eplb.runtime import (
    CAUGHT_BY,
    AllToAll,
    ExchangeLimits,
    Fault,
    Launch,
    Overflow,
    RankGroup,
    RoutingPlan,
    TokenSource,
    VerifyRequest,
    read_layers,
    run_processes,
    verify,
)
from eplb.runtime.layer.gate import GroupLimit
from eplb.runtime.verification.checks import CHECKS, MEANINGS
from eplb.runtime.verification.injected_faults import FaultyBackend
from eplb.runtime.verification.layer_run import VerifyJob
from eplb.runtime.verification.worker import verify_member
from eplb_cli.main import app
from eplb_traces import ModelShape, RoutingTrace, TokenBatch, read_trace


def _plan():
    """8 ranks on 2 nodes, 16 experts, 8 redundant; replica weights that prefer the first replica."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(np.concatenate([np.arange(16), rng.permutation(16)[:8]])) for _ in range(2)])
    counts = np.stack([np.bincount(row, minlength=16) for row in rows])
    weights = np.where(np.take_along_axis(counts, rows, 1) == 1, 1.0, np.nan)
    for layer in range(2):
        for expert in np.flatnonzero(counts[layer] == 2):
            weights[layer, rows[layer] == expert] = [0.75, 0.25]
    return Plan(Placement(rows, 16, Topology(2, 4, 3), weights), ModelShape(2, 16, 4), "given")


def _job(**changes):
    plan = _plan()
    job = VerifyJob(
        placement=plan.placement,
        rule=DispatchRule.EVEN,
        layers=(1,),
        tokens_of_rank=(9, 0, 1, 12, 7, 3, 15, 8),
        expert_ids=None,
        top_k=4,
        limit=GroupLimit(),
        exchange="alltoall",
        limits=ExchangeLimits(),
        hidden=8,
        fault=Fault.NONE,
        seed=0,
    )
    return dataclasses.replace(job, **changes)


def _jobs():
    drop = ExchangeLimits(((0, 0.5),), 0.25, Overflow.DROP)
    # Every token chooses the three experts of rank 0: of 165 rows there AllGather keeps one a token.
    crowded = np.append(_plan().placement.physical_to_logical_map[1, :3], 99)
    crowded[3] = min(set(range(16)) - set(crowded[:3].tolist()))
    ids = np.broadcast_to(crowded.astype(np.uint16), (55, 1, 4))
    return {
        **{fault.value: _job(fault=fault) for fault in Fault},
        **{f"rule {rule}": _job(rule=rule, exchange="allgather") for rule in DispatchRule},
        "all modes": _job(exchange="all", layers=(0, 1)),
        "groups": _job(limit=GroupLimit(4, 2)),
        "drop": _job(limits=drop, exchange="all", expert_ids=ids),
        "raise": _job(limits=dataclasses.replace(drop, overflow=Overflow.RAISE), exchange="all", expert_ids=ids),
    }


def _verify_all(member, names):
    return {name: verify_member(member, _jobs()[name]) for name in names}


@pytest.fixture(scope="module")
def results():
    """{name of a job: results}; two processes are started once for all jobs."""
    return run_processes(Launch(2), _verify_all, list(_jobs()))[0]


def _failed(results):
    return {finding.check for one in results for finding in one.findings if finding.failure}


@pytest.mark.parametrize("name", ["none", "all modes", "groups", *(f"rule {rule}" for rule in DispatchRule)])
def test_a_correct_runtime_passes_every_check(results, name):
    assert _failed(results[name]) == set()
    assert all(one.measured_R.sum() == 55 * 4 == one.load_E.sum() for one in results[name])


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE])
def test_each_fault_is_caught_by_its_check(results, fault):
    assert CAUGHT_BY[fault] in _failed(results[fault.value])


def test_every_check_is_failed_by_some_fault():
    assert list(MEANINGS) == list(CHECKS)
    assert set(CAUGHT_BY.values()) == set(CHECKS) - {"graph"}  # graphs need a GPU


def test_overflow_is_counted_or_refused(results):
    assert _failed(results["drop"]) == set()
    for mode, wire in results["drop"][0].traffic.items():
        assert wire.dropped_P.sum() > 0, mode
    assert "drops" in _failed(results["raise"])


def test_a_report_contains_what_was_executed():
    plan = _plan()
    report = verify(plan, VerifyRequest(tokens_per_rank=5, hidden=8, exchange="auto"))
    report.raise_on_failure()
    assert report.summary()["passed"] is True
    json.dumps(report.summary())
    assert report.auto_backend == "alltoall"
    assert report.tokens_of_rank == (5,) * 8
    numbers = report.traffic()["alltoall, no dedup"]
    assert numbers["copies"] == 8 * 5 * 4 * 2  # ranks x tokens x choices x layers
    recorded = report.recorded()
    assert recorded.load().total.tolist() == [one.load_E.tolist() for one in report.layers]


def test_a_trace_is_executed_as_it_was_recorded():
    rng = np.random.default_rng(5)
    shape = ModelShape(2, 16, 4)
    ids = np.argsort(rng.random((30, 2, 16)), axis=2)[:, :, :4].astype(np.uint16)
    steps, source = np.zeros(30, dtype=np.int64), rng.integers(0, 8, 30).astype(np.int32)
    trace = RoutingTrace(shape, [TokenBatch(shape, ids, steps, steps, source)])
    request = VerifyRequest(tokens_per_rank=100, hidden=8, exchange="alltoall", fault=Fault.SWAP_WEIGHTS)
    report = verify(_plan(), request, trace)
    assert report.tokens_of_rank == tuple(np.bincount(source, minlength=8))
    assert report.recorded().load() == trace.load()
    with pytest.raises(VerificationError, match=r"weights: layer 0: slot 12 does not hold the weight of expert \d+"):
        report.raise_on_failure()


def test_invalid_requests_are_refused():
    plan = _plan()
    with pytest.raises(InputError, match="processes = 9"):
        verify(plan, VerifyRequest(Launch(9)))
    with pytest.raises(InputError, match="layer 7"):
        verify(plan, VerifyRequest(layers=(7,)))
    with pytest.raises(InputError, match="top_k = 17"):
        verify(plan, VerifyRequest(top_k=17))
    with pytest.raises(InputError, match="hidden = 0"):
        VerifyRequest(hidden=0)
    with pytest.raises(UnknownNameError, match="unknown exchange"):
        VerifyRequest(exchange="mesh")
    with pytest.raises(UnknownNameError, match="unknown fault 'fire'"):
        Fault.named("fire")
    other = ModelShape(3, 16, 4)
    ids = np.zeros((1, 3, 4), dtype=np.uint16) + np.arange(4, dtype=np.uint16)
    zero = np.zeros(1, dtype=np.int64)
    with pytest.raises(InputError, match="trace of 3 layers"):
        verify(plan, VerifyRequest(), RoutingTrace(other, [TokenBatch(other, ids, zero, zero)]))


def test_layers_are_parsed():
    assert read_layers("", 3) == ()
    assert read_layers("all", 3) == (0, 1, 2)
    assert read_layers("2,0", 3) == (2, 0)
    with pytest.raises(InputError, match="numbers like 0,5 or all"):
        read_layers("first", 3)


def _run(*words):
    return CliRunner().invoke(app, ["verify", *(str(word) for word in words)])


def test_the_command_prints_and_records_what_was_executed(tmp_path):
    write_placement(_plan(), tmp_path / "plan.json")
    words = ("--tokens", 4, "--hidden", 8, "--top-k", 4, "--exchange", "alltoall", "--dispatch", "weighted")
    result = _run(tmp_path / "plan.json", *words, "--record", tmp_path / "seen.parquet")
    assert result.exit_code == 0, result.output
    assert "conservation" in result.stdout
    assert "FAILED" not in result.stdout
    assert read_trace(tmp_path / "seen.parquet").load().tokens.sum() == 8 * 4 * 4 * 2


def test_a_failed_check_gives_exit_code_5_and_a_message(tmp_path):
    write_placement(_plan(), tmp_path / "plan.json")
    words = ("--tokens", 4, "--hidden", 8, "--layers", 1, "--exchange", "auto", "--json")
    result = _run(tmp_path / "plan.json", *words, "--inject", "duplicate-row")
    assert result.exit_code == 5
    assert "error: conservation: layer 1:" in result.output
    assert '"passed": false' in result.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [(("--inject", "fire"), 2), (("--backend", "mpi"), 3), (("--layers", "x"), 3), (("--processes", "9"), 3)],
)
def test_invalid_options_are_refused(tmp_path, words, code):
    write_placement(_plan(), tmp_path / "plan.json")
    assert _run(tmp_path / "plan.json", *words).exit_code == code


@pytest.mark.parametrize(
    ("fault", "needed"), [(Fault.DROP_ROW, 2), (Fault.SWAP_ROWS, 2), (Fault.CORRUPT_ROW, 1), (Fault.NAN_PAD, 1)]
)
def test_a_fault_without_a_row_to_break_is_refused(fault, needed):
    group = RankGroup(Topology(1, 2, 2))
    for rows in range(3):
        slots = torch.tensor([[0], [3]])[:rows]
        source = TokenSource.divided(group.ranks, rows, "cpu")
        routing = RoutingPlan(slots, torch.ones(rows, 1), source, torch.tensor(0))
        backend = FaultyBackend(AllToAll(group, fixed_order=True), fault, group)
        if rows < needed:
            with pytest.raises(InputError, match=f"fault {fault}: process 0 has {rows} rows, expected at least"):
                backend.plan_exchange(routing)
        else:
            handle = backend.plan_exchange(routing)
            backend.combine(backend.dispatch(torch.ones(rows, 4), handle), handle)
