"""modes: up to how many tokens the low-latency mode of the symmetric exchange is faster, by the trial made at start."""

import os

import torch

from eplb.core.topology import Topology
from eplb.runtime import BufferSizes, Launch, Member, ModeTrials, RankGroup, run_processes, time_modes

HIDDEN, EXPERTS, TOP_K, LARGEST = 7168, 256, 8, 4096


def measure() -> list[ModeTrials]:
    """The trials on two GPUs, the same on both ranks; nothing on fewer."""
    if torch.cuda.device_count() < 2:
        print(f"modes need 2 GPUs, found {torch.cuda.device_count()}: nothing was measured", flush=True)
        return []
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"  # multicast is not used
    trials = run_processes(Launch(2, "nccl"), _measured, None)[0]
    print(trials, flush=True)
    return [trials]


def _measured(member: Member, _: None) -> ModeTrials:
    group = RankGroup.of(Topology(1, 2, EXPERTS // 2), member.process_group)
    return time_modes(group, BufferSizes(LARGEST, TOP_K, HIDDEN), torch.bfloat16, member.device)


def as_dicts(results: list[ModeTrials]) -> list[dict[str, object]]:
    """The results for --json."""
    return [
        {"normal_s": dict(one.normal_s), "low_latency_s": dict(one.low_latency_s), "threshold": one.threshold}
        for one in results
    ]
