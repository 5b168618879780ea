"""modes: up to how many tokens the low-latency mode of the symmetric exchange is faster, by the trial made at start."""

import torch
import torch.distributed as dist

from eplb.core.topology import Topology
from eplb.runtime import BufferSizes, Member, ModeTrials, RankGroup, time_modes

from .device_time import on_gpus

HIDDEN, EXPERTS, TOP_K, LARGEST = 7168, 256, 8, 4096


def measure(processes: int = 2) -> list[ModeTrials]:
    """The trials, the same on all ranks."""
    trials = on_gpus("modes", processes, _measured, None)[:1]
    for one in trials:
        print(one, flush=True)
    return trials


def _measured(member: Member, _: None) -> ModeTrials:
    group = RankGroup.of(Topology(1, dist.get_world_size(), EXPERTS // dist.get_world_size()), member.process_group)
    return time_modes(group, BufferSizes(LARGEST, TOP_K, HIDDEN), torch.bfloat16, member.device)


def as_dicts(results: list[ModeTrials]) -> list[dict[str, object]]:
    """The results for --json."""
    return [
        {"normal_s": dict(one.normal_s), "low_latency_s": dict(one.low_latency_s), "threshold": one.threshold}
        for one in results
    ]
