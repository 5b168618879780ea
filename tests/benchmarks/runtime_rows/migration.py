"""R7: experts move from each GPU to the next while layers run, by the copy engine, over peer memory.

A layer is a CUDA graph of 256 experts in bf16 on all ranks. Its time without copies is compared with its time while all
experts of a migration are copied at once, and in pieces, one before each of up to 40 replays, so that a piece starts
with the layer. The rate is bytes over the time in which copies run. After each case the migration compares the moved
experts with their fingerprints.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist

from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.runtime import (
    BufferSizes,
    ExpertWeights,
    ExpertWeightsShape,
    GateUpLayout,
    LiveMigration,
    Member,
    MoeLayer,
    PlacementTables,
    RankGroup,
    SoftmaxGate,
    TimedExperts,
    TokenSource,
    Transport,
    fixed_buffers,
    make_backend,
)

from .device_time import on_gpus

HIDDEN, INNER, EXPERTS, TOP_K, MOVED = 7168, 2048, 256, 8, 64
LEAST_GB_S, MOST_SLOWDOWN = 350.0, 0.25
PIECES = {"all at once": 2**40, "64 MiB a layer": 2**26, "256 MiB a layer": 2**28, "512 MiB a layer": 2**29}
"""Bytes that a rank pushes before a layer; 256 MiB take 0.71 ms at 377 GB/s, less than any FFN of these sizes."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """One number of tokens and one way to copy."""

    row: str
    tokens: int
    how: str
    layer_us: float
    slowdown: float
    gb_s: float
    moved_mb: float


def measure(processes: int = 2) -> list[Result]:
    """Both sizes."""
    answers = on_gpus("R7", processes, _measured, None)
    slowest = [
        replace(
            of_ranks[0],
            layer_us=max(one.layer_us for one in of_ranks),
            slowdown=max(one.slowdown for one in of_ranks),
            gb_s=min(one.gb_s for one in of_ranks),
        )
        for of_ranks in zip(*answers, strict=True)
    ]
    for one in slowest:
        print(
            f"{one.row} {one.tokens:5} tokens {one.how:16} layer {one.layer_us:8.1f} us ({one.slowdown:+.1%}, "
            f"bar {MOST_SLOWDOWN:+.0%}), {one.gb_s:6.1f} GB/s each way (bar {LEAST_GB_S:.0f}), {one.moved_mb:.0f} MB",
            flush=True,
        )
    return slowest


def _measured(member: Member, _: None) -> list[Result]:
    processes = dist.get_world_size()
    slots = EXPERTS // processes
    moved = min(MOVED, slots)
    topology = Topology(1, processes, slots)
    group = RankGroup.of(topology, member.process_group)
    rows_RS = np.arange(EXPERTS).reshape(processes, slots)
    moved_RS = rows_RS.copy()
    moved_RS[:, :moved] = np.roll(rows_RS, 1, axis=0)[:, :moved]  # from the rank before
    before, after = (Placement([one.reshape(-1)], EXPERTS, topology) for one in (rows_RS, moved_RS))
    tables = PlacementTables(before, device=member.device, max_replicas=1)
    shape = ExpertWeightsShape(num_layers=1, num_slots=slots, hidden_size=HIDDEN, intermediate_size=INNER)
    weights = ExpertWeights(shape, device=member.device, layout=GateUpLayout.INTERLEAVED)
    for part in weights.layer_parts(0).values():
        part.normal_(0, 0.02)
    torch.manual_seed(0)
    gate = SoftmaxGate(torch.randn((EXPERTS, HIDDEN), device=member.device).bfloat16(), TOP_K)
    results = []
    for tokens, num_layers in ((4096, 2), (128, 5)):  # as many as run while all bytes are copied at 350 GB/s
        layer = MoeLayer(0, gate, tables, group, make_backend("allgather", group, top_k=TOP_K), TimedExperts(weights))
        x = torch.randn((tokens, HIDDEN), device=member.device).bfloat16()
        choice = fixed_buffers(group, BufferSizes(tokens, TOP_K, HIDDEN), torch.bfloat16, member.device)
        if member.process == 0:
            print(f"{choice.buffers.name}: {choice.reason}", flush=True)
        source = TokenSource.consecutive(member.process, [tokens], member.device)
        layers = layer.captured(source, x, choice.buffers)
        call = partial(layers, x, torch.zeros(tokens, dtype=torch.int64, device=member.device))
        alone = statistics.median(_timed_us([call] * 15))
        for how, piece in PIECES.items():
            count = min(40, moved * weights.expert_bytes // piece) or num_layers
            migration = Migration.between(before, after, weights.expert_bytes)
            live = LiveMigration(migration, weights, tables, group, transport=Transport.PEER_MEMORY)
            us, gb_s, copied = _beside_copies(live, call, piece, count)
            results.append(Result("R7", tokens, how, us, us / alone - 1, gb_s, copied / 1e6))
            live.stage(0)
            live.commit(0)
            before, after = after, before
        layers.raise_on_error()
        del layers, layer, choice, call
        torch.cuda.empty_cache()
    return results


def _beside_copies(live: LiveMigration, call: Call, piece: int, count: int) -> tuple[float, float, int]:
    """Median time of `count` layers, a piece pushed before each; GB/s of the copies, bytes that were copied."""
    copies, lefts = [], []

    def push_and_call() -> None:
        if not lefts or lefts[-1]:
            start = torch.cuda.Event(enable_timing=True)
            ends = [torch.cuda.Event(enable_timing=True) for _ in live.copy_streams]
            start.record()  # by the stream of the layers: an event of a stream of copies waits for other copies
            lefts.append(live.push(piece))
            for end, stream in zip(ends, live.copy_streams, strict=True):
                end.record(stream)
            copies.append((start, ends))
        call()

    live.begin(0)
    total = live.push(1) + 1
    times = _timed_us([push_and_call] * count)
    torch.cuda.synchronize()
    seconds = sum(max(start.elapsed_time(end) for end in ends) for start, ends in copies) * 1e-3
    copied = total - lefts[-1]
    return statistics.median(times[: len(copies)] if piece < copied else times), copied / seconds / 1e9, copied


def _timed_us(calls: list[Call]) -> list[float]:
    """Microseconds of calls that follow one another, after a barrier."""
    torch.cuda.synchronize()
    dist.barrier()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
    events[0].record()
    for call, event in zip(calls, events[1:], strict=True):
        call()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in pairwise(events)]


def as_dicts(results: list[Result]) -> list[dict[str, object]]:
    """The results for --json."""
    return [asdict(one) for one in results]
