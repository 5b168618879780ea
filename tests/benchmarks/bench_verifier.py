"""The verifier on GPUs: every backend and dispatch rule passes, every injected fault is caught by its check.

    PYTHONPATH=.:traces python tests/benchmarks/bench_verifier.py [--processes 2]

A plan of 32 ranks on 4 nodes with 32 redundant experts is folded onto the processes. The choices are those recorded of
moe-435m (the shipped sample). Each line is one job: all its layers, and all modes of the backends that it names.
"""

import argparse
import os
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.runtime import CAUGHT_BY, ExchangeLimits, Fault, Launch, Member, run_processes
from eplb.runtime.layer.gate import GroupLimit
from eplb.runtime.verification.layer_run import VerifyJob
from eplb.runtime.verification.worker import verify_member
from eplb_traces import read_trace

TOPOLOGY = Topology(4, 8, 9)
TOKENS_PER_RANK, HIDDEN = 32, 64


def main() -> int:
    """Verify, print; 5 if a job did not end as expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--communicator", default="nccl")
    arguments = parser.parse_args()
    processes, communicator = arguments.processes, arguments.communicator
    if communicator == "nccl" and torch.cuda.device_count() < processes:
        print(f"needs {processes} GPUs, found {torch.cuda.device_count()}: nothing was verified")
        return 0
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"  # multicast is not used
    device = torch.cuda.get_device_name(0) if communicator == "nccl" else "CPU"
    print(f"{processes} x {device}, torch {torch.__version__}, EP{TOPOLOGY.num_ranks} folded", flush=True)
    lines = run_processes(Launch(processes, communicator), _verify_all, None)[0]
    good = sum(is_good for _, is_good in lines)
    print(f"{good} of {len(lines)} jobs ended as expected")
    return 0 if good == len(lines) else 5


def _verify_all(member: Member, _: None) -> list[tuple[str, bool]]:
    """A line for each job, and whether it ended as expected; collective."""
    lines = []
    for name, job in _jobs().items():
        start = time.perf_counter()
        results = verify_member(member, job)
        failed = sorted({finding.check for one in results for finding in one.findings if finding.failure})
        expected = CAUGHT_BY.get(job.fault)
        is_good = (expected in failed) if expected else not failed
        largest = max((one.max_error for one in results), default=0.0)
        found = f"caught by {', '.join(failed)}" if expected and failed else f"failed: {', '.join(failed) or 'none'}"
        lines.append((f"{name:32} {found:44} error {largest:.1e}  {time.perf_counter() - start:5.1f} s", is_good))
        if member.process == 0:
            print(lines[-1][0], flush=True)
    return lines


def _jobs() -> dict[str, VerifyJob]:
    """Every rule through all backends, then every fault through the symmetric backend."""
    trace = read_trace("sample:moe-435m")
    tokens = TOKENS_PER_RANK * TOPOLOGY.num_ranks
    ids = next(iter(trace.batches())).expert_ids[:tokens, :2]
    base = VerifyJob(
        placement=_placement(trace.shape.num_experts),
        rule=DispatchRule.EVEN,
        layers=(0, 1),
        tokens_of_rank=(TOKENS_PER_RANK,) * TOPOLOGY.num_ranks,
        expert_ids=ids,
        top_k=ids.shape[2],
        limit=GroupLimit(),
        exchange="all",
        limits=ExchangeLimits(),
        hidden=HIDDEN,
        fault=Fault.NONE,
        seed=0,
    )
    jobs = {f"rule {rule}, all backends": replace(base, rule=rule) for rule in DispatchRule}
    faulty = replace(base, exchange="symmetric", layers=(0,))
    return jobs | {f"fault {fault}, symmetric": replace(faulty, fault=fault) for fault in CAUGHT_BY}


def _placement(num_experts: int) -> Placement:
    """Random replicas, with random shares of their experts' tokens."""
    rng = np.random.default_rng(0)
    extra = TOPOLOGY.num_slots - num_experts
    rows = np.stack(
        [rng.permutation(np.r_[np.arange(num_experts), rng.permutation(num_experts)[:extra]]) for _ in range(2)]
    )
    shares = rng.uniform(0.2, 1.0, rows.shape)
    for layer, row in enumerate(rows):
        shares[layer] /= np.bincount(row, shares[layer])[row]
    return Placement(rows, num_experts, TOPOLOGY, shares)


if __name__ == "__main__":
    sys.exit(main())
