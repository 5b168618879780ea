"""Verifies a placement: executes it on real processes and checks the result."""

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.errors import InputError
from eplb.runtime.exchange.backend_choice import auto_backend
from eplb.runtime.layer.gate import GroupLimit
from eplb.runtime.verification.launch import run_processes
from eplb.runtime.verification.layer_run import VerifyJob
from eplb.runtime.verification.verify_report import VerifyReport
from eplb.runtime.verification.verify_request import VerifyRequest, chosen_layers
from eplb.runtime.verification.worker import verify_member
from eplb_traces import RoutingTrace


def verify(plan: Plan, request: VerifyRequest, trace: RoutingTrace | None = None) -> VerifyReport:
    """Execute a plan on processes of this machine and check the result.

    If the plan has more ranks than there are processes, each process executes several ranks, with buffers, copies and
    sums per rank.

    Parameters
    ----------
    plan
        The plan.
    request
        How to execute it.
    trace
        Recorded choices; None: a random router chooses.

    Returns
    -------
    VerifyReport
        Its method `raise_on_failure` raises for a failed check.

    Raises
    ------
    InputError
        For a trace of another model or without tokens, layers that do not exist, or more processes than ranks.
    """
    placement = plan.placement
    num_ranks = placement.topology.num_ranks
    if request.launch.num_processes > num_ranks:
        raise InputError(f"processes = {request.launch.num_processes}: the plan has only {num_ranks} ranks")
    layers = chosen_layers(placement.num_layers, request.layers)
    if trace is None:
        tokens_of_rank, expert_ids = (request.tokens_per_rank,) * num_ranks, None
        top_k = request.top_k or plan.shape.top_k or min(8, placement.num_experts)
    else:
        tokens_of_rank, expert_ids = _trace_tokens(trace, plan, request.tokens_per_rank, layers)
        top_k = expert_ids.shape[2]
    if not 1 <= top_k <= placement.num_experts:
        raise InputError(f"top_k = {top_k}: expected 1 to {placement.num_experts} experts")
    groups = plan.shape.num_expert_groups
    job = VerifyJob(
        placement=placement,
        rule=request.rule,
        layers=layers,
        tokens_of_rank=tokens_of_rank,
        expert_ids=expert_ids,
        top_k=top_k,
        limit=GroupLimit(groups, plan.shape.top_k_groups or groups),
        exchange=auto_backend(num_ranks, top_k) if request.exchange == "auto" else request.exchange,
        limits=request.limits,
        hidden=request.hidden,
        fault=request.fault,
        seed=request.seed,
    )
    results = run_processes(request.launch, verify_member, job)[0]
    return VerifyReport(plan, request, tokens_of_rank, top_k, results)


def _trace_tokens(
    trace: RoutingTrace, plan: Plan, tokens_per_rank: int, layers: tuple[int, ...]
) -> tuple[tuple[int, ...], NDArray[np.uint16]]:
    """The first tokens of a trace by rank: by their source ranks if these fit the plan, otherwise in equal runs."""
    plan.placement.check_model(trace.shape, "trace")
    num_ranks = plan.placement.topology.num_ranks
    room = tokens_per_rank * num_ranks
    chosen: list[NDArray[np.uint16]] = []
    sources: list[NDArray[np.int32]] = []
    for batch in trace.batches():
        chosen.append(batch.expert_ids[:room, list(layers)])
        if batch.source_rank is not None:
            sources.append(batch.source_rank[:room])
        room -= min(room, batch.num_tokens)
        if not room:
            break
    ids = np.concatenate(chosen) if chosen else np.empty((0, 0, 0), dtype=np.uint16)
    if not len(ids):
        raise InputError("the trace has no tokens")
    source = np.concatenate(sources) if sources else np.empty(0, dtype=np.int32)
    if len(source) != len(ids) or source.max() >= num_ranks:
        source = np.arange(len(ids), dtype=np.int32) * num_ranks // len(ids)
    order = np.argsort(source, kind="stable")
    return tuple(int(n) for n in np.bincount(source, minlength=num_ranks)), ids[order]
