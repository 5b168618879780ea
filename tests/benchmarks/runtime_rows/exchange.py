"""R1 to R5: dispatch and combine of the symmetric exchange, on two GPUs unless told otherwise, at DeepSeek-V3's sizes.

chain: a CUDA graph of ten calls, replayed nine times; every call waits for the data of the other rank. single: one
eager call after a flush of the L2 cache; median of 30 after 10. Both are times of the device behind a barrier of the
ranks, the maximum over ranks. Before anything is timed, layout, rows and results of random batches are compared with
torch, exactly, then replays of captured graphs with new routing, counts and random delays. Wire GB/s: bytes that leave
a GPU. Logical GB/s, DeepEP's convention: a row for each (token, rank) that the token visits, this rank too.
"""

from dataclasses import asdict, dataclass, replace

import torch
import torch.distributed as dist

from eplb.runtime import Member
from eplb.runtime.exchange.symmetric.settings import KernelSettings
from eplb.runtime.kernels.low_latency import combine_grid, dispatch_grid

from .device_time import Call, chain_us, host_waits, launches, on_gpus, single_us
from .exchange_rank import HIDDEN, Rank, check, stress

BARS = {"R1": 175.0, "R2": 104.0, "R3": 188.0, "R1b": 205.0, "R3b": 205.0, "R4": 19.0, "R5": 15.0}

PUSH_VARIANTS: tuple[dict[str, int], ...] = (
    {"pushers": 64, "dispatch_group": 8, "dispatch_warps": 16},
    {"pushers": 64, "dispatch_group": 16},
    {"pushers": 64, "dispatch_group": 16, "dispatch_warps": 16},
    {"pushers": 64, "dispatch_group": 32, "dispatch_warps": 16},
)
FAST_COMBINE_VARIANTS: tuple[dict[str, int], ...] = ({"fast_combine_warps": 4}, {"fast_combine_warps": 2})


@dataclass(frozen=True)
class Result:
    """One figure."""

    row: str
    what: str
    chain_us: float
    single_us: float
    wire_mb: float
    logical_mb: float
    programs: int
    launches: int
    host_waits: int
    bar_us: float

    @property
    def wire_gb_s(self) -> float:
        return self.wire_mb * 1e3 / self.chain_us

    @property
    def logical_gb_s(self) -> float:
        return self.logical_mb * 1e3 / self.chain_us


@dataclass(frozen=True)
class Traffic:
    """Rows that a rank sends to others and, with its own, in DeepEP's count; bytes of a row."""

    sent: int
    visited: int
    row_bytes: int

    @classmethod
    def of(cls, rank: Rank, row_bytes: int) -> "Traffic":
        bits = rank.layout.hit_T[:, None] >> torch.arange(rank.P, device=rank.device) & 1
        visited = int(bits.sum())
        return cls(visited - int(bits[:, rank.me].sum()), visited, row_bytes)


def shown(words: dict[str, int]) -> str:
    return " ".join(f"{''.join(part[0] for part in name.split('_'))}{int(value)}" for name, value in words.items())


class Table:
    """The results of one rank, of the rows that are wanted."""

    def __init__(self, wanted: tuple[str, ...]) -> None:
        self.wanted = wanted
        self.results: list[Result] = []

    def add(
        self, row: str, what: str, rank: Rank, *steps: Call, programs: int = 0, rows: Traffic | None = None
    ) -> None:
        """Time the steps, a collective call of all ranks."""
        if row not in self.wanted:
            return
        chain, waits = chain_us(*steps), host_waits(*steps)
        single = single_us(steps[0]) if len(steps) == 1 else float("nan")
        rank.state.raise_on_error()
        rows = Traffic(0, 0, 0) if rows is None else rows
        megabytes = rows.sent * rows.row_bytes / 1e6, rows.visited * rows.row_bytes / 1e6
        counts = programs, launches(*steps), waits
        bar = BARS.get(row, float("nan")) if rank.P == 2 else float("nan")
        self.results.append(Result(row, what, chain, single, *megabytes, *counts, bar))


def _measured(member: Member, wanted: tuple[str, ...]) -> tuple[list[str], list[Result]]:
    """Checks, then times, of this rank."""
    checks: list[str] = []
    table = Table(wanted)
    for float8 in (False, True):
        settings = KernelSettings(float8_wire=float8)
        for notes in (_normal(member, settings, table), _low_latency(member, settings, table)):
            checks += notes
            if member.process == 0:
                print("\n".join(notes), flush=True)
    return checks, table.results


def _normal(member: Member, settings: KernelSettings, table: Table) -> list[str]:
    """R1 to R3 at 4096 tokens; R3 and the sums for bf16 alone."""
    kind = "fp8" if settings.float8_wire else "bf16"
    rank = Rank(member, 4096, settings)
    rank.warm(fast=False)
    notes = [f"{kind} normal, wrong layout/rows/results: {check(rank, [[4096, 3001], [0, 4096]], fast=False)}"]
    if not settings.float8_wire:
        skewed = [check(rank, [[4096, 4096]], fast=False, bias=bias) for bias in (1.0, 3.0)]
        notes.append(f"normal, lognormal routing 1 and 3: {skewed}")
        crowded = check(rank, [[4096, 4096]], fast=False, hot=rank.first_slot[1])
        notes.append(f"normal, all tokens to rank 0: {crowded}")
        notes.append(f"normal, 60 replays of 4096 with delays: {stress(rank, 60, fast=False)} wrong")
    rank.fill([4096] * rank.P, masked=0.0)
    rank.plan()
    plain, wire = Traffic.of(rank, 2 * HIDDEN), Traffic.of(rank, rank.wire_bytes)
    both = settings.pushers + settings.placers
    for words in PUSH_VARIANTS:
        rank.settings = replace(settings, **words)
        name = f"dispatch {kind} {shown(words)}"
        table.add("R2" if settings.float8_wire else "R1", name, rank, rank.push, programs=words["pushers"], rows=wire)
    rank.settings = settings
    table.add("R1b", f"dispatch + expand {kind}", rank, rank.dispatch, programs=both, rows=wire)
    if not settings.float8_wire:
        name = "weighted reduce + combine bf16"
        table.add("R3b", name, rank, rank.combine, programs=settings.combiners, rows=plain)
        rank.pull()
        dist.barrier()
        notes.append(f"pulled sums: {rank.wrong_pulls()} wrong")
        for rank.pullers in (16, 32, 64):
            table.add("R3", "pull of reduced sums", rank, rank.pull, programs=rank.pullers, rows=plain)
        table.add("layout", "choices + layout", rank, rank.plan)
    table.add("front", f"layout, dispatch, combine {kind}", rank, rank.plan, rank.dispatch, rank.combine)
    return notes


def _low_latency(member: Member, settings: KernelSettings, table: Table) -> list[str]:
    """R4 and R5 at 128 tokens."""
    kind = "fp8" if settings.float8_wire else "bf16"
    rank = Rank(member, 128, settings)
    rank.warm(fast=True)
    notes = [f"{kind} low latency: {check(rank, [[128, 77], [0, 128], [128, 128]], fast=True)}"]
    if not settings.float8_wire:
        notes.append(f"low latency, 400 replays with delays: {stress(rank, 400, fast=True)} wrong")
    rank.fill([128] * rank.P, masked=0.0)
    rank.fast_dispatch()
    plain, wire = Traffic.of(rank, 2 * HIDDEN), Traffic.of(rank, rank.wire_bytes)
    shape = rank.state.shape
    programs, _ = dispatch_grid(shape, rank.device)
    table.add("R4", f"low-latency dispatch {kind}", rank, rank.fast_dispatch, programs=programs, rows=wire)
    for words in FAST_COMBINE_VARIANTS:
        rank.settings = replace(settings, **words)
        programs = combine_grid(shape, rank.settings, rank.device).programs
        table.add("R5", f"low-latency combine {shown(words)}", rank, rank.fast_combine, programs=programs, rows=plain)
    rank.settings = settings
    table.add("pair", f"both, {kind}", rank, rank.fast_dispatch, rank.fast_combine)
    return notes


ROWS = ("R1", "R2", "R3", "R1b", "R3b", "R4", "R5", "layout", "front", "pair")


def measure(processes: int = 2, wanted: tuple[str, ...] = ROWS) -> list[Result]:
    """All rows, the slowest rank's; bars are those of two GPUs."""
    answers = on_gpus("R1 to R5", processes, _measured, wanted)
    if not answers:
        return []
    for process, (checks, _) in enumerate(answers[1:], 1):
        print(f"rank {process}: " + "; ".join(checks))
    slowest = []
    for of_ranks in zip(*(results for _, results in answers), strict=True):
        chain, single = max(one.chain_us for one in of_ranks), max(one.single_us for one in of_ranks)
        slowest.append(replace(of_ranks[0], chain_us=chain, single_us=single))
    print(report(slowest), flush=True)
    return slowest


def report(results: list[Result]) -> str:
    """The results as a table."""
    lines = [
        f"{'row':7} {'what':42} {'chain us':>9} {'single us':>9} {'bar us':>7} {'wire GB/s':>9} {'logical':>8}"
        f" {'CTAs':>5} {'launches':>8} {'host waits':>10}"
    ]
    lines += [
        f"{one.row:7} {one.what:42} {one.chain_us:9.1f} {one.single_us:9.1f} {one.bar_us:7.0f} {one.wire_gb_s:9.0f}"
        f" {one.logical_gb_s:8.0f} {one.programs:5} {one.launches:8} {one.host_waits:10}"
        for one in results
    ]
    return "\n".join(lines)


def as_dicts(results: list[Result]) -> list[dict[str, object]]:
    """The results for --json."""
    return [asdict(one) | {"wire_gb_s": one.wire_gb_s, "logical_gb_s": one.logical_gb_s} for one in results]
