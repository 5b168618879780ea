"""backends: plan, dispatch and combine of each NCCL backend at DeepSeek-V3's shapes, the slowest rank's.

One eager call after a flush of the L2 cache, the median of 30. The handle is used again by dispatch and combine; "plan"
makes it: counts, slots, weights, sorting. Wire GB/s counts what leaves a GPU, logical GB/s (DeepEP's convention) every
copy that arrives, local ones too. Host waits are those that torch's own check sees; NCCL's are not among them.
"""

from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.distributed as dist

from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.runtime import (
    AllGather,
    AllToAll,
    Backend,
    GateChoice,
    Member,
    PlacementTables,
    RankGroup,
    RoutingPlan,
    TokenSource,
    route,
)

from .device_time import Call, host_waits, on_gpus, single_us
from .exchange_rank import EXPERTS, HIDDEN, TOP_K


@dataclass(frozen=True)
class Result:
    """One step of one backend."""

    backend: str
    tokens: int
    step: str
    us: float
    wire_mb: float
    logical_mb: float
    host_waits: int


def measure(processes: int = 2) -> list[Result]:
    """Every backend, both batch sizes."""
    answers = on_gpus("backends", processes, _measured, None)
    slowest = [max(of_ranks, key=lambda one: one.us) for of_ranks in zip(*answers, strict=True)]
    for one in slowest:
        print(
            f"{one.backend:24} {one.tokens:5} tokens {one.step:>8} {one.us:9.1f} us {one.wire_mb:8.2f} MB"
            f" {one.wire_mb * 1e3 / one.us:6.1f} GB/s, logical {one.logical_mb * 1e3 / one.us:6.1f},"
            f" {one.host_waits} host waits",
            flush=True,
        )
    return slowest


def _measured(member: Member, _: None) -> list[Result]:
    """Every backend, both batch sizes, on one rank."""
    topology = Topology(1, dist.get_world_size(), EXPERTS // dist.get_world_size())
    group = RankGroup.of(topology, member.process_group)
    tables = PlacementTables(Placement([range(EXPERTS)], EXPERTS, topology), device=member.device)
    backends = {
        "allgather": AllGather(group),
        "alltoall": AllToAll(group),
        "alltoall, no dedup": AllToAll(group, dedup=False),
        "alltoall, fixed order": AllToAll(group, fixed_order=True),
    }
    results = []
    for tokens in (4096, 128):
        generator = torch.Generator(member.device).manual_seed(member.process)
        x_TH = torch.randn((tokens, HIDDEN), generator=generator, device=member.device).bfloat16()
        scores_TE = torch.rand((tokens, EXPERTS), generator=generator, device=member.device)
        choice = GateChoice(scores_TE.topk(TOP_K).indices, torch.full((tokens, TOP_K), 1 / TOP_K, device=member.device))
        source = TokenSource.consecutive(member.process, [tokens], member.device)
        routing = route(choice, source, tables, 0, group)
        for name, backend in backends.items():
            results += _steps(name, backend, routing, x_TH)
    return results


def _steps(name: str, backend: Backend, routing: RoutingPlan, x: torch.Tensor) -> list[Result]:
    """Plan exchange, dispatch and combine of one backend; the experts return their input unchanged."""
    handle = backend.plan_exchange(routing)
    x_MH = backend.dispatch(x, handle)
    wire = backend.wire_rows(handle)
    row_bytes = x.shape[1] * x.element_size()
    steps: list[tuple[str, Call, torch.Tensor]] = [
        ("plan", partial(backend.plan_exchange, routing), torch.zeros_like(wire.dispatch_RR)),
        ("dispatch", partial(backend.dispatch, x, handle), wire.dispatch_RR),
        ("combine", partial(backend.combine, x_MH, handle), wire.combine_RR),
    ]
    results = []
    for step, call, copies_RR in steps:  # copies of this process; with uniform routing as many arrive
        logical = int(copies_RR.sum()) * row_bytes / 1e6
        remote = logical - int(copies_RR.diagonal().sum()) * row_bytes / 1e6
        results.append(Result(name, len(x), step, single_us(call), remote, logical, host_waits(call)))
    return results


def as_dicts(results: list[Result]) -> list[dict[str, object]]:
    """The results for --json."""
    return [asdict(one) for one in results]
