"""Executes the layers of a verification on one process; process 0 checks the observations of all processes."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from eplb.runtime.exchange.limits import Overflow
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.verification.checks import Finding, judge, max_error
from eplb.runtime.verification.injected_faults import Fault
from eplb.runtime.verification.launch import Member
from eplb.runtime.verification.layer_run import LayerRun, VerifyJob, poisoned
from eplb.runtime.verification.observations import LayerCase, LayerSeen, modes_seen
from eplb.runtime.verification.probe_experts import ProbeExperts


@final
@dataclass(frozen=True)
class ModeTraffic:
    """Copies and returned rows of one mode, summed over layers."""

    dispatch_RR: NDArray[np.int64]
    combine_RR: NDArray[np.int64]
    dropped_P: NDArray[np.int64]


@final
@dataclass(frozen=True)
class LayerResult:
    """The result of one layer, computed on process 0."""

    layer: int
    findings: list[Finding]
    predicted_R: NDArray[np.float64]
    measured_R: NDArray[np.int64]
    load_E: NDArray[np.int64]
    """[E] recorded logical load, summed over processes."""
    max_error: float
    traffic: dict[str, ModeTraffic]
    expert_ids_TK: NDArray[np.uint16]


def verify_member(member: Member, job: VerifyJob) -> list[LayerResult]:
    """Execute every layer; process 0 returns the results, the others an empty list."""
    group = RankGroup.of(job.placement.topology, member.process_group, poisoned)
    tables = PlacementTables(job.placement, job.rule, member.device)
    experts = ProbeExperts(len(group.slots), job.hidden, member.device)
    fault = job.fault if member.process == group.num_processes - 1 else Fault.NONE
    results = []
    for position, layer in enumerate(job.layers):
        run = LayerRun(job, group, tables, experts, layer, fault)
        seen = run.seen(position)
        everyone: list[LayerSeen] | None = [seen] * group.num_processes if member.process == 0 else None
        dist.gather_object(seen, everyone, dst=0, group=member.control_group)
        if everyone is not None:
            results.append(_layer_result(job, layer, everyone))
    return results


def _layer_result(job: VerifyJob, layer: int, seen: list[LayerSeen]) -> LayerResult:
    """Check one layer and sum its traffic over processes."""
    case = LayerCase(job.placement, layer, job.rule, seen, job.limits.overflow is Overflow.DROP)
    traffic = {}
    for name, modes in modes_seen(case):
        traffic[name] = ModeTraffic(
            torch.stack([mode.dispatch_RR for mode in modes]).sum(dim=0).numpy(),
            torch.stack([mode.combine_RR for mode in modes]).sum(dim=0).numpy(),
            torch.stack([mode.dropped_P for mode in modes]).sum(dim=0).numpy(),
        )
    return LayerResult(
        layer=layer,
        findings=judge(case),
        predicted_R=case.predicted_R,
        measured_R=case.measured_R,
        load_E=torch.stack([one.recorded_E for one in seen]).sum(dim=0).numpy(),
        max_error=max_error(case),
        traffic=traffic,
        expert_ids_TK=case.expert_ids_TK.numpy().astype(np.uint16),
    )
