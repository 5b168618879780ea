"""The verifier on two GPUs, then dispatch and combine of each backend at DeepSeek-V3's shapes.

    PYTHONPATH=.:traces python tests/benchmarks/bench_runtime_gpu.py [--processes 2]

Times are CUDA events around one call, a barrier before each, L2 flushed, median of 30 after 10 warm-ups, the slowest
rank's. "cached" reuses the handle; "plan" makes it: counts, slots, weights, sorting. Wire GB/s counts what
leaves a GPU, logical GB/s (DeepEP's convention) every copy that arrives, local ones too. Host waits are counted by
torch's own check of synchronising calls; NCCL's are not seen by it.
"""

import argparse
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb.runtime import (
    AllGather,
    AllToAll,
    Backend,
    GateChoice,
    Launch,
    Member,
    PlacementTables,
    RankGroup,
    RoutingPlan,
    TokenSource,
    VerifyRequest,
    route,
    run_processes,
    verify,
)
from eplb_traces import ModelShape

HIDDEN, NUM_EXPERTS, TOP_K = 7168, 256, 8
WARM_UPS, REPEATS = 10, 30


@dataclass(frozen=True)
class Row:
    """One line of the table, of one process."""

    backend: str
    tokens: int
    step: str
    microseconds: float
    wire_bytes: int
    logical_bytes: int
    host_waits: int


def main() -> int:
    """Verify, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    processes = parser.parse_args().processes
    if torch.cuda.device_count() < processes:
        print(f"needs {processes} GPUs, found {torch.cuda.device_count()}: nothing was measured")
        return 0
    # NVLink multicast is not to be relied on; the processes inherit this.
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    print(
        f"{processes} x {torch.cuda.get_device_name(0)}, torch {torch.__version__}, "
        f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}, Python {platform.python_version()}"
    )
    passed = True
    for rule in (DispatchRule.EVEN, DispatchRule.ONLINE, DispatchRule.VLLM):
        passed = _verified(processes, rule) and passed
    started = time.perf_counter()
    rows = run_processes(Launch(processes, "nccl"), _measure, None)
    print(f"\nhidden {HIDDEN}, {NUM_EXPERTS} experts, top-{TOP_K}, bf16, uniform routing; measured in", end=" ")
    print(f"{time.perf_counter() - started:.0f} s")
    print(f"{'backend':32} {'tokens':>6} {'step':>8}", end=" ")
    print(f"{'us':>9} {'wire MB':>8} {'wire GB/s':>9} {'logical':>8} {'waits':>5}")
    for of_ranks in zip(*rows, strict=True):
        slowest = max(of_ranks, key=lambda row: row.microseconds)
        seconds = slowest.microseconds * 1e-6
        wire, logical = slowest.wire_bytes / 1e9, slowest.logical_bytes / 1e9
        speeds = f"{wire / seconds:9.1f} {logical / seconds:8.1f}" if wire else f"{'-':>9} {'-':>8}"
        print(
            f"{slowest.backend:32} {slowest.tokens:6} {slowest.step:>8} {slowest.microseconds:9.1f} "
            f"{wire * 1e3:8.2f} {speeds} {slowest.host_waits:5}"
        )
    return 0 if passed else 5


def _verified(processes: int, rule: DispatchRule) -> bool:
    """Run the verifier on an EP8 plan with 32 redundant experts folded onto the GPUs."""
    rng = np.random.default_rng(0)
    extra = rng.permutation(NUM_EXPERTS)[:32]
    rows = np.stack([rng.permutation(np.concatenate([np.arange(NUM_EXPERTS), extra])) for _ in range(2)])
    placement = Placement(rows, NUM_EXPERTS, Topology(2, 4, 36))
    plan = Plan(placement, ModelShape(2, NUM_EXPERTS, TOP_K), "given")
    started = time.perf_counter()
    report = verify(plan, VerifyRequest(Launch(processes, "nccl"), tokens_per_rank=128, rule=rule, hidden=64))
    print(f"\nverify, EP8 folded onto {processes} GPUs, rule {rule} ({time.perf_counter() - started:.0f} s)")
    for check, outcome in report.check_outcomes().items():
        print(f"  {check:14} {outcome}")
    print(f"  largest error {max(one.max_error for one in report.layers):.1e}")
    return not report.failures()


def _measure(member: Member, _: None) -> list[Row]:
    """Every backend, both batch sizes."""
    topology = Topology(1, dist.get_world_size(), NUM_EXPERTS // dist.get_world_size())
    group = RankGroup.of(topology, member.process_group)
    tables = PlacementTables(Placement([range(NUM_EXPERTS)], NUM_EXPERTS, topology), device=member.device)
    backends = {
        "allgather": AllGather(group),
        "alltoall": AllToAll(group),
        "alltoall, no dedup": AllToAll(group, dedup=False),
        "alltoall, fixed order": AllToAll(group, fixed_order=True),
    }
    flush = torch.empty(256 * 2**20 // 4, dtype=torch.int32, device=member.device)
    rows = []
    for tokens in (4096, 128):
        generator = torch.Generator(member.device).manual_seed(member.process)
        x_TH = torch.randn((tokens, HIDDEN), generator=generator, device=member.device).bfloat16()
        scores_TE = torch.rand((tokens, NUM_EXPERTS), generator=generator, device=member.device)
        choice = GateChoice(scores_TE.topk(TOP_K).indices, torch.full((tokens, TOP_K), 1 / TOP_K, device=member.device))
        source = TokenSource.consecutive(member.process, [tokens], member.device)
        routing = route(choice, source, tables, 0, group)
        for name, backend in backends.items():
            rows += _steps(name, backend, routing, x_TH, flush)
    return rows


def _steps(name: str, backend: Backend, routing: RoutingPlan, x: torch.Tensor, flush: torch.Tensor) -> list[Row]:
    """Plan exchange, dispatch and combine of one backend; the experts return their input unchanged."""
    handle = backend.plan_exchange(routing)
    x_MH = backend.dispatch(x, handle)
    wire = backend.wire_rows(handle)
    row_bytes = x.shape[1] * x.element_size()
    steps: list[tuple[str, Callable[[], object], torch.Tensor]] = [
        ("plan", lambda: backend.plan_exchange(routing), torch.zeros_like(wire.dispatch_RR)),
        ("dispatch", lambda: backend.dispatch(x, handle), wire.dispatch_RR),
        ("combine", lambda: backend.combine(x_MH, handle), wire.combine_RR),
    ]
    rows = []
    for step, call, copies_RR in steps:  # copies of this process; with uniform routing as many arrive
        logical = int(copies_RR.sum()) * row_bytes
        remote = logical - int(copies_RR.diagonal().sum()) * row_bytes
        rows.append(Row(name, len(x), step, _median_us(call, flush), remote, logical, _host_waits(call)))
    return rows


def _median_us(call: Callable[[], object], flush: torch.Tensor) -> float:
    """Median time of one call on this process's stream."""
    times = []
    for repeat in range(WARM_UPS + REPEATS):
        flush.zero_()
        dist.barrier()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= WARM_UPS:
            times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def _host_waits(call: Callable[[], object]) -> int:
    """Calls at which the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


if __name__ == "__main__":
    sys.exit(main())
