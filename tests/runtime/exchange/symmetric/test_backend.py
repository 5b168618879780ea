"""The symmetric backend on real processes, in Triton's interpreter over mapped files, under the unchanged verifier."""

import dataclasses
import os
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import EplbError, InputError
from eplb.runtime import (
    CAUGHT_BY,
    BufferSizes,
    ExchangeLimits,
    ExchangeMode,
    Fault,
    FixedExchange,
    Launch,
    RankGroup,
    RoutingPlan,
    Symmetric,
    TokenSource,
    choose_backend,
    make_backend,
    run_processes,
)
from eplb.runtime.exchange.symmetric.availability import symmetric_refusal
from eplb.runtime.layer.gate import GroupLimit
from eplb.runtime.verification.layer_run import VerifyJob
from eplb.runtime.verification.worker import verify_member

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def _job(**changes):
    """Four ranks with empty slots and replicas, folded onto two processes; one rank has no tokens."""
    rows = np.random.default_rng(0).permutation(np.concatenate([np.arange(8), [1, 5, 5, -1]]))
    job = VerifyJob(
        placement=Placement(rows[None], 8, Topology(2, 2, 3)),
        rule=DispatchRule.EVEN,
        layers=(0,),
        tokens_of_rank=(3, 0, 1, 4),
        expert_ids=None,
        top_k=3,
        limit=GroupLimit(),
        exchange="symmetric",
        limits=ExchangeLimits(),
        hidden=8,
        fault=Fault.NONE,
        seed=0,
    )
    return dataclasses.replace(job, **changes)


def _verified(member, jobs):
    return [verify_member(member, job) for job in jobs]


FAULTS = (Fault.SWAP_ROWS, Fault.DUPLICATE_ROW, Fault.WRONG_WEIGHT)


@needs_triton
def test_the_verifier_passes_the_backend_and_detects_its_faults():
    results = run_processes(Launch(2), _verified, [_job(), *(_job(fault=fault) for fault in FAULTS)])[0]
    for fault, (layer,) in zip((Fault.NONE, *FAULTS), results, strict=True):
        failed = {finding.check for finding in layer.findings if finding.failure}
        if fault is Fault.NONE:
            assert failed == set()
            assert list(layer.traffic) == ["symmetric", "symmetric, fixed order"]
        else:
            assert CAUGHT_BY[fault] in failed


def _plan(rank_tokens, epoch=0):
    slots = torch.arange(rank_tokens * 2).view(rank_tokens, 2) % 4
    source = TokenSource.consecutive(0, [rank_tokens], "cpu")
    return RoutingPlan(slots, torch.ones(slots.shape), source, torch.tensor(epoch))


def _backend(member, timeout_s=20.0):
    group = RankGroup.of(Topology(1, 2, 2), member.process_group)
    return Symmetric.create(group, BufferSizes(3, 2, 4, 4), torch.device("cpu"), timeout_s=timeout_s)


def _broken(member, how):
    """What this process raises if process 1 stops after planning, stalls, has too many tokens or other maps."""
    backend = _backend(member, timeout_s=2.0 if how in ("stops", "stalls") else 20.0)
    start = time.monotonic()
    try:
        if how in ("tokens", "epoch"):
            late = member.process == 1
            backend.plan_exchange(_plan(4 if late and how == "tokens" else 2, int(late and how == "epoch")))
        else:
            handle = backend.plan_exchange(_plan(2))
            if member.process == 1 and how == "stops":
                return "stopped"
            if member.process == 1:
                time.sleep(5.0)
            rows = backend.dispatch(torch.ones((2, 4)), handle)
            backend.combine(rows, handle)
    except EplbError as error:
        assert time.monotonic() - start < 15
        return f"{type(error).__name__}: {error}"
    return "nothing"


@needs_triton
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("stops", ["ExchangeTimeoutError: rank 0 waited 2 s for rank 1 in", "stopped"]),
        ("stalls", ["ExchangeTimeoutError: rank 0 waited 2 s for rank 1 in"] * 2),
        ("tokens", ["ExchangeOverflowError: rank 1: more tokens than"] * 2),
        ("epoch", ["ExchangeEpochError: epoch of the maps by process: [0, 1]"] * 2),
    ],
)
def test_every_process_that_takes_part_raises(how, expected):
    found = run_processes(Launch(2), _broken, how)
    assert [text.startswith(start) for text, start in zip(found, expected, strict=True)] == [True, True], found


def _choices(member, _):
    group = RankGroup.of(Topology(1, 2, 2), member.process_group)
    del os.environ["TRITON_INTERPRET"]
    cpu = torch.device("cpu")
    choice = choose_backend(group, top_k=2, limits=ExchangeLimits(), sizes=BufferSizes(3, 2, 4), device=cpu)
    return choice.name, choice.reason, symmetric_refusal(group, cpu)


def test_auto_falls_back_and_gives_the_reason():
    for name, reason, refusal in run_processes(Launch(2), _choices, None):
        assert (name, reason) == ("allgather", "not symmetric: tensors on cpu, the kernels need a GPU")
        assert refusal == "process 0: tensors on cpu, the kernels need a GPU" or find_spec("triton") is None


def test_what_the_backend_cannot_do_is_refused():
    group, sizes = RankGroup(Topology(1, 2, 2)), BufferSizes(3, 2, 4)
    with pytest.raises(InputError, match="sizes are missing"):
        make_backend("symmetric", group, top_k=2)
    with pytest.raises(InputError, match="exchange limits are for allgather"):
        make_backend("symmetric", group, top_k=2, sizes=sizes, limits=ExchangeLimits(topk_scaling_factor=0.5))
    no_sizes = choose_backend(group, top_k=2, limits=ExchangeLimits(), sizes=None, device=torch.device("cpu"))
    assert no_sizes.reason == "not symmetric: no buffer sizes were given"


@needs_triton
def test_wrong_shapes_are_refused_by_one_process():
    assert run_processes(Launch(1), _refusals, None) == [["top_k = 2", "another backend", "float64", "rows of 5"]]


def _refusals(member, _):
    backend = Symmetric.create(RankGroup(Topology(1, 2, 2)), BufferSizes(3, 3, 4, 4), torch.device("cpu"))
    found = []
    for text, call in (
        ("top_k = 2", lambda: backend.plan_exchange(_plan(2))),
        ("another backend", lambda: backend.dispatch(torch.ones((2, 4)), _foreign_handle())),
        ("float64", lambda: backend.combine(torch.ones((2, 2), dtype=torch.float64), _foreign_handle())),
        ("rows of 5", lambda: backend.dispatch(torch.ones((2, 5)), _foreign_handle())),
    ):
        try:
            call()
        except InputError as error:
            found.append(text if text in str(error) else str(error))
    return found


def _foreign_handle():
    return make_backend("alltoall", RankGroup(Topology(1, 2, 2)), top_k=2).plan_exchange(_plan(2))


def _fixed(member, mode):
    """What is wrong in steps with other tokens, routing and counts, in the same buffers."""
    group = RankGroup.of(Topology(1, 2, 2), member.process_group)
    cpu = torch.device("cpu")
    exchange = FixedExchange.create(group, BufferSizes(4, 2, 8, 4), torch.float32, cpu, mode=mode, timeout_s=20.0)
    wrong = []
    for step, tokens in enumerate(((4, 2), (0, 3), (1, 4))):
        generator = torch.Generator().manual_seed(step)
        x_TH = torch.randint(-4, 5, (2, 4, 8), generator=generator).float()[member.process]
        slots = torch.rand((2, 4, 4), generator=generator).argsort(dim=2)[member.process, :, :2]
        exchange.slot_TK.copy_(slots)
        exchange.weight_TK.copy_(torch.tensor([0.5, 2.0]))
        exchange.set_tokens(tokens[member.process])
        rows = exchange.dispatch(x_TH)
        ends = exchange.ends_S.tolist()
        factors = torch.repeat_interleave(
            torch.tensor([1.0, 3.0, 11.0, 13.0])[group.slots.start : group.slots.stop],
            exchange.ends_S.diff(prepend=torch.zeros(1, dtype=torch.int32)),
        )
        rows[: ends[-1]] *= factors[:, None]
        out = exchange.combine(rows)[: tokens[member.process]]
        exchange.raise_on_error()
        factor_TK = torch.tensor([1.0, 3.0, 11.0, 13.0])[slots] * torch.tensor([0.5, 2.0])
        if not torch.equal(out, (x_TH * factor_TK.sum(dim=1, keepdim=True))[: tokens[member.process]]):
            wrong.append(f"step {step}")
    return wrong


@needs_triton
@pytest.mark.parametrize("mode", list(ExchangeMode))
def test_fixed_buffers_follow_changing_tokens_and_routing(mode):
    assert run_processes(Launch(2), _fixed, mode) == [[], []]
    assert run_processes(Launch(1), _fixed, mode) == [[]]


@needs_triton
def test_a_batch_too_large_for_the_low_latency_mode_is_refused():
    assert run_processes(Launch(1), _too_large, None) == ["low-latency mode: 1 ranks x 4097 tokens x top-2 = 8194"]


def _too_large(member, _):
    sizes, mode = BufferSizes(4097, 2, 8, 4), ExchangeMode.LOW_LATENCY
    try:
        FixedExchange.create(RankGroup(Topology(1, 1, 4)), sizes, torch.float32, torch.device("cpu"), mode=mode)
    except InputError as error:
        return str(error).split(" choices")[0]
    return "accepted"
